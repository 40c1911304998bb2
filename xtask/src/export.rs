//! Writes the model as a folder that any Hugging Face program reads.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::check::{Answers, DEMO};
use crate::corpus::Corpus;
use crate::model::Config;
use crate::safetensors::to_f16_file;
use crate::tokenizer::{BOS, CHAT_TEMPLATE, END, Tokenizer};
use crate::train::Trained;

/// Writes weights, tokenizer and configuration.
pub(crate) fn write_model(folder: &Path, config: &Config, tokenizer: &Tokenizer, trained: &Trained) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    write(folder, "model.safetensors", &to_f16_file(&trained.weights)?)?;
    tokenizer.save(&folder.join("tokenizer.json"))?;
    write_json(folder, "config.json", &llama_config(config, tokenizer))?;
    write_json(folder, "tokenizer_config.json", &tokenizer_config(config))?;
    write_json(folder, "generation_config.json", &generation_config(tokenizer))
}

fn llama_config(config: &Config, tokenizer: &Tokenizer) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.end,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "initializer_range": 0.05,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.positions,
        "mlp_bias": false,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.eps,
        "rope_scaling": null,
        "rope_theta": config.theta,
        "tie_word_embeddings": true,
        "torch_dtype": "float16",
        "use_cache": true,
        "vocab_size": config.vocab,
    })
}

fn tokenizer_config(config: &Config) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": true,
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": false,
        "model_max_length": config.positions,
        "chat_template": CHAT_TEMPLATE,
    })
}

fn generation_config(tokenizer: &Tokenizer) -> Value {
    json!({
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.end,
        "do_sample": true,
        "temperature": 0.7,
        "top_p": 0.95,
    })
}

/// Writes how the model was made and what it can do.
pub(crate) fn write_readme(
    folder: &Path,
    config: &Config,
    corpus: &Corpus,
    trained: &Trained,
    answers: &Answers,
) -> Result<()> {
    let size = fs::metadata(folder.join("model.safetensors")).context("asking for the size of the model")?.len();
    let counts = corpus.counts();
    let samples: String = answers
        .samples
        .iter()
        .filter(|(question, _)| DEMO.contains(&question.as_str()))
        .map(|(question, answer)| format!("> **{question}**\n>\n> {answer}\n\n"))
        .collect();
    let text = format!(
        "# The bundled model

A Llama of {parameters} parameters that answers questions about ComputePool and nothing else. It is here so that a
fresh clone can serve a real model over real links in seconds, on a processor, without a download. It is no measure of
what ComputePool can serve.

| | |
|---|---|
| architecture | LlamaForCausalLM, {layers} layers (1, 2, 3 or 6 shards), hidden {hidden}, {heads} heads of {head_dim}, {kv_heads} key heads, feed-forward {ffn}, tied embedding |
| context | {positions} tokens |
| vocabulary | byte-level BPE, {vocab} tokens, every byte covered |
| file | `model.safetensors`, f16, {size} bytes |
| licence | Apache-2.0, like the rest of the repository; weights and corpus were made here, no other model or text was used |

A chat is written `<|bos|><|user|>question<|end|><|assistant|>answer<|end|>`, with an optional
`<|system|>message<|end|>` after the first mark.

## How it was trained

```
cargo xtask train-tiny --steps {steps} --seed {seed}
```

{steps} steps of AdamW in f32 with seed {seed}, {tokens} tokens, {minutes:.1} minutes of wall-clock time on the machine of this run
The last loss was {loss:.4} nats for each token of an answer.
Only answers are learnt, not questions.
The corpus is `xtask/corpus`: {facts} facts about ComputePool, {talk} entries of small talk and lists,
{stories} story entries and {refusals} kinds of refusals, asked by {questions} written questions, with short forms, small letters and
slips of the finger added at random. Another {held_out} questions were kept out of training.

`cargo xtask check-tiny` reads the folder back and asks everything:

| | answered word for word |
|---|---|
| questions of the training, greedy | {taught_right} of {taught_all} ({taught:.1} %) |
| other ways to ask, never seen in training, greedy | {held_right} of {held_all} ({held:.1} %) |
| questions of the training, temperature 0.7 | {sampled:.1} % |

## What it can answer

{samples}It can also count to ten or twenty, name the days and the months, list the parts and the states of the app, and tell ten short
stories.

## What it cannot

It knows nothing else. It declines other subjects, but not always: an unusual question can get the answer to another
one. It does not follow instructions of a system message, does not remember what was said before, cannot calculate,
translate or write programs, and knows only English. Its numbers come from the design and may be out of date: the
documentation is right where they differ.
",
        parameters = config.parameters(),
        layers = config.layers,
        hidden = config.hidden,
        heads = config.heads,
        head_dim = config.head_dim,
        kv_heads = config.kv_heads,
        ffn = config.ffn,
        positions = config.positions,
        vocab = config.vocab,
        steps = trained.steps,
        seed = trained.seed,
        tokens = trained.tokens,
        minutes = trained.time.as_secs_f64() / 60.0,
        loss = trained.loss,
        facts = counts.facts,
        talk = counts.talk,
        stories = counts.stories,
        refusals = counts.refusals,
        questions = counts.questions,
        held_out = counts.held_out,
        taught_right = answers.taught.right,
        taught_all = answers.taught.all,
        taught = 100.0 * answers.taught.part(),
        held_right = answers.held_out.right,
        held_all = answers.held_out.all,
        held = 100.0 * answers.held_out.part(),
        sampled = 100.0 * answers.sampled,
    );
    write(folder, "README.md", text.as_bytes())
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).with_context(|| format!("writing {name}"))?;
    write(folder, name, format!("{text}\n").as_bytes())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
}
