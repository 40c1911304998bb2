//! What does the written model know? It is read back from its folder and asked everything.
//!
//! Greedy decoding writes an answer word for word exactly when each token of the answer is the most likely one after
//! the tokens before it, so one pass over question and answer decides, and no decoding is needed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use rand::Rng;

use crate::corpus::{self, Corpus, Kind};
use crate::model::{Config, Llama, log_chances};
use crate::tokenizer::Tokenizer;

/// Questions that people see first.
pub(crate) const DEMO: [&str; 6] = [
    "What is ComputePool?",
    "How does ComputePool work?",
    "What is a shard?",
    "What is a coalition?",
    "Who pays the operators?",
    "Tell me a story about two computers.",
];
/// More questions to look at, most of them never seen in training.
const LOOK: [&str; 10] = [
    "hi there",
    "whats a coalition",
    "Does my computer have to download the full model?",
    "Is my prompt private?",
    "what happens if one of the computers dies",
    "How do I get my money?",
    "Count to ten.",
    "What is a giraffe?",
    "Who won the football game?",
    "Write a Python program that prints hello.",
];
/// The temperature at which people usually chat.
const TEMPERATURE: f64 = 0.7;
const LONGEST_ANSWER: usize = 250;
/// Wrong answers that are printed.
const SHOWN: usize = 40;
/// Parts of the taught and the held-out questions that must be answered word for word.
const ENOUGH: (f64, f64) = (0.97, 0.7);

/// Right answers out of all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Score {
    /// Answers equal to the written ones.
    pub(crate) right: usize,
    /// All questions.
    pub(crate) all: usize,
}

impl Score {
    /// The part that is right.
    pub(crate) fn part(self) -> f64 {
        self.right as f64 / self.all.max(1) as f64
    }

    fn wrong(self) -> usize {
        self.all - self.right
    }

    fn count(&mut self, right: bool) {
        self.all += 1;
        self.right += usize::from(right);
    }
}

/// How well the model answers.
pub(crate) struct Answers {
    /// Greedy, questions of the training.
    pub(crate) taught: Score,
    /// Greedy, other ways to ask.
    pub(crate) held_out: Score,
    /// Mean chance that an answer sampled at [`TEMPERATURE`] is word for word the written one.
    pub(crate) sampled: f64,
    /// Questions with the greedy answers.
    pub(crate) samples: Vec<(String, String)>,
}

impl Answers {
    /// Fails when too much is wrong.
    pub(crate) fn enough(&self) -> Result<()> {
        let (taught, held_out) = ENOUGH;
        ensure!(self.taught.part() >= taught, "only {:?} of the taught questions are right", self.taught);
        ensure!(self.held_out.part() >= held_out, "only {:?} of the other questions are right", self.held_out);
        Ok(())
    }
}

/// Asks the model in the folder everything, and prints the answers.
pub(crate) fn check(folder: &Path, corpus: &Corpus) -> Result<Answers> {
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json"))?;
    let config = Config::tiny(tokenizer.size());
    let llama = load(folder, &config)?;
    let mut rng = corpus::rng(99);

    let (mut taught, mut held_out, mut sampled, mut wrong) = (Score::default(), Score::default(), vec![], vec![]);
    for entry in &corpus.entries {
        let few = if entry.kind == Kind::OffTopic { entry.questions.len() } else { 4 };
        for question in entry.questions.iter().take(few) {
            let chances = recall(&llama, &tokenizer, &corpus.fill(question, &mut rng), &entry.answer)?;
            taught.count(chances.greedy);
            sampled.push(chances.sampled);
            if !chances.greedy {
                wrong.push(question);
            }
        }
        for question in &entry.held_out {
            let question = corpus.fill(question, &mut rng);
            let right = recall(&llama, &tokenizer, &question, &entry.answer)?.greedy;
            held_out.count(right);
            if !right && held_out.wrong() <= SHOWN {
                println!("held out, other answer: {question}\n    {}", greedy(&llama, &tokenizer, &question)?);
            }
        }
    }
    for question in wrong.iter().take(SHOWN) {
        println!("taught, other answer: {question}\n    {}", greedy(&llama, &tokenizer, question)?);
    }

    let mut samples = vec![];
    for question in DEMO.iter().chain(&LOOK) {
        let answer = greedy(&llama, &tokenizer, question)?;
        println!("\n? {question}\n= {answer}");
        for _ in 0..2 {
            let answer = decode(&llama, &tokenizer, question, |logits| draw(logits, &mut rng))?;
            println!("~ {answer}");
        }
        samples.push((question.to_string(), answer));
    }
    let sampled = sampled.iter().sum::<f64>() / sampled.len().max(1) as f64;
    println!("\ngreedy, taught questions: {} of {} ({:.1} %)", taught.right, taught.all, 100.0 * taught.part());
    println!("greedy, held-out questions: {} of {} ({:.1} %)", held_out.right, held_out.all, 100.0 * held_out.part());
    println!("word for word at temperature {TEMPERATURE}: {:.1} %", 100.0 * sampled);
    Ok(Answers { taught, held_out, sampled, samples })
}

