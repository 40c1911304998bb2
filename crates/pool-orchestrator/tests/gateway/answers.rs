//! Whole answers, and what reaches the shards.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pool_models::Tokenizer;
use pool_types::Sampling;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    client::{NOW, Server},
    model::{self, CONTEXT, END},
    schema,
    script::{Script, Step, say, say_tokens},
};

/// A coalition that always says `text`.
pub(crate) fn saying(text: &'static str) -> Arc<Script> {
    let model = model::served("small");
    let tokenizer = tokenizer(&model);
    Script::new(vec![model], move |prompt| Ok(say(&tokenizer, prompt, text)))
}

pub(crate) fn tokenizer(model: &pool_orchestrator::ServedModel) -> Arc<Tokenizer> {
    model.model.tokenizer.clone().unwrap()
}

pub(crate) fn hello() -> Value {
    json!({"model": "small", "messages": [{"role": "user", "content": "Hi"}]})
}

/// `base` with further fields.
pub(crate) fn with(base: Value, more: Value) -> Value {
    let mut all = base;
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

#[tokio::test]
async fn the_document_names_every_route_and_its_examples_are_as_it_says() {
    let server = Server::start(saying("hello")).await;
    let document = server.document();
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    let expected = [
        "/openapi.json",
        "/v1/audit",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/v1/workflows/{run}",
    ];
    assert_eq!(paths, expected, "the document and the router name the same routes");
    let mut examples = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            // Every route of the document exists, with this method and no other.
            let url = path.replace("{id}", "small").replace("{run}", "0");
            let wrong = if method == "post" { Method::GET } else { Method::POST };
            assert_eq!(server.send(wrong, &url, None, Some(&json!({}))).await.status, 405, "{path}");
            let right: Method = method.to_uppercase().parse().unwrap();
            let answer = server.send(right, &url, None, Some(&json!({}))).await;
            // What concerns payment says that nothing needs to be paid here.
            let exists = ![404, 405].contains(&answer.status) || answer.error("code") == "no_payment";
            assert!(exists, "{path}: {}", answer.json);

            let mut contents: Vec<&Value> = operation["responses"].as_object().unwrap().values().collect();
            contents.extend(operation.get("requestBody"));
            for (kind, content) in contents.iter().filter_map(|c| c["content"].as_object()).flatten() {
                let schema = &content["schema"];
                assert!(!schema.is_null(), "{path} {kind} has a schema");
                if let Some(example) = content.get("example") {
                    schema::check(document, schema, example);
                    examples += 1;
                }
            }
        }
    }
    for schema in ["CreateChatCompletionRequest", "CreateCompletionRequest"] {
        let schema = &document["components"]["schemas"][schema];
        assert!(schema["example"]["model"].is_string(), "requests have examples");
        examples += 1;
    }
    assert!(examples >= 10, "found {examples} examples");
    check_references(document, document);
}

fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference} leads nowhere");
            }
            fields.values().for_each(|value| check_references(document, value));
        }
        Value::Array(values) => values.iter().for_each(|value| check_references(document, value)),
        _ => {}
    }
}

#[tokio::test]
async fn models_are_listed_and_described() {
    let mut idle = model::served("maker/idle");
    (idle.active, idle.members) = (false, Vec::new());
    let server = Server::start(Script::new(vec![model::served("small"), idle], |_| Ok(Vec::new()))).await;
    let list = server.get("/v1/models").await.json;
    assert_eq!(list["data"][0]["id"], "small");
    assert_eq!(list["data"][0]["created"], 1_700_000_000);
    assert_eq!(list["data"][0]["computepool"]["served_by"][1], json!({"member": "bob", "layers": "3-5"}));
    for path in ["/v1/models/maker/idle", "/v1/models/maker%2Fidle"] {
        let one = server.get(path).await;
        assert_eq!((one.status, one.json["computepool"]["active"].as_bool()), (200, Some(false)), "{path}");
    }
    let none = server.get("/v1/models/huge").await;
    assert_eq!((none.status, none.error("code")), (404, "model_not_found"));
}

