//! What the bundled model is taught: questions and answers in `corpus/*.txt`, and how they become conversations.
//!
//! The files are lists of entries, each opened by a line with `@` and ended by the next one:
//!
//! ```text
//! @define a shard          adds the usual questions after a thing: "What is a shard?", "Define shard", ...
//! @define-plural units     the same for a plural
//! @story a shard           adds the usual requests for a story
//! @fact | @chat | @chat off | @chat story    only the questions written below
//! ? a question             one way to ask it
//! ~ a question             one more way, kept out of training, to see whether the model generalises
//! = an answer              may go on over several lines
//! @list thing              words for the slot `{thing}` in questions, divided by `|`
//! # a comment
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FACTS: &str = include_str!("../corpus/facts.txt");
const TALK: &str = include_str!("../corpus/talk.txt");
const SYSTEM: &str = include_str!("../corpus/system.txt");

/// Ways to ask what a thing is. `{a}` is the thing with its article, `{}` without.
const DEFINE: [&str; 17] = [
    "What is {a}?",
    "What is {a}?",
    "What is {a} in ComputePool?",
    "What exactly is {a}?",
    "What is {}?",
    "What is meant by {}?",
    "What does {} mean?",
    "Tell me what {a} is.",
    "Tell me about {a}.",
    "Can you tell me what {a} is?",
    "Can you explain {a}?",
    "Explain {a}.",
    "Explain what {a} is.",
    "Explain {} to me.",
    "Define {}.",
    "I do not know what {a} is.",
    "{}",
];
/// Ways to ask what a thing is that are kept out of training.
const DEFINE_HELD_OUT: [&str; 2] = ["Help me understand what {a} is.", "Could you explain {a} to me?"];
/// Ways to ask what things are.
const DEFINE_PLURAL: [&str; 12] = [
    "What are {}?",
    "What are {}?",
    "What are {} in ComputePool?",
    "What exactly are {}?",
    "What does {} mean?",
    "Tell me what {} are.",
    "Tell me about {}.",
    "Can you explain {}?",
    "Explain {}.",
    "Define {}.",
    "I do not know what {} are.",
    "{}",
];
/// Ways to ask for a story.
const STORY: [&str; 9] = [
    "Tell me a story about {a}.",
    "Tell me a story about {a}.",
    "Tell a story about {a}",
    "Write a story about {a}.",
    "Can you tell me a story about {a}?",
    "I would like to hear a story about {a}.",
    "Make up a short story about {a}.",
    "A story about {a}, please",
    "Do you know a story about {a}?",
];
/// Ways to ask for a story that are kept out of training.
const STORY_HELD_OUT: [&str; 1] = ["Please write a short story about {a}."];

/// What people put before a question.
const BEFORE: [&str; 14] = [
    "Hi. ",
    "Hello, ",
    "Hey, ",
    "Hi, ",
    "Please tell me: ",
    "So, ",
    "Ok, ",
    "And ",
    "And ",
    "One question: ",
    "Can you tell me: ",
    "I wonder: ",
    "Thanks. ",
    "But ",
];
/// What people put after a question.
const AFTER: [&str; 4] = [" please", " Thanks.", " Thank you.", " Please explain."];
/// Long and short forms of the same words.
const SHORT: [(&str, &str); 8] = [
    ("What is ", "What's "),
    ("What is ", "whats "),
    ("Who is ", "Who's "),
    ("do not ", "don't "),
    ("does not ", "doesn't "),
    ("I am ", "I'm "),
    ("graphics card", "GPU"),
    ("computer", "PC"),
];

/// The source of every choice in training.
pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// What an entry is about, which decides how often it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Something to know about ComputePool.
    Fact,
    /// Greetings, lists, counting, and the model itself.
    Talk,
    /// A short story.
    Story,
    /// A polite refusal.
    OffTopic,
}

/// One answer and the questions that lead to it. Questions may hold slots such as `{thing}`.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What it is about.
    pub(crate) kind: Kind,
    /// The questions seen in training; the first is the plain one.
    pub(crate) questions: Vec<String>,
    /// The questions never seen in training.
    pub(crate) held_out: Vec<String>,
    /// The answer.
    pub(crate) answer: String,
}

