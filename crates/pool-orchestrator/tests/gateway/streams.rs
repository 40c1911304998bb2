//! Answers as events, and clients that leave.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use pool_orchestrator::gateway::Limits;
use pool_types::{Failure, ReasonCode};
use serde_json::{Value, json};

use super::{
    answers::{hello, saying, tokenizer, with},
    client::{Server, soon},
    model,
    script::{Script, Step, say, say_tokens},
};

const CHAT: &str = "/v1/chat/completions";

fn streamed(more: Value) -> Value {
    with(with(hello(), json!({"stream": true})), more)
}

fn contents(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices.filter(|choice| choice["index"] == index).filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

/// A coalition that says a word and then falls silent for a minute.
fn silent() -> Arc<Script> {
    let model = model::served("small");
    let tokenizer = tokenizer(&model);
    Script::new(vec![model], move |prompt| {
        let mut steps = say(&tokenizer, prompt, "hello world");
        steps.truncate(2);
        steps.push(Step::Wait(Duration::from_secs(60)));
        Ok(steps)
    })
}

#[tokio::test]
async fn a_stream_has_openais_order_of_chunks() {
    let server = Server::start(saying("hello é")).await;
    let (chunks, text) = server.stream(CHAT, streamed(json!({"stream_options": {"include_usage": true}}))).await;
    let deltas: Vec<Value> = chunks.iter().flat_map(|c| c["choices"].get(0)).map(|c| c["delta"].clone()).collect();
    let word = |text: &str| json!({"content": text});
    let expected = [
        json!({"role": "assistant", "content": ""}),
        word("he"),
        word("ll"),
        word("o"),
        word(" "),
        word("é"),
        json!({}),
    ];
    assert_eq!(deltas, expected, "a character comes whole, with the token that completes it");
    let reasons: Vec<&Value> = chunks.iter().flat_map(|c| c["choices"].get(0)).map(|c| &c["finish_reason"]).collect();
    assert_eq!(
        reasons,
        [&Value::Null, &Value::Null, &Value::Null, &Value::Null, &Value::Null, &Value::Null, &json!("stop")]
    );
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], json!({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}));
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["object"] == "chat.completion.chunk"));
    assert_eq!(chunks[0]["computepool"]["requests"], json!(["1"]));
    assert!(text.ends_with("data: [DONE]\n\n"));

    let (chunks, _) = server.stream(CHAT, streamed(json!({}))).await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "usage only where it was asked for");
}

