//! Prompts equal those of transformers' `apply_chat_template`, character by character.
//! `scripts/fixtures/tokenizers/make_templates.py` makes the fixture.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::{Duration, SystemTime};

use pool_models::{ChatTemplate, RenderOptions, TemplateError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Fixture {
    now: u64,
    templates: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: usize,
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    extra: Map<String, Value>,
    add_generation_prompt: bool,
    now: bool,
    bos_token: Option<String>,
    eos_token: Option<String>,
    expected: Option<String>,
    refused: Option<String>,
}

#[test]
fn prompts_equal_those_of_transformers() {
    let path = format!("{}/tests/fixtures/templates.json", env!("CARGO_MANIFEST_DIR"));
    let fixture: Fixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(fixture.cases.len() >= 25);
    let mut wrong = Vec::new();
    for case in &fixture.cases {
        let template =
            ChatTemplate::new(&fixture.templates[case.template], case.bos_token.clone(), case.eos_token.clone());
        let now = case.now.then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(fixture.now));
        let options = RenderOptions {
            add_generation_prompt: case.add_generation_prompt,
            tools: case.tools.clone(),
            now,
            extra: case.extra.clone(),
        };
        let result = template.and_then(|template| template.render(&case.messages, &options));
        match (&case.expected, &case.refused, result) {
            (Some(expected), _, Ok(found)) if *expected == found => {}
            (_, Some(expected), Err(TemplateError::Refused(found))) if *expected == found => {}
            (_, _, result) => wrong.push(format!(
                "{}\nexpected {:?}\nfound    {result:?}\n",
                case.name,
                case.expected.as_ref().or(case.refused.as_ref())
            )),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), fixture.cases.len(), wrong.join("\n"));
}

#[test]
fn a_model_without_a_template_gets_a_plain_one() {
    let chat = [
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a shard?"}]}),
    ];
    let prompt = ChatTemplate::plain().render(&chat, &RenderOptions::default()).unwrap();
    assert_eq!(prompt, "System: Be brief.\nUser: What is a shard?\nAssistant:");
    let without = RenderOptions { add_generation_prompt: false, ..RenderOptions::default() };
    assert_eq!(ChatTemplate::plain().render(&chat[..1], &without).unwrap(), "System: Be brief.\n");
}

#[test]
fn what_fails_says_so_in_one_sentence() {
    let render = |source: &str| {
        let template = ChatTemplate::new(source, None, None)?;
        template.render(&[json!({"role": "user", "content": "x"})], &RenderOptions::default())
    };
    let message = |source: &str| render(source).unwrap_err().to_string();
    assert_eq!(
        message("{{ raise_exception('Roles must alternate') }}"),
        "the chat template refuses these messages: Roles must alternate"
    );
    let failed = message("{{ messages[0].content.nothing.more }}");
    assert!(failed.starts_with("the chat template failed: "), "{failed}");
    let syntax = message("line\n{% if %}");
    assert!(syntax.starts_with("the chat template is not valid: ") && syntax.ends_with("(line 2)"), "{syntax}");
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}";
    assert_eq!(message(endless), "the chat template does not come to an end within its bounds");
    assert!(message("{% include 'other' %}").starts_with("the chat template failed: "), "there are no other templates");
}