#[tokio::test]
async fn a_chat_is_rendered_answered_and_counted() {
    let script = saying("hello world");
    let server = Server::start(script.clone()).await;
    let answer = server.chat(with(hello(), json!({"seed": 7, "some_new_field": {"a": [1]}, "user": "me"}))).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((answer["object"].as_str(), answer["created"].as_u64()), (Some("chat.completion"), Some(NOW)));
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "hello world", "refusal": null}));
    assert_eq!((choice["finish_reason"].as_str(), &choice["logprobs"]), (Some("stop"), &Value::Null));
    // <|user|> H i <|end|> <|assistant|>; he ll o Ġw o r l d and the end token.
    assert_eq!(answer["usage"], json!({"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}));
    assert_eq!(answer["computepool"]["served_by"][0], json!({"member": "ada", "layers": "0-2"}));
    assert_eq!(answer["computepool"]["privacy"], "own_machines");
    assert_eq!(answer["computepool"]["requests"], json!(["1"]));
    assert_eq!(script.prompts()[0].tokens, [261, 72, 105, END, 262], "the template's own tokens and no others");
    assert_eq!(script.live(), 0, "nothing runs on");
}

#[tokio::test]
async fn parameters_reach_the_sampler() {
    let script = saying("x");
    let server = Server::start(script.clone()).await;
    server.chat(with(hello(), json!({"seed": -3}))).await;
    let defaults = script.prompts().pop().unwrap();
    assert_eq!(defaults.sampling, Sampling { seed: (-3i64) as u64, ..Sampling::default() }, "OpenAI's defaults");
    assert_eq!(defaults.stop_tokens, [END]);
    assert_eq!(defaults.max_new_tokens, CONTEXT - 5, "as much as the context leaves");

    let all = json!({
        "temperature": 0.5, "top_p": 0, "top_k": 4, "min_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -2,
        "frequency_penalty": 2, "logit_bias": {"7": -100, "259": 1.5}, "seed": 9, "logprobs": true, "top_logprobs": 3,
        "max_tokens": 5, "max_completion_tokens": 6, "ignore_eos": true, "stop": null, "n": null, "tools": [],
        "response_format": {"type": "text"}, "modalities": ["text"], "stream_options": null, "tool_choice": "auto",
    });
    server.chat(with(hello(), all)).await;
    let prompt = script.prompts().pop().unwrap();
    let expected = Sampling {
        temperature: 0.5,
        top_k: 4,
        top_p: f32::MIN_POSITIVE,
        min_p: 0.25,
        repetition_penalty: 1.5,
        presence_penalty: -2.0,
        frequency_penalty: 2.0,
        logit_bias: BTreeMap::from([(7, -100.0), (259, 1.5)]),
        seed: 9,
        choice: 0,
        logprobs: Some(3),
    };
    assert_eq!(prompt.sampling, expected);
    assert_eq!(prompt.max_new_tokens, 6, "max_completion_tokens wins");
    assert!(prompt.stop_tokens.is_empty(), "ignore_eos goes on past the end token");

    server.chat(hello()).await;
    server.chat(hello()).await;
    let seeds: Vec<u64> = script.prompts().iter().rev().take(2).map(|prompt| prompt.sampling.seed).collect();
    assert_ne!(seeds[0], seeds[1], "without a seed each request draws its own");
}

#[tokio::test]
async fn the_default_length_is_the_servers_where_the_context_leaves_more() {
    let script = saying("x");
    let limits = pool_orchestrator::gateway::Limits { default_max_tokens: 16, ..Default::default() };
    let server = Server::with(script.clone(), None, limits).await;
    server.chat(hello()).await;
    assert_eq!(script.prompts()[0].max_new_tokens, 16);
    server.chat(with(hello(), json!({"max_tokens": CONTEXT - 5}))).await;
    assert_eq!(script.prompts()[1].max_new_tokens, CONTEXT - 5, "a client may ask for all that is left");
}

#[tokio::test]
async fn messages_of_every_role_and_in_parts_are_rendered() {
    let script = saying("x");
    let server = Server::start(script.clone()).await;
    let messages = json!([
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}], "name": "eve"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "d"}], "tool_calls": null},
        {"role": "tool", "content": "é", "tool_call_id": "call_1"},
    ]);
    server.chat(json!({"model": "small", "messages": messages})).await;
    let text = tokenizer(&script.models[0]).decode(&script.prompts()[0].tokens, false);
    let expected = "<|system|>a<|end|><|user|>b\nc<|end|><|assistant|>d<|end|><|tool|>é<|end|><|assistant|>";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn n_choices_share_a_seed_and_differ_in_their_number() {
    let model = model::served("small");
    let tokenizer = tokenizer(&model);
    let script = Script::new(vec![model], move |prompt| {
        let mut steps = vec![Step::Wait(Duration::from_millis(u64::from(3 - prompt.sampling.choice) * 10))];
        steps.extend(say(&tokenizer, prompt, &format!("answer {}", prompt.sampling.choice)));
        Ok(steps)
    });
    let server = Server::start(script.clone()).await;
    let answer = server.chat(with(hello(), json!({"n": 3}))).await;
    for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], format!("answer {index}"), "in order, though the last came first");
    }
    let prompts = script.prompts();
    assert!(prompts.iter().all(|prompt| prompt.sampling.seed == prompts[0].sampling.seed));
    let numbers: Vec<u32> = prompts.iter().map(|prompt| prompt.sampling.choice).collect();
    assert_eq!(numbers, [0, 1, 2]);
    assert_eq!(answer["usage"]["prompt_tokens"], 5, "the prompt counts once");
    assert_eq!(answer["usage"]["completion_tokens"], 3 * 9);
    assert_eq!(script.most.load(std::sync::atomic::Ordering::SeqCst), 3, "they ran side by side");
}

