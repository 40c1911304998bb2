//! Takes out of a value what must not be read by others: the log is kept, exported and shown.
//!
//! Actions must not put secrets into their outputs in the first place, nor into failure sentences, which nothing
//! filters. This is the net below them: it goes by the names of fields.

use serde_json::Value;

const REDACTED: &str = "[redacted]";

/// Words that make a field's name one of a secret.
const SECRET_WORDS: [&str; 19] = [
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "credentials",
    "mnemonic",
    "passphrase",
    "password",
    "prompt",
    "prompts",
    "secret",
    "secrets",
    "seed",
    "signature",
    "signatures",
    "token",
    "tokens",
    "voucher",
    "vouchers",
];

/// Pairs of words that do.
const SECRET_PAIRS: [[&str; 2]; 4] = [["api", "key"], ["private", "key"], ["secret", "key"], ["signing", "key"]];

/// The value with the content of secret fields replaced by `"[redacted]"`.
///
/// A field is secret if one of the words of its name is (`session_token`, `bearerToken`, `X-Signature`). Numbers,
/// truth values and nothing stay: `tokens: 25` is a count.
pub fn redacted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(redacted).collect(),
        Value::Object(fields) => {
            let keep = |name: &str, field: &Value| match field {
                Value::Null | Value::Bool(_) | Value::Number(_) => field.clone(),
                _ if is_secret(name) => Value::from(REDACTED),
                _ => redacted(field),
            };
            Value::Object(fields.iter().map(|(name, field)| (name.clone(), keep(name, field))).collect())
        }
        other => other.clone(),
    }
}

fn is_secret(name: &str) -> bool {
    let words = words(name);
    words.iter().any(|word| SECRET_WORDS.contains(&word.as_str()))
        || words.windows(2).any(|pair| SECRET_PAIRS.iter().any(|secret| pair == secret))
        || SECRET_PAIRS.iter().any(|secret| words.iter().any(|word| *word == secret.concat()))
}

/// The words of a name in any of the usual spellings, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut after_lower = false;
    for letter in name.chars() {
        if !letter.is_alphanumeric() || (letter.is_uppercase() && after_lower) {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        if letter.is_alphanumeric() {
            word.extend(letter.to_lowercase());
        }
        after_lower = letter.is_lowercase() || letter.is_numeric();
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_taken_out_wherever_they_stand_and_however_their_names_are_spelled() {
        let value = json!({
            "session": "0x01",
            "bearerToken": "abc",
            "X-Signature": "0xdead",
            "api_key": "k",
            "privatekey": "k",
            "signing-key": {"scalar": "k"},
            "members": [{"operator": "0x02", "signatures": ["0xbeef"]}, {"note": {"PASSWORD": "p"}}],
        });
        let text = redacted(&value).to_string();
        for secret in ["abc", "0xdead", "\"k\"", "0xbeef", "\"p\""] {
            assert!(!text.contains(secret), "{secret} is still in {text}");
        }
        assert!(text.contains("0x01") && text.contains("0x02"), "the rest stays: {text}");
    }

    #[test]
    fn counts_and_harmless_names_stay() {
        let value = json!({"tokens": 25, "signed": true, "key": "session-1", "monkey": "x", "tokenised": "y"});
        assert_eq!(redacted(&value), value);
    }
}