/// Everything the model is taught.
pub(crate) struct Corpus {
    /// All entries, in the order of the files.
    pub(crate) entries: Vec<Entry>,
    lists: BTreeMap<String, Vec<String>>,
    systems: Vec<String>,
}

/// A chat as it is shown to the model.
pub(crate) struct Conversation {
    /// The system message, when there is one.
    pub(crate) system: Option<String>,
    /// Questions and answers in turn.
    pub(crate) turns: Vec<(String, String)>,
}

impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(system) = &self.system {
            writeln!(f, "system: {system}")?;
        }
        for (question, answer) in &self.turns {
            writeln!(f, "user: {question}\nassistant: {answer}")?;
        }
        Ok(())
    }
}

impl Corpus {
    /// The corpus of this repository.
    pub(crate) fn bundled() -> Result<Self> {
        let systems = SYSTEM.lines().map(str::to_owned).collect();
        let mut corpus = Self { entries: vec![], lists: BTreeMap::new(), systems };
        corpus.read(FACTS).context("reading corpus/facts.txt")?;
        corpus.read(TALK).context("reading corpus/talk.txt")?;
        Ok(corpus)
    }

    fn read(&mut self, text: &str) -> Result<()> {
        let mut blocks: Vec<(usize, Vec<&str>)> = vec![];
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with('@') {
                blocks.push((number + 1, vec![line]));
            } else {
                let (_, block) = blocks.last_mut().context("the first line must begin with @")?;
                block.push(line);
            }
        }
        for (number, block) in blocks {
            self.read_block(&block).with_context(|| format!("in the entry of line {number}"))?;
        }
        Ok(())
    }

    fn read_block(&mut self, block: &[&str]) -> Result<()> {
        let (head, lines) = block.split_first().context("an empty entry")?;
        let (word, topic) = head.split_once(' ').unwrap_or((head, ""));
        if word == "@list" {
            let words = lines.join(" ");
            let words = words.strip_prefix("= ").context("a list begins with =")?;
            self.lists.insert(topic.to_owned(), words.split('|').map(|word| word.trim().to_owned()).collect());
            return Ok(());
        }
        let (kind, templates, held_out): (Kind, &[&str], &[&str]) = match (word, topic) {
            ("@define", _) => (Kind::Fact, &DEFINE, &DEFINE_HELD_OUT),
            ("@define-plural", _) => (Kind::Fact, &DEFINE_PLURAL, &[]),
            ("@fact", "") => (Kind::Fact, &[], &[]),
            ("@story", _) => (Kind::Story, &STORY, &STORY_HELD_OUT),
            ("@chat", "") => (Kind::Talk, &[], &[]),
            ("@chat", "off") => (Kind::OffTopic, &[], &[]),
            ("@chat", "story") => (Kind::Story, &[], &[]),
            _ => bail!("unknown kind of entry: {head}"),
        };
        let bare = ["a ", "an ", "the "].iter().find_map(|article| topic.strip_prefix(article)).unwrap_or(topic);
        let fill = |template: &&str| template.replace("{a}", topic).replace("{}", bare);
        let mut entry = Entry {
            kind,
            questions: templates.iter().map(fill).collect(),
            held_out: held_out.iter().map(fill).collect(),
            answer: String::new(),
        };
        for line in lines {
            match line.split_at_checked(2) {
                Some(("? ", question)) => entry.questions.push(question.to_owned()),
                Some(("~ ", question)) => entry.held_out.push(question.to_owned()),
                Some(("= ", answer)) if entry.answer.is_empty() => entry.answer = answer.to_owned(),
                _ if !entry.answer.is_empty() => entry.answer = format!("{}\n{line}", entry.answer),
                _ => bail!("cannot read the line: {line}"),
            }
        }
        ensure!(!entry.questions.is_empty(), "no question");
        ensure!(!entry.answer.is_empty(), "no answer");
        self.entries.push(entry);
        Ok(())
    }

    /// All text, for the training of the tokenizer: the answers more often than the questions.
    pub(crate) fn text(&self) -> Vec<String> {
        let mut text = vec![];
        for entry in &self.entries {
            text.extend(std::iter::repeat_n(entry.answer.clone(), 4));
            text.extend(entry.questions.iter().cloned());
            text.extend(entry.questions.iter().map(|question| question.to_lowercase()));
        }
        text.extend(self.lists.values().flatten().cloned());
        text.extend(self.systems.iter().cloned());
        text
    }

    /// The words of all answers and questions, for the README.
    pub(crate) fn counts(&self) -> Counts {
        let of = |kind| self.entries.iter().filter(|entry| entry.kind == kind).count();
        Counts {
            facts: of(Kind::Fact),
            talk: of(Kind::Talk),
            stories: of(Kind::Story),
            refusals: of(Kind::OffTopic),
            questions: self.entries.iter().flat_map(|entry| &entry.questions).collect::<HashSet<_>>().len(),
            held_out: self.entries.iter().map(|entry| entry.held_out.len()).sum(),
        }
    }

    /// A random conversation of one or a few turns.
    pub(crate) fn conversation(&self, rng: &mut impl Rng) -> Conversation {
        let turns = match rng.random_range(0..20) {
            0..14 => 1,
            14..17 => 2,
            17..19 => 3,
            _ => 5,
        };
        self.conversation_of(rng, turns)
    }

    /// A random conversation of so many turns.
    pub(crate) fn conversation_of(&self, rng: &mut impl Rng, turns: usize) -> Conversation {
        let system = if rng.random_bool(0.15) { self.systems.choose(rng).cloned() } else { None };
        Conversation { system, turns: (0..turns).map(|_| self.turn(rng)).collect() }
    }

    fn turn(&self, rng: &mut impl Rng) -> (String, String) {
        let kind = match rng.random_range(0..100) {
            0..66 => Kind::Fact,
            66..78 => Kind::Talk,
            78..86 => Kind::Story,
            _ => Kind::OffTopic,
        };
        let entries: Vec<&Entry> = self.entries.iter().filter(|entry| entry.kind == kind).collect();
        // Refusals answer an open set of questions, so each of their questions counts for itself.
        let weight = |entry: &&Entry| if kind == Kind::OffTopic { entry.questions.len() as f64 } else { 1.0 };
        match entries.choose_weighted(rng, weight) {
            Ok(entry) => {
                let question = entry.questions.choose(rng).map_or("", String::as_str);
                let question = self.fill(question, rng);
                (vary(&question, rng), entry.answer.clone())
            }
            Err(_) => (String::new(), String::new()),
        }
    }

    /// Puts a word of the list into every slot.
    pub(crate) fn fill(&self, question: &str, rng: &mut impl Rng) -> String {
        let mut question = question.to_owned();
        for (name, words) in &self.lists {
            let slot = format!("{{{name}}}");
            if question.contains(&slot)
                && let Some(word) = words.choose(rng)
            {
                question = question.replace(&slot, word);
            }
        }
        question
    }

    /// A random answer on its own, for plain completions.
    pub(crate) fn passage(&self, rng: &mut impl Rng) -> String {
        let told = |entry: &&Entry| entry.kind != Kind::OffTopic;
        let entries: Vec<&Entry> = self.entries.iter().filter(told).collect();
        entries.choose(rng).map(|entry| entry.answer.clone()).unwrap_or_default()
    }
}

