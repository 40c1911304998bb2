//! What is refused, and how that is said.

use std::time::Duration;

use pool_orchestrator::{StartError, gateway::Limits};
use pool_types::{Failure, ReasonCode};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    answers::{hello, saying, with},
    client::Server,
    model::{self, CONTEXT, VOCABULARY},
    script::Script,
};

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = "/v1/completions";

#[tokio::test]
async fn bad_parameters_are_named() {
    let server = Server::start(saying("x")).await;
    let text = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let table: Vec<(Value, &str, &str)> = vec![
        (json!({"model": null}), "model", "missing"),
        (json!({"model": 5}), "model", "expected a string"),
        (json!({"messages": null}), "messages", "at least one"),
        (json!({"messages": []}), "messages", "at least one"),
        (json!({"messages": "hi"}), "messages", "expected a sequence"),
        (json!({"messages": [{"content": "x"}]}), "messages[0]", "missing field `role`"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role", "unknown variant"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "missing"),
        (text(json!(5)), "messages[0].content", "expected a string or an array of content parts"),
        (text(json!([{"type": "image_url", "image_url": {"url": "x"}}])), "messages[0].content[0]", "`image_url`"),
        (
            text(json!([{"type": "text", "text": "a"}, {"type": "input_audio"}])),
            "messages[0].content[1]",
            "not supported",
        ),
        (text(json!([{"type": "text"}])), "messages[0].content[0]", "no such field"),
        (text(json!("REFUSE")), "messages", "no such talk"),
        (
            json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": "c"}]}]}),
            "messages[0].tool_calls",
            "not supported",
        ),
        (json!({"temperature": "hot"}), "temperature", "invalid type"),
        (json!({"temperature": 2.1}), "temperature", "between 0 and 2"),
        (json!({"temperature": -0.1}), "temperature", "between 0 and 2"),
        (json!({"top_p": 1.5}), "top_p", "between 0 and 1"),
        (json!({"top_k": -1}), "top_k", "invalid value"),
        (json!({"min_p": 2}), "min_p", "between 0 and 1"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "between 0.01 and 100"),
        (json!({"presence_penalty": 3}), "presence_penalty", "between -2 and 2"),
        (json!({"frequency_penalty": -3}), "frequency_penalty", "between -2 and 2"),
        (json!({"n": 0}), "n", "between 1 and 8"),
        (json!({"n": 9}), "n", "between 1 and 8"),
        (json!({"n": 1.5}), "n", "invalid type"),
        (json!({"max_tokens": 0}), "max_tokens", "between 1"),
        (json!({"max_tokens": -5}), "max_tokens", "invalid value"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens", "between 1"),
        (json!({"seed": "7"}), "seed", "invalid type"),
        (json!({"stop": 5}), "stop", "a string or an array of strings"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "at most 4"),
        (json!({"stop": ["a", ""]}), "stop", "empty"),
        (json!({"stop": "x".repeat(1025)}), "stop", "1024"),
        (json!({"stream": "yes"}), "stream", "invalid type"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options", "needs `stream`"),
        (json!({"logprobs": 3}), "logprobs", "invalid type"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "between 0 and 20"),
        (json!({"top_logprobs": 2}), "top_logprobs", "needs `logprobs`"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias", "key `x`"),
        (json!({"logit_bias": {VOCABULARY.to_string(): 1}}), "logit_bias", "not a token id"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias", "between -100 and 100"),
        (json!({"logit_bias": [5]}), "logit_bias", "expected a map"),
        (json!({"response_format": {"type": "json_object"}}), "response_format", "not supported yet"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
            "response_format",
            "not supported yet",
        ),
        (json!({"response_format": {"type": "poem"}}), "response_format", "no response format `poem`"),
        (json!({"response_format": "text"}), "response_format", "object with a `type`"),
        (json!({"tools": [{"type": "function"}]}), "tools", "not supported yet"),
        (json!({"functions": [{"name": "f"}]}), "functions", "not supported yet"),
        (json!({"modalities": ["text", "audio"]}), "modalities", "`audio`"),
    ];
    for (change, param, fragment) in table {
        let answer = server.post(CHAT, with(hello(), change.clone())).await;
        assert_eq!((answer.status, answer.error("type")), (400, "invalid_request_error"), "{change}: {}", answer.json);
        assert_eq!(answer.error("param"), param, "{change}: {}", answer.json);
        assert!(answer.error("message").contains(fragment), "{change}: {} lacks {fragment:?}", answer.json);
    }
}

#[tokio::test]
async fn bad_parameters_of_plain_completions_are_named() {
    let server = Server::start(saying("x")).await;
    let table: Vec<(Value, &str, &str)> = vec![
        (json!({"prompt": null}), "prompt", "missing"),
        (json!({"prompt": {}}), "prompt", "expected a string, an array of strings"),
        (json!({"prompt": ""}), "prompt", "empty"),
        (json!({"prompt": []}), "prompt", "empty"),
        (json!({"prompt": [[1], []]}), "prompt", "empty"),
        (json!({"prompt": [1, -1]}), "prompt", "expected"),
        (json!({"prompt": [VOCABULARY]}), "prompt", "tokens below"),
        (json!({"prompt": vec!["x"; 65]}), "prompt", "1 to 64"),
        (json!({"suffix": "end"}), "suffix", "not supported"),
        (json!({"best_of": 2}), "best_of", "not supported"),
        (json!({"echo": true, "logprobs": 1}), "echo", "not supported"),
        (json!({"logprobs": 6}), "logprobs", "between 0 and 5"),
        (json!({"logprobs": true}), "logprobs", "invalid type"),
    ];
    for (change, param, fragment) in table {
        let answer = server.post(PLAIN, with(json!({"model": "small", "prompt": "x"}), change.clone())).await;
        assert_eq!((answer.status, answer.error("param")), (400, param), "{change}: {}", answer.json);
        assert!(answer.error("message").contains(fragment), "{change}: {} lacks {fragment:?}", answer.json);
    }
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_with_the_numbers() {
    let server = Server::start(saying("x")).await;
    let long = "x".repeat(CONTEXT as usize);
    for (path, body, param) in [
        (CHAT, json!({"model": "small", "messages": [{"role": "user", "content": long}]}), "messages"),
        (PLAIN, json!({"model": "small", "prompt": long}), "prompt"),
    ] {
        let answer = server.post(path, body).await;
        assert_eq!((answer.status, answer.error("code")), (400, "context_length_exceeded"));
        assert_eq!(answer.error("param"), param);
        let tokens = if path == CHAT { CONTEXT + 3 } else { CONTEXT };
        for number in [CONTEXT, tokens] {
            assert!(answer.error("message").contains(&format!("{number} tokens")), "{}", answer.json);
        }
    }
    let answer = server.post(CHAT, with(hello(), json!({"max_tokens": CONTEXT}))).await;
    assert_eq!((answer.status, answer.error("code")), (400, "context_length_exceeded"));
    assert!(
        answer.error("message").contains(&format!("requested {} tokens (5 in the messages, {CONTEXT} in", CONTEXT + 5))
    );
}

#[tokio::test]
async fn bodies_that_are_not_json_objects_are_refused_with_the_place() {
    let server = Server::start(saying("x")).await;
    let send = async |body: &str, content_type: Option<&str>| {
        let mut request = reqwest::Client::new().post(server.url(CHAT)).body(body.to_owned());
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let json: Value = response.json().await.unwrap();
        (status, json["error"]["message"].as_str().unwrap().to_owned())
    };
    let json = Some("application/json; charset=utf-8");
    for (body, fragment) in [
        ("", "EOF"),
        ("{\"model\": \"small\",\n oops}", "line 2 column 2"),
        ("{\"model\": \"small\"", "line 1 column 17"),
        ("{\"model\": \"small\"} x", "line 1 column 20"),
        ("[\"small\"]", "must be a JSON object"),
        ("{\"model\": \"a\", \"model\": \"b\"}", "duplicate field"),
        ("{\"model\": \"\\ud800\"}", "line 1"),
    ] {
        let (status, message) = send(body, json).await;
        assert_eq!(status, 400, "{body}");
        assert!(message.contains(fragment), "{body}: {message} lacks {fragment:?}");
    }
    let deep = "[".repeat(100_000);
    let (status, message) = send(&format!("{{\"messages\": {deep}"), json).await;
    assert_eq!(status, 400, "{message}");
    for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let (status, message) = send(&hello().to_string(), content_type).await;
        assert_eq!(status, 415, "{content_type:?}: a page of another origin could send this");
        assert!(message.contains("application/json"), "{message}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_or_too_slow_is_refused() {
    let limits = Limits { max_body: 1000, body_timeout: Duration::from_millis(100), ..Limits::default() };
    let server = Server::with(saying("x"), None, limits).await;
    let large = with(hello(), json!({"padding": "x".repeat(5 << 20)}));
    let answer = server.post(CHAT, large).await;
    assert_eq!((answer.status, answer.error("code")), (413, "request_too_large"), "the client reads the answer");
    assert!(answer.error("message").contains("1000 bytes"));

    let mut socket = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(Duration::from_secs(2), socket.read_exact(&mut answer)).await.expect("in time").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn the_key_is_asked_for_where_there_is_one() {
    let server = Server::with(saying("x"), Some("cp-right"), Limits::default()).await;
    for key in [None, Some("cp-wrong"), Some("")] {
        for (method, path) in [
            (Method::GET, "/v1/models"),
            (Method::GET, "/v1/models/small"),
            (Method::POST, CHAT),
            (Method::POST, PLAIN),
        ] {
            let answer = server.send(method, path, key, Some(&hello())).await;
            assert_eq!((answer.status, answer.error("code")), (401, "invalid_api_key"), "{path} with {key:?}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    assert_eq!(server.send(Method::POST, CHAT, Some("cp-right"), Some(&hello())).await.status, 200);
    assert_eq!(server.get("/openapi.json").await.status, 200, "the document is for everybody");
}

#[tokio::test]
async fn unknown_routes_and_methods_answer_in_openais_form() {
    let server = Server::start(saying("x")).await;
    let missing = server.get("/v1/assistants").await;
    assert_eq!((missing.status, missing.error("code")), (404, "unknown_url"));
    assert!(missing.error("message").contains("GET /v1/assistants"));
    let wrong = server.get(CHAT).await;
    assert_eq!((wrong.status, wrong.error("code")), (405, "method_not_supported"));
    assert_eq!(wrong.headers["allow"], "POST");
    let unknown = server.post(CHAT, with(hello(), json!({"model": "huge"}))).await;
    assert_eq!((unknown.status, unknown.error("code"), unknown.error("param")), (404, "model_not_found", "model"));
}

#[tokio::test]
async fn what_the_coalition_refuses_has_its_own_status() {
    type Refusal = fn() -> StartError;
    let table: [(Refusal, u16, &str, bool); 7] = [
        (|| StartError::NoCoalition("small".to_owned()), 503, "no_coalition", true),
        (|| StartError::Full { capacity: 100, waiting: 3 }, 429, "rate_limit_exceeded", true),
        (|| StartError::TooLong { needed: 10, limit: 5 }, 400, "context_length_exceeded", false),
        (|| StartError::UnknownModel("small".to_owned()), 404, "model_not_found", false),
        (|| StartError::Failed(Failure::new(ReasonCode::Engine, "it failed")), 502, "engine_failed", false),
        (|| StartError::Failed(Failure::new(ReasonCode::KvFull, "it failed")), 429, "rate_limit_exceeded", true),
        (|| StartError::Failed(Failure::new(ReasonCode::Timeout, "it failed")), 503, "timeout", true),
    ];
    for (refusal, status, code, again) in table {
        let server = Server::start(Script::new(vec![model::served("small")], move |_| Err(refusal()))).await;
        for more in [json!({}), json!({"stream": true}), json!({"stream": true, "n": 2})] {
            let answer = server.post(CHAT, with(hello(), more.clone())).await;
            assert_eq!((answer.status, answer.error("code")), (status, code), "{more}: before a stream has begun");
            assert_eq!(answer.headers.contains_key("retry-after"), again, "{code}");
        }
    }
}

#[tokio::test]
async fn a_defect_is_a_500_and_the_server_lives_on() {
    let script = Script::new(vec![model::served("small")], |prompt| {
        assert!(prompt.sampling.seed != 13, "a defect");
        Err(StartError::NoCoalition("small".to_owned()))
    });
    let server = Server::start(script).await;
    let answer = server.post(CHAT, with(hello(), json!({"seed": 13}))).await;
    assert_eq!((answer.status, answer.error("code")), (500, "internal_error"));
    assert_eq!(server.post(CHAT, hello()).await.status, 503);
}
