//! A byte-level BPE of 1,024 tokens, trained on the corpus. All 256 bytes are tokens, so any UTF-8 text round-trips.

use anyhow::{Context, Result, anyhow};
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder};

use crate::corpus::{Conversation, Corpus};

/// Tokens in the vocabulary.
const SIZE: usize = 1024;
/// Opens every text.
pub(crate) const BOS: &str = "<|bos|>";
/// Ends every message; the model stops here.
pub(crate) const END: &str = "<|end|>";
/// Marks in the order of their ids: the opening and the end first, then one for each role.
const MARKS: [&str; 5] = [BOS, END, "<|system|>", "<|user|>", "<|assistant|>"];

/// The chat format in Hugging Face's form. `developer` is the newer name of `system`.
pub(crate) const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] in ['system', 'developer'] %}{{ '<|system|>' }}\
{% elif message['role'] in ['user', 'assistant'] %}{{ '<|' + message['role'] + '|>' }}\
{% else %}{{ raise_exception('This model knows the roles system, user and assistant only.') }}{% endif %}\
{{ message['content'] | trim }}{{ '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// The tokenizer and the ids of its marks.
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Id of the token that opens every text.
    pub(crate) bos: u32,
    /// Id of the token that ends every message.
    pub(crate) end: u32,
    system: u32,
    user: u32,
    assistant: u32,
}

/// Tokens, and for each whether the model should learn to write it.
#[derive(Default)]
pub(crate) struct Marked {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// Whether the token is part of an answer.
    pub(crate) learn: Vec<bool>,
}

impl Marked {
    fn push(&mut self, ids: &[u32], learn: bool) {
        self.ids.extend_from_slice(ids);
        self.learn.resize(self.ids.len(), learn);
    }
}

impl Tokenizer {
    /// Learns the vocabulary from the corpus. The same corpus gives the same vocabulary.
    pub(crate) fn train(corpus: &Corpus) -> Result<Self> {
        let marks: Vec<AddedToken> = MARKS.iter().map(|mark| AddedToken::from(*mark, true)).collect();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(SIZE)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(marks)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let bytes = ByteLevel::new(false, true, true);
        let mut learner = TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(None::<tokenizers::NormalizerWrapper>)
            .with_pre_tokenizer(Some(PreTokenizerWrapper::from(bytes)))
            .with_post_processor(None::<PostProcessorWrapper>)
            .with_decoder(Some(DecoderWrapper::from(bytes)))
            .build()
            .map_err(|error| anyhow!("building the tokenizer: {error}"))?;
        learner
            .train(&mut trainer, corpus.text().iter())
            .map_err(|error| anyhow!("training the tokenizer: {error}"))?;
        // As in Llama 3: encoding with special tokens puts the opening in front, the chat template has its own.
        let opening = TemplateProcessing::builder()
            .try_single(format!("{BOS} $A"))
            .map_err(|error| anyhow!("describing the opening token: {error}"))?
            .special_tokens(vec![(BOS, 0)])
            .build()
            .context("building the post-processor")?;
        learner.with_post_processor(Some(PostProcessorWrapper::from(opening)));
        Self::new(learner.into())
    }

    /// Reads `tokenizer.json`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let inner =
            tokenizers::Tokenizer::from_file(path).map_err(|error| anyhow!("reading {}: {error}", path.display()))?;
        Self::new(inner)
    }

    fn new(inner: tokenizers::Tokenizer) -> Result<Self> {
        let id = |mark: &str| inner.token_to_id(mark).with_context(|| format!("the vocabulary lacks {mark}"));
        let [bos, end, system, user, assistant] = MARKS;
        let (bos, end, system) = (id(bos)?, id(end)?, id(system)?);
        let (user, assistant) = (id(user)?, id(assistant)?);
        Ok(Self { inner, bos, end, system, user, assistant })
    }

    /// Writes `tokenizer.json`.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        self.inner.save(path, true).map_err(|error| anyhow!("writing {}: {error}", path.display()))
    }

    /// Tokens in the vocabulary.
    pub(crate) fn size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens of a text, without an opening.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false).map_err(|error| anyhow!("encoding {text:?}: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, without marks.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| anyhow!("decoding tokens: {error}"))
    }

    /// A question in the chat format, ready for the answer.
    pub(crate) fn prompt(&self, question: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.bos, self.user];
        ids.extend(self.encode(question)?);
        ids.extend([self.end, self.assistant]);
        Ok(ids)
    }

    /// An answer with its end.
    pub(crate) fn answer(&self, answer: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(answer)?;
        ids.push(self.end);
        Ok(ids)
    }

    /// A conversation in the chat format; only the answers are to be learnt.
    pub(crate) fn conversation(&self, conversation: &Conversation) -> Result<Marked> {
        let mut marked = Marked::default();
        marked.push(&[self.bos], false);
        if let Some(system) = &conversation.system {
            marked.push(&[self.system], false);
            marked.push(&self.answer(system)?, false);
        }
        for (question, answer) in &conversation.turns {
            marked.push(&[self.user], false);
            marked.push(&self.answer(question)?, false);
            marked.push(&[self.assistant], false);
            marked.push(&self.answer(answer)?, true);
        }
        Ok(marked)
    }

    /// A text on its own, all of it to be learnt.
    pub(crate) fn passage(&self, text: &str) -> Result<Marked> {
        let mut marked = Marked::default();
        marked.push(&[self.bos], false);
        marked.push(&self.answer(text)?, true);
        Ok(marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;

    /// Trained once for all tests.
    fn tokenizer() -> &'static (Corpus, Tokenizer) {
        static SHARED: OnceLock<(Corpus, Tokenizer)> = OnceLock::new();
        SHARED.get_or_init(|| {
            let corpus = Corpus::bundled().unwrap();
            let tokenizer = Tokenizer::train(&corpus).unwrap();
            (corpus, tokenizer)
        })
    }

    #[test]
    fn any_text_round_trips() {
        let (corpus, tokenizer) = tokenizer();
        assert_eq!(tokenizer.size(), SIZE);
        let strange = ["", " ", "\n\n\t", "naïve café", "日本語", "🙂🚀", "\u{0}\u{7f}", "a  b   c ", "<|not a mark|>"];
        for text in strange {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        }
        for entry in &corpus.entries {
            let ids = tokenizer.encode(&entry.answer).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), entry.answer);
        }
    }

    #[test]
    fn the_vocabulary_is_the_same_each_time_and_pays() {
        let (corpus, first) = tokenizer();
        let second = Tokenizer::train(corpus).unwrap();
        let text: String = corpus.entries.iter().map(|entry| entry.answer.as_str()).collect();
        let ids = first.encode(&text).unwrap();
        assert_eq!(ids, second.encode(&text).unwrap(), "training must not depend on the order of a hash map");
        assert!(text.len() > 3 * ids.len(), "fewer than three letters a token: {} / {}", text.len(), ids.len());
    }

    #[test]
    fn only_answers_are_learnt() {
        let (_, tokenizer) = tokenizer();
        let conversation =
            Conversation { system: Some("Be brief.".into()), turns: vec![("Hi".into(), "Hello.".into())] };
        let marked = tokenizer.conversation(&conversation).unwrap();
        assert_eq!(marked.ids.len(), marked.learn.len());
        let learnt = marked.ids.iter().zip(&marked.learn).filter(|(_, learn)| **learn).map(|(id, _)| *id);
        assert_eq!(learnt.collect::<Vec<_>>(), tokenizer.answer("Hello.").unwrap());
    }

    #[test]
    fn a_mark_in_the_text_is_one_token() {
        let (_, tokenizer) = tokenizer();
        assert_eq!(tokenizer.encode(END).unwrap(), [tokenizer.end]);
    }
}
