//! A gateway on a real port, and a client that holds every answer against the gateway's own OpenAPI document.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use pool_orchestrator::{
    Payments,
    gateway::{ApiKey, GatewayState, Limits, Privacy, router},
    session_router,
};
use reqwest::{Method, header::HeaderMap};
use serde_json::Value;

use super::{schema, script::Script};

/// Unix seconds that the gateway believes it is.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) struct Server {
    pub(crate) address: String,
    document: Value,
    task: tokio::task::JoinHandle<()>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    /// A field of the error.
    pub(crate) fn error(&self, field: &str) -> &str {
        self.json["error"][field].as_str().unwrap_or("null")
    }
}

impl Server {
    pub(crate) async fn start(script: Arc<Script>) -> Self {
        Self::with(script, None, Limits::default()).await
    }

    pub(crate) async fn with(script: Arc<Script>, key: Option<&str>, limits: Limits) -> Self {
        Self::serve(script, key, limits, None).await
    }

    /// A gateway whose requests are paid for.
    pub(crate) async fn paid(
        script: Arc<Script>,
        key: Option<&str>,
        limits: Limits,
        payments: Arc<dyn Payments>,
    ) -> Self {
        Self::serve(script, key, limits, Some(payments)).await
    }

    async fn serve(
        script: Arc<Script>,
        key: Option<&str>,
        limits: Limits,
        payments: Option<Arc<dyn Payments>>,
    ) -> Self {
        let state = GatewayState {
            completions: script,
            api_key: key.map(ApiKey::new),
            payments,
            privacy: Privacy::OwnMachines,
            limits,
            clock: Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)),
        };
        let app = router(state).merge(session_router(None, key.map(ApiKey::new)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let document = reqwest::get(format!("http://{address}/openapi.json")).await.unwrap().json().await.unwrap();
        Self { address, document, task }
    }

    pub(crate) fn document(&self) -> &Value {
        &self.document
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a request with the key `key` and checks what comes back against the document.
    pub(crate) async fn send(&self, method: Method, path: &str, key: Option<&str>, body: Option<&Value>) -> Answer {
        let mut request = reqwest::Client::new().request(method.clone(), self.url(path));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let json: Value = response.json().await.expect("every answer that is no stream is JSON");
        assert!(headers.contains_key("x-request-id"), "every answer has an id");
        let schema = schema::of_response(&self.document, path, method.as_str(), status, "application/json");
        match schema {
            Some(schema) => schema::check(&self.document, schema, &json),
            None => assert!(json["error"]["message"].is_string(), "{status} on {path} is not in the document: {json}"),
        }
        Answer { status, headers, json }
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, None, Some(&body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None, None).await
    }

    /// A whole chat answer, which must succeed.
    pub(crate) async fn chat(&self, body: Value) -> Value {
        let answer = self.post("/v1/chat/completions", body).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        answer.json
    }

    /// The data of every event of a stream, checked against the document, and the stream's raw text.
    pub(crate) async fn stream(&self, path: &str, body: Value) -> (Vec<Value>, String) {
        let response = reqwest::Client::new().post(self.url(path)).json(&body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.text().await.unwrap();
        let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        let chunks: Vec<Value> =
            events.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect();
        let schema = schema::of_response(&self.document, path, "POST", 200, "text/event-stream").unwrap();
        for chunk in chunks.iter().filter(|chunk| chunk.get("error").is_none()) {
            schema::check(&self.document, schema, chunk);
        }
        (chunks, text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for something that must become true soon.
pub(crate) async fn soon(what: &str, check: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !check() {
        assert!(begun.elapsed() < Duration::from_secs(2), "within two seconds: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
