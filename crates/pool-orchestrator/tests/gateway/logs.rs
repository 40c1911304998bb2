//! Prompts and answers stay out of the log.

use std::{
    io,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{
    answers::{hello, saying, with},
    client::Server,
};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn nothing_that_is_said_is_ever_logged() {
    let captured = Captured::default();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace"))
        .with_writer(captured.clone())
        .with_ansi(false)
        .finish();
    // For the whole process: requests are answered on other threads too. No other test says these words.
    tracing::subscriber::set_global_default(subscriber).expect("the only subscriber");

    let server = Server::start(saying("the secret answer is xylophone")).await;
    let prompt = "remember the word zeppelin";
    let body = json!({"model": "small", "messages": [{"role": "user", "content": prompt}], "logprobs": true});
    let answer = server.chat(body.clone()).await;
    assert!(answer.to_string().contains("xylophone"), "the client is told");
    server.stream("/v1/chat/completions", with(body.clone(), json!({"stream": true}))).await;
    let plain = json!({"model": "small", "prompt": prompt, "echo": true, "stop": "phone"});
    assert_eq!(server.post("/v1/completions", plain).await.status, 200);
    for bad in [
        json!({"messages": [{"role": "zeppelin", "content": "x"}]}),
        json!({"messages": [{"role": "user", "content": "zeppelin".repeat(100)}]}),
        json!({"model": "zeppelin"}),
        json!({"stop": {"zeppelin": 1}}),
    ] {
        assert!(server.post("/v1/chat/completions", with(hello(), bad)).await.status >= 400);
    }
    server.get("/v1/models/zeppelin").await;

    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("pool_orchestrator") && log.contains("completion_tokens="), "requests are logged: {log}");
    for word in ["zeppelin", "xylophone"] {
        // Only what a client puts into an address may be seen, by libraries at their most talkative.
        let spoken = |line: &&str| line.contains(word) && (line.contains("pool_") || !line.contains("/v1/models/"));
        let found: Vec<&str> = log.lines().filter(spoken).collect();
        assert!(found.is_empty(), "`{word}` was logged: {found:?}");
    }
}