#[tokio::test]
async fn plain_completions_stream_texts() {
    let server = Server::start(saying("hello")).await;
    let body = json!({"model": "small", "prompt": ["a", "b"], "echo": true, "stream": true, "max_tokens": 2,
                      "stream_options": {"include_usage": true}});
    let (chunks, text) = server.stream("/v1/completions", body).await;
    for (index, begin) in [(0, "a"), (1, "b")] {
        let mine = chunks.iter().flat_map(|c| c["choices"].get(0)).filter(|choice| choice["index"] == index);
        let (texts, reasons): (Vec<&str>, Vec<&Value>) =
            mine.map(|choice| (choice["text"].as_str().unwrap(), &choice["finish_reason"])).unzip();
        assert_eq!(texts.concat(), format!("{begin}hell"));
        assert_eq!(reasons.last().unwrap().as_str(), Some("length"));
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 4);
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn choices_are_merged_into_one_stream_as_they_come() {
    let model = model::served("small");
    let tokenizer = tokenizer(&model);
    let script = Script::new(vec![model], move |prompt| {
        let steps = say(&tokenizer, prompt, &format!("choice {}", prompt.sampling.choice));
        Ok(steps.into_iter().flat_map(|step| [Step::Wait(Duration::from_millis(3)), step]).collect())
    });
    let server = Server::start(script).await;
    let (chunks, _) = server.stream(CHAT, streamed(json!({"n": 3}))).await;
    for index in 0..3 {
        assert_eq!(contents(&chunks, index), format!("choice {index}"));
    }
    let order: Vec<u64> = chunks.iter().map(|chunk| chunk["choices"][0]["index"].as_u64().unwrap()).collect();
    assert!(!order.is_sorted(), "they are not told one after another: {order:?}");
    let roles = chunks.iter().filter(|chunk| chunk["choices"][0]["delta"].get("role").is_some()).count();
    assert_eq!(roles, 3, "each choice begins with its role");
}

#[tokio::test]
async fn streamed_stop_strings_are_never_sent_not_even_in_part() {
    let script = saying("a hello we end here");
    let server = Server::start(script.clone()).await;
    let (chunks, text) = server.stream(CHAT, streamed(json!({"stop": "lo wee"}))).await;
    assert_eq!(contents(&chunks, 0), "a hello we end here", "what only looked like a stop string is sent");
    assert!(text.contains("\"stop\""));
    let (chunks, _) = server.stream(CHAT, streamed(json!({"stop": ["lo we", "zz"]}))).await;
    assert_eq!(contents(&chunks, 0), "a hel");
    soon("the completion is dropped at the stop string", || script.live() == 0).await;
}

#[tokio::test]
async fn streamed_logprobs_are_all_there_whatever_is_held_back() {
    let server = Server::start(saying("hello wo")).await;
    let asked = json!({"logprobs": true, "top_logprobs": 1, "stop": "lo wx"});
    let (chunks, _) = server.stream(CHAT, streamed(asked)).await;
    let tokens: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .map(|token| &token["token"])
        .collect();
    assert_eq!(tokens, ["he", "ll", "o", " w", "o"]);
}

#[tokio::test]
async fn a_failure_in_a_stream_is_its_last_event() {
    let script = Script::new(vec![model::served("small")], |prompt| {
        let mut steps = say_tokens(prompt, &[72, 105]);
        steps.truncate(1);
        steps.push(Step::Fail(Failure::new(ReasonCode::PeerLost, "the shard with layers 3-5 was lost")));
        Ok(steps)
    });
    let server = Server::start(script.clone()).await;
    let (chunks, text) = server.stream(CHAT, streamed(json!({}))).await;
    let error = &chunks.last().unwrap()["error"];
    assert_eq!(error["message"], "the shard with layers 3-5 was lost");
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("server_error"), Some("coalition_lost")));
    assert_eq!(contents(&chunks[..chunks.len() - 1], 0), "H", "what came before is kept");
    assert!(!text.contains("[DONE]"), "an answer that broke off is not done");

    let whole = server.post(CHAT, hello()).await;
    assert_eq!((whole.status, whole.error("code")), (503, "coalition_lost"));
    assert_eq!(whole.headers["retry-after"], "1");
    soon("nothing runs on", || script.live() == 0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_without_a_reason_is_an_error() {
    let server = Server::start(Script::new(vec![model::served("small")], |_| Ok(vec![Step::Break]))).await;
    assert_eq!(server.post(CHAT, hello()).await.status, 500);
    let (chunks, _) = server.stream(CHAT, streamed(json!({}))).await;
    assert_eq!(chunks.last().unwrap()["error"]["code"], "internal_error");
}

#[tokio::test]
async fn one_choice_that_fails_ends_the_others() {
    let script = Script::new(vec![model::served("small")], |prompt| match prompt.sampling.choice {
        0 => Ok(vec![Step::Wait(Duration::from_secs(60))]),
        _ => Ok(vec![Step::Fail(Failure::new(ReasonCode::Engine, "the engine failed"))]),
    });
    let server = Server::start(script.clone()).await;
    let answer = server.post(CHAT, with(hello(), json!({"n": 2}))).await;
    assert_eq!((answer.status, answer.error("code")), (502, "engine_failed"));
    soon("the other choice is cancelled", || script.live() == 0).await;
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let limits = Limits { keep_alive: Duration::from_millis(20), ..Limits::default() };
    let server = Server::with(silent(), None, limits).await;
    let response = reqwest::Client::new().post(server.url(CHAT)).json(&streamed(json!({}))).send().await.unwrap();
    let mut bytes = response.bytes_stream();
    let mut text = String::new();
    while text.matches(": keep-alive\n\n").count() < 2 {
        let chunk = tokio::time::timeout(Duration::from_secs(2), bytes.next()).await.expect("comments come");
        text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request_at_once() {
    let script = silent();
    let limits = Limits { max_concurrent: 1, ..Limits::default() };
    let server = Server::with(script.clone(), None, limits).await;

    let response = reqwest::Client::new().post(server.url(CHAT)).json(&streamed(json!({"n": 2}))).send().await.unwrap();
    let mut bytes = response.bytes_stream();
    bytes.next().await.unwrap().unwrap();
    soon("both choices run", || script.live() == 2).await;
    let full = server.post(CHAT, hello()).await;
    assert_eq!((full.status, full.error("code")), (429, "rate_limit_exceeded"), "the only place is taken");
    assert_eq!(full.headers["retry-after"], "1");
    drop(bytes);
    soon("a dropped stream drops both guards", || script.live() == 0).await;

    // The place is free again; a client that leaves before its whole answer is cancelled too.
    let client = reqwest::Client::builder().timeout(Duration::from_millis(200)).build().unwrap();
    let waiting = client.post(server.url(CHAT)).json(&hello()).send();
    let (ended, ()) = tokio::join!(waiting, soon("the request runs", || script.live() == 1));
    assert!(ended.unwrap_err().is_timeout());
    soon("a client that gave up drops the guard", || script.live() == 0).await;
}
