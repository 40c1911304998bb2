//! One way to write a JSON value, so that equal values have equal bytes and equal hashes.
//!
//! Like RFC 8785, with two differences: object keys are ordered by their UTF-8 bytes, and a number that is no integer
//! of 64 bits is refused instead of rounded. No white space; strings escape `"`, `\` and control characters only.

use serde_json::Value;
use thiserror::Error;

/// Why a value has no canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CanonicalError {
    /// A fraction, or an integer beyond 64 bits.
    #[error("the number {0} is no integer of 64 bits; write it as text")]
    Number(String),
    /// Objects and lists inside each other, too many.
    #[error("the value is nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// Longer than the caller allows.
    #[error("the value is {bytes} bytes long; at most {most} are kept")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        most: usize,
    },
}

const MAX_DEPTH: usize = 32;

/// The canonical form of a value.
pub(crate) fn canonical(value: &Value) -> Result<String, CanonicalError> {
    let mut text = String::new();
    write(value, &mut text, MAX_DEPTH)?;
    Ok(text)
}

/// The canonical form of a value, if it is at most `most` bytes long.
pub(crate) fn canonical_within(value: &Value, most: usize) -> Result<String, CanonicalError> {
    let text = canonical(value)?;
    if text.len() > most { Err(CanonicalError::TooLong { bytes: text.len(), most }) } else { Ok(text) }
}

fn write(value: &Value, to: &mut String, depth: usize) -> Result<(), CanonicalError> {
    match value {
        Value::Number(number) if number.as_i64().is_none() && number.as_u64().is_none() => {
            return Err(CanonicalError::Number(number.to_string()));
        }
        Value::Array(_) | Value::Object(_) if depth == 0 => return Err(CanonicalError::TooDeep),
        Value::Null | Value::Bool(_) | Value::Number(_) => to.push_str(&value.to_string()),
        Value::String(text) => write_text(text, to),
        Value::Array(items) => {
            to.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    to.push(',');
                }
                write(item, to, depth - 1)?;
            }
            to.push(']');
        }
        Value::Object(fields) => {
            // serde_json keeps the order of insertion if any crate of the build asks it to.
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort_unstable();
            to.push('{');
            for (place, key) in keys.into_iter().enumerate() {
                if place > 0 {
                    to.push(',');
                }
                write_text(key, to);
                to.push(':');
                write(&fields[key], to, depth - 1)?;
            }
            to.push('}');
        }
    }
    Ok(())
}

fn write_text(text: &str, to: &mut String) {
    to.push_str(&Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((".{0,6}", inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reading_the_form_gives_the_value_and_writing_it_the_form(value in any_value()) {
            let text = canonical(&value).unwrap();
            let read: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&read, &value);
            prop_assert_eq!(canonical(&read).unwrap(), text);
        }
    }

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let one: Value = serde_json::from_str(r#"{ "b": [1, 2], "a": {"y": null, "x": "é\n"} }"#).unwrap();
        assert_eq!(canonical(&one).unwrap(), r#"{"a":{"x":"é\n","y":null},"b":[1,2]}"#);
    }

    #[test]
    fn fractions_depth_and_length_are_refused() {
        assert_eq!(canonical(&json!({"price": 0.1})), Err(CanonicalError::Number("0.1".to_owned())));
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(canonical(&deep), Err(CanonicalError::TooDeep));
        assert_eq!(canonical_within(&json!("12345"), 6), Err(CanonicalError::TooLong { bytes: 7, most: 6 }));
    }
}
