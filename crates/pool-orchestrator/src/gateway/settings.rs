//! From a request's parameters to what the shards and the text assembly are told.

use std::{collections::BTreeMap, fmt::Display, ops::RangeInclusive};

use pool_types::Sampling;

use super::{
    error::ApiError,
    request::{ChatParameters, CommonParameters, CompletionParameters, Stop, is_empty},
};
use crate::ServedModel;

/// The most answers to one prompt.
const MAX_N: u32 = 8;
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 1024;
/// As many as a prompt can carry on the wire.
const MAX_STOP_TOKENS: usize = 64;

/// How to answer, checked.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// For choice 0; the others differ in `choice` alone.
    pub(super) sampling: Sampling,
    /// Strings that end the answer.
    pub(super) stop: Vec<String>,
    /// Tokens that end the answer.
    pub(super) stop_tokens: Vec<u32>,
    /// Answers per prompt.
    pub(super) n: u32,
    /// The most tokens of an answer, where the client says so.
    pub(super) max_tokens: Option<u32>,
    /// As events.
    pub(super) stream: bool,
    /// Whether a stream tells the tokens used.
    pub(super) include_usage: bool,
    /// Begin with the prompt.
    pub(super) echo: bool,
}

impl Settings {
    /// For a chat completion.
    pub(super) fn for_chat(
        common: CommonParameters,
        chat: &ChatParameters,
        model: &ServedModel,
    ) -> Result<Self, ApiError> {
        refuse_unsupported(chat)?;
        let logprobs = match (chat.logprobs.unwrap_or(false), chat.top_logprobs) {
            (false, Some(1..)) => {
                return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true."));
            }
            (false, _) => None,
            (true, top) => Some(within("top_logprobs", top.unwrap_or(0), 0..=u32::from(Sampling::MAX_LOGPROBS))? as u8),
        };
        let max_tokens = match chat.max_completion_tokens {
            Some(most) => Some(within("max_completion_tokens", most, 1..=u32::MAX)?),
            None => common.max_tokens,
        };
        Self::new(CommonParameters { max_tokens, ..common }, logprobs, false, model)
    }