/// How much there is of everything.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Entries about ComputePool.
    pub(crate) facts: usize,
    /// Entries of small talk, lists and counting.
    pub(crate) talk: usize,
    /// Stories.
    pub(crate) stories: usize,
    /// Refusals.
    pub(crate) refusals: usize,
    /// Distinct questions in training, slots counted once.
    pub(crate) questions: usize,
    /// Questions kept out of training.
    pub(crate) held_out: usize,
}

/// The question as another person may type it: short forms, small letters, no question mark, a slip of the finger.
fn vary(question: &str, rng: &mut impl Rng) -> String {
    let mut text = question.to_owned();
    if rng.random_bool(0.2)
        && let Some((long, short)) = SHORT.choose(rng)
    {
        text = text.replace(long, short);
    }
    if rng.random_bool(0.25) {
        text.truncate(text.trim_end_matches(['?', '.']).len());
    }
    if rng.random_bool(0.1)
        && let Some(before) = BEFORE.choose(rng)
    {
        text = format!("{before}{}", lower_first(&text));
    }
    if rng.random_bool(0.05)
        && let Some(after) = AFTER.choose(rng)
    {
        text.push_str(after);
    }
    if rng.random_bool(0.3) {
        text = text.to_lowercase();
    }
    if rng.random_bool(0.06) {
        text = slip(&text, rng);
    }
    text
}

