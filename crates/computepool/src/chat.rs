//! `computepool chat`.

use std::{
    io::{BufRead, IsTerminal, Write, stdin, stdout},
    process::ExitCode,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    api_client::{Answer, ApiClient, AskOptions, Turn},
    arguments::ChatArguments,
    serving, stop,
};

pub(crate) fn run(arguments: ChatArguments) -> Result<ExitCode> {
    serving::runtime(1)?.block_on(async {
        let stop = stop::on_signal()?;
        tokio::select! {
            outcome = talk(&arguments) => outcome,
            () = stop.cancelled() => { println!(); Ok(()) }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn talk(arguments: &ChatArguments) -> Result<()> {
    let api = ApiClient::new(&arguments.api, arguments.api_key.clone())?;
    let models = api.models().await?;
    let name = |model: &Value| model.get("id").and_then(Value::as_str).map(str::to_owned);
    let model = match &arguments.model {
        Some(name) => name.clone(),
        None => models.first().and_then(name).context("the endpoint serves no model")?,
    };
    let about = models.iter().find(|entry| name(entry).as_ref() == Some(&model));
    let options =
        AskOptions { temperature: arguments.temperature, max_tokens: arguments.max_tokens, seed: arguments.seed };
    let mut turns = Vec::new();
    if let Some(system) = &arguments.system {
        turns.push(Turn { role: "system", content: system.clone() });
    }
    let once = (!arguments.prompt.is_empty()).then(|| arguments.prompt.join(" "));
    if !arguments.json {
        introduce(&model, about);
    }
    if let Some(prompt) = once {
        turns.push(Turn { role: "user", content: prompt });
        answer(&api, &model, &turns, options, about, arguments.json).await?;
        return Ok(());
    }
    let mut lines = read_lines();
    loop {
        if stdin().is_terminal() {
            print!("\n> ");
            stdout().flush().context("cannot print")?;
        }
        let Some(line) = lines.recv().await else { return Ok(()) };
        if line.trim().is_empty() {
            continue;
        }
        turns.push(Turn { role: "user", content: line });
        match answer(&api, &model, &turns, options, about, arguments.json).await {
            Ok(answer) => turns.push(Turn { role: "assistant", content: answer.text }),
            Err(error) => {
                eprintln!("{error:#}");
                turns.pop();
            }
        }
    }
}

/// Who can read along, and who does the work.
fn introduce(model: &str, about: Option<&Value>) {
    let extra = |path: &str| about.and_then(|about| about.pointer(path));
    let privacy = extra("/computepool/privacy_notice").and_then(Value::as_str).unwrap_or_default();
    eprintln!("{model}. {privacy}");
    if let Some(served_by) = extra("/computepool/served_by").and_then(Value::as_array) {
        let text = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
        let parts: Vec<String> = served_by
            .iter()
            .map(|entry| format!("{} holds layers {}", text(entry, "member"), text(entry, "layers")))
            .collect();
        if !parts.is_empty() {
            eprintln!("{}.", parts.join(", "));
        }
    }
}

async fn answer(
    api: &ApiClient,
    model: &str,
    turns: &[Turn],
    options: AskOptions,
    about: Option<&Value>,
    as_json: bool,
) -> Result<Answer> {
    let answer = api
        .ask(model, turns, options, |piece| {
            if !as_json {
                print!("{piece}");
                let _ = stdout().flush();
            }
        })
        .await;
    if as_json {
        let answer = answer?;
        let served_by = about.and_then(|about| about.pointer("/computepool/served_by"));
        println!("{}", json!({ "model": model, "answer": answer, "served_by": served_by }));
        return Ok(answer);
    }
    println!();
    let answer = answer?;
    let speed = answer.tokens_per_second.map(|speed| format!(", {speed:.1} tokens/s")).unwrap_or_default();
    eprintln!("({} tokens, first after {:.0} ms{speed})", answer.tokens, answer.first_token_seconds * 1e3);
    Ok(answer)
}

/// Standard input line by line, from a thread of its own: a read from a terminal cannot be cancelled.
fn read_lines() -> tokio::sync::mpsc::Receiver<String> {
    let (tell, lines) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in stdin().lock().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