#[tokio::test]
async fn an_answer_ends_before_a_stop_string_and_frees_its_cache_at_once() {
    let script = saying("one two hello wor STOP and much more");
    let server = Server::start(script.clone()).await;
    let answer = server.chat(with(hello(), json!({"stop": ["llo w", "STOP"]}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "one two he", "the stop string spans three tokens");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(script.live(), 0);
    let sampled = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(sampled, 12, "o n e _ t w o (Ġ t w o: 4) _ he ll o Ġw, and no token after it: got {sampled}");
}

#[tokio::test]
async fn length_ends_an_answer_and_a_broken_character_is_marked() {
    let server = Server::start(saying("né")).await;
    let answer = server.chat(with(hello(), json!({"max_tokens": 2}))).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["message"]["content"], "n\u{fffd}", "half a character was sampled");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn chat_logprobs_tell_tokens_bytes_and_alternatives() {
    let server = Server::start(saying("hé STOP")).await;
    let asked = json!({"logprobs": true, "top_logprobs": 3, "stop": "STOP"});
    let answer = server.chat(with(hello(), asked)).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let names: Vec<&str> = content.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(names, ["h", "bytes:\\xc3", "bytes:\\xa9", " "], "the stop string's tokens are not part of the answer");
    let bytes: Vec<u8> =
        content.iter().flat_map(|t| t["bytes"].as_array().unwrap()).map(|b| b.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), answer["choices"][0]["message"]["content"]);
    let top = content[0]["top_logprobs"].as_array().unwrap();
    assert_eq!((top.len(), top[0]["token"].as_str(), top[0]["logprob"].as_f64()), (3, Some("h"), Some(-0.5)));
    assert_eq!(top[2]["logprob"], -9999.0, "JSON has no infinity");

    let bare = server.chat(with(hello(), json!({"logprobs": true}))).await;
    assert_eq!(bare["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn prompts_are_texts_or_tokens_one_or_several() {
    let model = model::served("small");
    let tokenizer = tokenizer(&model);
    let script = Script::new(vec![model], move |prompt| {
        let said = format!("{}#{}", tokenizer.decode(&prompt.tokens, true), prompt.sampling.choice);
        Ok(say(&tokenizer, prompt, &said))
    });
    let server = Server::start(script.clone()).await;
    let ask = async |prompt: Value, more: Value| {
        let answer = server.post("/v1/completions", with(json!({"model": "small", "prompt": prompt}), more)).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        answer.json
    };
    let texts = |answer: &Value| -> Vec<String> {
        answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
    };
    let one = ask(json!("hello"), json!({})).await;
    assert_eq!(texts(&one), ["hello#0"]);
    assert_eq!(one["usage"]["prompt_tokens"], 3, "he ll o, and no template around it");
    assert_eq!(texts(&ask(json!([72, 105]), json!({})).await), ["Hi#0"]);
    let several = ask(json!(["a", "b"]), json!({"n": 2})).await;
    assert_eq!(texts(&several), ["a#0", "a#1", "b#0", "b#1"], "each prompt's choices stand together");
    assert_eq!(several["choices"][3]["index"], 3);
    assert_eq!(several["usage"]["prompt_tokens"], 2);
    assert_eq!(texts(&ask(json!([[97], [98, 99]]), json!({"best_of": 1})).await), ["a#0", "bc#0"]);
    assert_eq!(texts(&ask(json!("a"), json!({"echo": true})).await), ["aa#0"]);
    assert_eq!(texts(&ask(json!([[97]]), json!({"echo": true, "stop": "#"})).await), ["aa"]);

    let many: Vec<String> = (0..20).map(|number| format!("p{number}")).collect();
    let expected: Vec<String> = many.iter().map(|prompt| format!("{prompt}#0")).collect();
    assert_eq!(texts(&ask(json!(many), json!({})).await), expected);
    assert!(script.most.load(std::sync::atomic::Ordering::SeqCst) <= 8, "at most eight side by side");
}

#[tokio::test]
async fn completion_logprobs_are_lists_with_offsets_in_characters() {
    let server = Server::start(saying("é he")).await;
    let body = json!({"model": "small", "prompt": "x", "logprobs": 1, "max_tokens": 4, "ignore_eos": true});
    let answer = server.post("/v1/completions", body).await.json;
    let expected = json!({
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", " ", "he"],
        "token_logprobs": [-0.5, -0.5, -0.5, -0.5],
        "top_logprobs": [{"bytes:\\xc3": -0.5}, {"bytes:\\xa9": -0.5}, {" ": -0.5}, {"he": -0.5}],
        "text_offset": [0, 0, 1, 2],
    });
    assert_eq!(answer["choices"][0]["logprobs"], expected);
}

#[tokio::test]
async fn special_tokens_have_no_text_when_an_answer_goes_past_its_end() {
    let script = Script::new(vec![model::served("small")], |prompt| Ok(say_tokens(prompt, &[72, END, 105])));
    let server = Server::start(script).await;
    let answer = server.chat(with(hello(), json!({"ignore_eos": true, "logprobs": true}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Hi");
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 3, "but they were sampled");
}