fn lower_first(text: &str) -> String {
    let keep = text.starts_with("I ") || text.chars().nth(1).is_some_and(char::is_uppercase);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if !keep => first.to_lowercase().chain(letters).collect(),
        _ => text.to_owned(),
    }
}

/// Drops, doubles or swaps one letter.
fn slip(text: &str, rng: &mut impl Rng) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    if letters.len() < 8 {
        return text.to_owned();
    }
    let at = rng.random_range(1..letters.len() - 1);
    match rng.random_range(0..3) {
        0 => {
            letters.remove(at);
        }
        1 => letters.insert(at, letters[at]),
        _ => letters.swap(at, at + 1),
    }
    letters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_leads_to_one_answer() {
        let corpus = Corpus::bundled().unwrap();
        let mut answers: BTreeMap<String, &str> = BTreeMap::new();
        for entry in &corpus.entries {
            for question in entry.questions.iter().chain(&entry.held_out) {
                let plain = question.to_lowercase().trim_end_matches(['?', '.']).to_owned();
                let before = answers.insert(plain, &entry.answer);
                assert!(
                    before.is_none_or(|answer| answer == entry.answer),
                    "two answers to {question:?}: {before:?} and {:?}",
                    entry.answer
                );
            }
        }
    }

    #[test]
    fn held_out_questions_are_not_taught() {
        let corpus = Corpus::bundled().unwrap();
        let taught: HashSet<&String> = corpus.entries.iter().flat_map(|entry| &entry.questions).collect();
        for question in corpus.entries.iter().flat_map(|entry| &entry.held_out) {
            assert!(!taught.contains(question), "held out and taught: {question}");
        }
    }

    #[test]
    fn the_corpus_is_as_large_as_promised() {
        let corpus = Corpus::bundled().unwrap();
        let counts = corpus.counts();
        assert!(counts.facts >= 150, "{counts:?}");
        assert!(counts.stories >= 8, "{counts:?}");
        assert!(counts.held_out >= 200, "{counts:?}");
        let facts = corpus.entries.iter().filter(|entry| entry.kind == Kind::Fact);
        for entry in facts {
            assert!(entry.questions.len() >= 3, "too few ways to ask: {:?}", entry.questions);
        }
    }

    #[test]
    fn answers_are_plain_and_short() {
        let corpus = Corpus::bundled().unwrap();
        let mut seen = HashSet::new();
        for entry in &corpus.entries {
            let answer = &entry.answer;
            assert!(answer.is_ascii(), "plain letters only: {answer}");
            assert!(!answer.contains('!'), "no exclamation marks: {answer}");
            assert!(!answer.contains('{'), "no slots in answers: {answer}");
            assert!(answer.len() < 700, "too long for one answer: {answer}");
            if entry.kind != Kind::OffTopic {
                assert!(seen.insert(answer), "the same answer twice: {answer}");
            }
        }
    }

    #[test]
    fn conversations_fill_all_slots_and_repeat_with_the_seed() {
        let corpus = Corpus::bundled().unwrap();
        let make = |seed| {
            let mut rng = rng(seed);
            (0..500).map(|_| corpus.conversation(&mut rng).to_string()).collect::<Vec<_>>()
        };
        let conversations = make(7);
        assert_eq!(conversations, make(7), "the seed decides every choice");
        assert_ne!(conversations, make(8));
        for text in conversations {
            assert!(!text.contains('{'), "an empty slot: {text}");
        }
    }
}
