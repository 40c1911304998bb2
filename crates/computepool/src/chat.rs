//! `computepool chat`.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::Future,
    io::{BufRead, IsTerminal, Write, stdin, stdout},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use pool_types::SessionId;
use serde_json::{Value, json};

use crate::{
    api_client::{Answer, ApiClient, AskOptions, Turn, name_of},
    arguments::{ChatArguments, ChatPayArguments},
    network, serving,
    session::{self, Length, LiveLine, Record, SessionView, Wish},
    stop,
    wallet::Wallet,
};

/// What `--pay` buys where nobody says how much.
const SECONDS: u64 = 300;
/// How often it is asked what has streamed.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) fn run(arguments: ChatArguments) -> Result<ExitCode> {
    serving::runtime(1)?.block_on(async {
        let stop = stop::on_signal()?;
        let ChatPayArguments { pay, session, .. } = &arguments.payment;
        if !pay && session.is_none() {
            let api = ApiClient::new(&arguments.api, arguments.api_key.clone())?;
            return tokio::select! {
                outcome = talk(&arguments, &api, None) => outcome,
                () = stop.cancelled() => { println!(); Ok(()) }
            };
        }
        let paid = tokio::select! {
            paid = Paid::begin(&arguments) => paid?,
            () = stop.cancelled() => bail!("stopped before the session was open; `computepool session list` shows whether it was paid"),
        };
        let outcome = tokio::select! {
            outcome = talk(&arguments, &paid.api, Some(&paid.record)) => outcome,
            () = stop.cancelled() => { println!(); Ok(()) }
        };
        match (outcome, paid.end(arguments.json).await) {
            (Err(first), Err(second)) => {
                eprintln!("{second:#}");
                Err(first)
            }
            (outcome, ended) => outcome.and(ended),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The session that pays for a conversation.
struct Paid {
    /// Shows the session's token.
    api: ApiClient,
    record: Record,
    /// The payer's folder.
    folder: PathBuf,
    /// Whether it was opened here, and is closed here.
    is_ours: bool,
}

impl Paid {
    async fn begin(arguments: &ChatArguments) -> Result<Self> {
        let pay = &arguments.payment;
        let folder = pay.wallet.wallet.clone();
        if let Some(id) = &pay.session {
            let record = session::get(&folder, id)?;
            let api = ApiClient::new(&record.api, Some(record.token()?.to_owned()))?;
            return Ok(Self { api, record, folder, is_ours: false });
        }
        let book = network::book(&pay.chain)?;
        let chain = network::chain(&pay.chain).await?;
        let wallet = Wallet::open(&pay.wallet, &pay.chain.network)?;
        // Without the owner's key, which would make the requests free and the session idle.
        let seller = ApiClient::new(&arguments.api, None)?;
        let model = match &arguments.model {
            Some(model) => model.clone(),
            None => seller.first_model().await?,
        };
        let length = match (pay.seconds, pay.tokens) {
            (None, Some(tokens)) => Length::Tokens(tokens),
            (seconds, _) => Length::Seconds(seconds.unwrap_or(SECONDS)),
        };
        let wish = Wish { model, length, most: pay.most };
        let opened = session::open(&seller, &wallet, &book, chain.as_ref(), &wish).await?;
        if !arguments.json {
            let view = &opened.view;
            eprintln!(
                "The session {} is open: {} USDC were paid in for {} s at {} USDC.",
                view.id, view.paid, view.seconds, view.rate
            );
        }
        let record = opened.record;
        let api = ApiClient::new(&record.api, Some(record.token()?.to_owned()))?;
        Ok(Self { api, record, folder, is_ours: true })
    }

    /// Closes a session that was opened here, and tells what it came to.
    async fn end(mut self, as_json: bool) -> Result<()> {
        let id = self.record.session;
        if !self.is_ours {
            if !as_json {
                eprintln!("The session stays open; `computepool session close {id}` ends it and brings back the rest.");
            }
            return Ok(());
        }
        let impatient = stop::on_signal()?;
        let unfinished = session::still_closing(&self.record);
        let view = tokio::select! {
            closed = session::close(&mut self.record, &self.folder) => closed?,
            () = impatient.cancelled() => bail!("{unfinished}"),
        };
        if as_json {
            println!("{}", json!({ "session": view }));
        }
        let Some(receipt) = &view.receipt else { bail!("the session {id} was closed without a receipt") };
        if !as_json {
            eprintln!("{}", session::one_line(receipt));
        }
        if receipt.adds_up() { Ok(()) } else { bail!("the receipt of the session {id} does not add up") }
    }
}

/// A conversation with a model.
struct Talk<'a> {
    api: &'a ApiClient,
    model: String,
    about: Option<&'a Value>,
    options: AskOptions,
    /// What pays for it.
    session: Option<SessionId>,
    json: bool,
}

async fn talk(arguments: &ChatArguments, api: &ApiClient, paid: Option<&Record>) -> Result<()> {
    let models = api.models().await?;
    let model = match (&arguments.model, paid) {
        (Some(name), _) => name.clone(),
        (None, Some(record)) => record.model.clone(),
        (None, None) => models.first().and_then(name_of).context("the endpoint serves no model")?,
    };
    let about = models.iter().find(|entry| name_of(entry).as_ref() == Some(&model));
    let options =
        AskOptions { temperature: arguments.temperature, max_tokens: arguments.max_tokens, seed: arguments.seed };
    let session = paid.map(|record| record.session);
    let talk = Talk { api, model, about, options, session, json: arguments.json };
    let mut turns = Vec::new();
    if let Some(system) = &arguments.system {
        turns.push(Turn { role: "system", content: system.clone() });
    }
    let once = (!arguments.prompt.is_empty()).then(|| arguments.prompt.join(" "));
    if !arguments.json {
        introduce(&talk.model, about);
    }
    if let Some(prompt) = once {
        turns.push(Turn { role: "user", content: prompt });
        talk.answer(&turns).await?;
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
        match talk.answer(&turns).await {
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

impl Talk<'_> {
    async fn answer(&self, turns: &[Turn]) -> Result<Answer> {
        let live = RefCell::new(LiveLine::new());
        let asking = self.api.ask(&self.model, turns, self.options, |piece| {
            if !self.json {
                live.borrow().clear();
                print!("{piece}");
                let _ = stdout().flush();
                live.borrow().draw();
            }
        });
        let answer = match self.session {
            Some(session) if !self.json => {
                let answer = watched(self.api, session, &live, asking).await;
                live.borrow().clear();
                answer
            }
            _ => asking.await,
        };
        if self.json {
            let answer = answer?;
            let served_by = self.about.and_then(|about| about.pointer("/computepool/served_by"));
            println!("{}", json!({ "model": self.model, "answer": answer, "served_by": served_by }));
            return Ok(answer);
        }
        println!();
        let answer = answer?;
        let speed = answer.tokens_per_second.map(|speed| format!(", {speed:.1} tokens/s")).unwrap_or_default();
        eprintln!("({} tokens, first after {:.0} ms{speed})", answer.tokens, answer.first_token_seconds * 1e3);
        Ok(answer)
    }
}

/// Tells what streams, for as long as `work` takes.
async fn watched<T>(api: &ApiClient, session: SessionId, live: &RefCell<LiveLine>, work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = look(api, session, live) => match never {},
    }
}

async fn look(api: &ApiClient, session: SessionId, live: &RefCell<LiveLine>) -> Infallible {
    loop {
        // Where it cannot be asked, what was told last stays.
        let seen: Result<SessionView> = api.session(session).await;
        if let Ok(view) = seen {
            live.borrow_mut().update(&view);
        }
        tokio::time::sleep(LOOK).await;
    }
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