    /// For a plain completion.
    pub(super) fn for_completion(
        common: CommonParameters,
        completion: &CompletionParameters,
        model: &ServedModel,
    ) -> Result<Self, ApiError> {
        if completion.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::unsupported("suffix", "`suffix` is not supported: the models here only continue."));
        }
        if completion.best_of.is_some_and(|best| best != common.n.unwrap_or(1)) {
            let message = "`best_of` is not supported unless it equals `n`: every answer made is returned.";
            return Err(ApiError::unsupported("best_of", message));
        }
        let echo = completion.echo.unwrap_or(false);
        let logprobs = completion.logprobs.map(|top| within("logprobs", top, 0..=5)).transpose()?;
        if echo && logprobs.is_some() {
            let message = "`echo` together with `logprobs` is not supported: prompts are not scored.";
            return Err(ApiError::unsupported("echo", message));
        }
        Self::new(common, logprobs.map(|top| top as u8), echo, model)
    }

    fn new(common: CommonParameters, logprobs: Option<u8>, echo: bool, model: &ServedModel) -> Result<Self, ApiError> {
        let stream = common.stream.unwrap_or(false);
        if common.stream_options.is_some() && !stream {
            return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream` to be true."));
        }
        let config = &model.model.config;
        let stop_tokens = match common.ignore_eos {
            Some(true) => Vec::new(),
            _ => config.eos_tokens.iter().copied().take(MAX_STOP_TOKENS).collect(),
        };
        let or = |value: Option<f32>, default: f32| value.unwrap_or(default);
        let sampling = Sampling {
            temperature: within("temperature", or(common.temperature, 1.0), 0.0..=2.0)?,
            top_k: common.top_k.unwrap_or(0),
            // OpenAI allows 0, which leaves the one most likely token.
            top_p: within("top_p", or(common.top_p, 1.0), 0.0..=1.0)?.max(f32::MIN_POSITIVE),
            min_p: within("min_p", or(common.min_p, 0.0), 0.0..=1.0)?,
            repetition_penalty: within("repetition_penalty", or(common.repetition_penalty, 1.0), 0.01..=100.0)?,
            presence_penalty: within("presence_penalty", or(common.presence_penalty, 0.0), -2.0..=2.0)?,
            frequency_penalty: within("frequency_penalty", or(common.frequency_penalty, 0.0), -2.0..=2.0)?,
            logit_bias: logit_bias(common.logit_bias.unwrap_or_default(), config.vocab_size)?,
            seed: common.seed.map_or_else(rand::random, |seed| seed as u64),
            choice: 0,
            logprobs,
        };
        sampling.validate().map_err(|error| ApiError::invalid(error.parameter, format!("{error}.")))?;
        Ok(Self {
            sampling,
            stop: stops(common.stop)?,
            stop_tokens,
            n: within("n", common.n.unwrap_or(1), 1..=MAX_N)?,
            max_tokens: common.max_tokens.map(|most| within("max_tokens", most, 1..=u32::MAX)).transpose()?,
            stream,
            include_usage: common.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            echo,
        })
    }
}

fn refuse_unsupported(chat: &ChatParameters) -> Result<(), ApiError> {
    for (name, value) in [("tools", &chat.tools), ("functions", &chat.functions)] {
        if !is_empty(value.as_ref()) {
            return Err(ApiError::unsupported(name, format!("`{name}` are not supported yet.")));
        }
    }
    if let Some(modality) = chat.modalities.iter().flatten().find(|modality| *modality != "text") {
        let message = format!("The modality `{modality}` is not supported: the models here write text.");
        return Err(ApiError::unsupported("modalities", message));
    }
    let Some(format) = &chat.response_format else { return Ok(()) };
    match format.get("type").and_then(|kind| kind.as_str()) {
        Some("text") => Ok(()),
        Some(kind @ ("json_object" | "json_schema")) => Err(ApiError::unsupported(
            "response_format",
            format!("The response format `{kind}` is not supported yet; only `text` is."),
        )),
        Some(kind) => {
            Err(ApiError::invalid("response_format", format!("There is no response format `{kind}`; use `text`.")))
        }
        None => {
            let message = "`response_format` must be an object with a `type`, such as {\"type\": \"text\"}.";
            Err(ApiError::invalid("response_format", message))
        }
    }
}

/// Checks a range; NaN lies in none.
fn within<T: PartialOrd + Display>(param: &str, value: T, range: RangeInclusive<T>) -> Result<T, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (range.start(), range.end());
    Err(ApiError::invalid(param, format!("`{param}` must be between {least} and {most}, got {value}.")))
}

fn stops(stop: Option<Stop>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Several(stops)) => stops,
    };
    let refuse = |message: String| Err(ApiError::invalid("stop", message));
    if stops.len() > MAX_STOPS {
        return refuse(format!("`stop` takes at most {MAX_STOPS} strings, got {}.", stops.len()));
    }
    if stops.iter().any(String::is_empty) {
        return refuse("`stop` must not contain an empty string.".to_owned());
    }
    if stops.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
        return refuse(format!("A string in `stop` is longer than {MAX_STOP_BYTES} bytes."));
    }
    Ok(stops)
}

fn logit_bias(biases: BTreeMap<String, f32>, vocabulary: usize) -> Result<BTreeMap<u32, f32>, ApiError> {
    let most = Sampling::MAX_LOGIT_BIAS;
    if biases.len() > most {
        return Err(ApiError::invalid("logit_bias", format!("`logit_bias` takes at most {most} tokens.")));
    }
    let entry = |(key, bias): (String, f32)| {
        let token: Option<u32> = key.parse().ok().filter(|token| (*token as usize) < vocabulary);
        let token = token.ok_or_else(|| {
            let message = format!("`logit_bias` has the key `{key}`, which is not a token id below {vocabulary}.");
            ApiError::invalid("logit_bias", message)
        })?;
        within("logit_bias", bias, -100.0..=100.0).map(|bias| (token, bias))
    };
    biases.into_iter().map(entry).collect()
}