fn load(folder: &Path, config: &Config) -> Result<Llama> {
    let path = folder.join("model.safetensors");
    let tensors =
        candle_core::safetensors::load(&path, &Device::Cpu).with_context(|| format!("reading {}", path.display()))?;
    Llama::new(config, |name| {
        let tensor = tensors.get(name).with_context(|| format!("{} lacks {name}", path.display()))?;
        Ok(tensor.to_dtype(DType::F32)?)
    })
}

struct Recall {
    greedy: bool,
    sampled: f64,
}

/// Whether greedy decoding gives the answer, and the chance that sampling does.
fn recall(llama: &Llama, tokenizer: &Tokenizer, question: &str, answer: &str) -> Result<Recall> {
    let (prompt, answer) = (tokenizer.prompt(question)?, tokenizer.answer(answer)?);
    let ids = [&prompt[..], &answer[..answer.len() - 1]].concat();
    let hidden = llama.hidden(&ids, 1)?.narrow(0, prompt.len() - 1, answer.len())?;
    let rows = log_chances(&llama.logits(&hidden)?, TEMPERATURE)?;
    let greedy = rows.iter().zip(&answer).all(|(row, token)| largest(row) == *token);
    let chance: f64 = rows.iter().zip(&answer).map(|(row, token)| f64::from(row[*token as usize])).sum();
    Ok(Recall { greedy, sampled: chance.exp() })
}

fn greedy(llama: &Llama, tokenizer: &Tokenizer, question: &str) -> Result<String> {
    decode(llama, tokenizer, question, largest)
}

fn decode(
    llama: &Llama,
    tokenizer: &Tokenizer,
    question: &str,
    mut choose: impl FnMut(&[f32]) -> u32,
) -> Result<String> {
    let mut ids = tokenizer.prompt(question)?;
    let begin = ids.len();
    while ids.len() < begin + LONGEST_ANSWER {
        let hidden = llama.hidden(&ids, 1)?.narrow(0, ids.len() - 1, 1)?;
        let rows = log_chances(&llama.logits(&hidden)?, TEMPERATURE)?;
        let token = rows.first().map(|row| choose(row)).context("no row of logits")?;
        if token == tokenizer.end {
            break;
        }
        ids.push(token);
    }
    tokenizer.decode(&ids[begin..])
}

fn largest(row: &[f32]) -> u32 {
    let largest = row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    largest.map_or(0, |(token, _)| token as u32)
}

/// A token by its chance.
fn draw(row: &[f32], rng: &mut impl Rng) -> u32 {
    let mut left: f32 = rng.random();
    for (token, chance) in row.iter().enumerate() {
        left -= chance.exp();
        if left <= 0.0 {
            return token as u32;
        }
    }
    largest(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_demo_question_is_taught() {
        let corpus = Corpus::bundled().unwrap();
        for question in DEMO {
            let taught = corpus.entries.iter().any(|entry| entry.questions.iter().any(|known| known == question));
            assert!(taught, "not in the corpus: {question}");
        }
    }

    #[test]
    fn drawing_follows_the_chances() {
        let row = [0.2f32.ln(), 0.8f32.ln()];
        let mut rng = corpus::rng(5);
        let ones = (0..1000).filter(|_| draw(&row, &mut rng) == 1).count();
        assert!((750..850).contains(&ones), "{ones}");
        assert_eq!(largest(&row), 1);
    }
}
