//! References to what earlier nodes gave: `{{node.field}}`, or KeeperHub's `{{@node:Label.field}}`.

use serde_json::{Map, Value};
use thiserror::Error;

/// Why a template cannot be read or filled in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// Braces that do not close, or something between them that is no reference.
    #[error("the template {0:?} is not of the form {{{{node.field}}}}")]
    Syntax(String),
    /// The node gave no such field.
    #[error("{0} is not among what the nodes before gave")]
    Missing(String),
    /// A list or an object inside a text.
    #[error("{0} is a list, an object or nothing and cannot stand inside a text")]
    NotText(String),
}

/// A reference to a node's output or to a field in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) node: String,
    /// The node's label as KeeperHub repeats it, if it is there.
    pub(crate) label: Option<String>,
    path: Vec<String>,
}

impl Reference {
    /// Reads what stands between the braces.
    fn parse(text: &str) -> Result<Reference, TemplateError> {
        let syntax = || TemplateError::Syntax(text.to_owned());
        let (head, label) = match text.trim().strip_prefix('@') {
            None => (text.trim(), None),
            Some(named) => {
                let (node, rest) = named.split_once(':').ok_or_else(syntax)?;
                let (label, path) = rest.split_once('.').unwrap_or((rest, ""));
                return Reference::checked(node, Some(label.to_owned()), path).ok_or_else(syntax);
            }
        };
        let (node, path) = head.split_once('.').unwrap_or((head, ""));
        Reference::checked(node, label, path).ok_or_else(syntax)
    }

    fn checked(node: &str, label: Option<String>, path: &str) -> Option<Reference> {
        let is_name = |part: &str| {
            !part.is_empty() && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter))
        };
        let path: Vec<String> = if path.is_empty() { Vec::new() } else { path.split('.').map(str::to_owned).collect() };
        let good = is_name(node) && path.iter().all(|part| is_name(part));
        good.then(|| Reference { node: node.to_owned(), label, path })
    }

    /// What it refers to. Everything inside nothing is nothing: a node that was skipped gave nothing.
    pub(crate) fn look_up<'v>(&self, outputs: &'v Map<String, Value>) -> Result<&'v Value, TemplateError> {
        let missing = || TemplateError::Missing(self.to_string());
        let mut value = outputs.get(&self.node).ok_or_else(missing)?;
        for part in &self.path {
            value = match value {
                Value::Null => return Ok(value),
                Value::Object(fields) => fields.get(part).ok_or_else(missing)?,
                Value::Array(items) => {
                    part.parse().ok().and_then(|place: usize| items.get(place)).ok_or_else(missing)?
                }
                _ => return Err(missing()),
            };
        }
        Ok(value)
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.node)?;
        self.path.iter().try_for_each(|part| write!(f, ".{part}"))
    }
}

/// A piece of a text with templates in it.
enum Piece<'t> {
    Text(&'t str),
    Reference(Reference),
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let inside = &rest[start + 2..];
        let end = inside.find("}}").ok_or_else(|| TemplateError::Syntax(text.to_owned()))?;
        if start > 0 {
            pieces.push(Piece::Text(&rest[..start]));
        }
        pieces.push(Piece::Reference(Reference::parse(&inside[..end])?));
        rest = &inside[end + 2..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

/// The reference that `text` is, if it is one and nothing else.
pub(crate) fn whole_reference(text: &str) -> Result<Option<Reference>, TemplateError> {
    let mut pieces = pieces(text)?;
    match (pieces.len(), pieces.pop()) {
        (1, Some(Piece::Reference(reference))) => Ok(Some(reference)),
        _ => Ok(None),
    }
}

/// Every reference in the texts of `value`.
pub(crate) fn references(value: &Value) -> Result<Vec<Reference>, TemplateError> {
    let mut found = Vec::new();
    let mut left = vec![value];
    while let Some(value) = left.pop() {
        match value {
            Value::String(text) => found.extend(pieces(text)?.into_iter().filter_map(|piece| match piece {
                Piece::Text(_) => None,
                Piece::Reference(reference) => Some(reference),
            })),
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => left.extend(fields.values()),
            _ => {}
        }
    }
    Ok(found)
}

/// `value` with its templates filled in. A text that is one template becomes the value it refers to, of whatever
/// kind; a template inside a longer text becomes text.
pub(crate) fn fill(value: &Value, outputs: &Map<String, Value>) -> Result<Value, TemplateError> {
    Ok(match value {
        Value::String(text) => match whole_reference(text)? {
            Some(reference) => reference.look_up(outputs)?.clone(),
            None => Value::from(fill_text(text, outputs)?),
        },
        Value::Array(items) => Value::Array(items.iter().map(|item| fill(item, outputs)).collect::<Result<_, _>>()?),
        Value::Object(fields) => Value::Object(
            fields.iter().map(|(name, field)| Ok((name.clone(), fill(field, outputs)?))).collect::<Result<_, _>>()?,
        ),
        other => other.clone(),
    })
}

fn fill_text(text: &str, outputs: &Map<String, Value>) -> Result<String, TemplateError> {
    let mut filled = String::new();
    for piece in pieces(text)? {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Reference(reference) => match reference.look_up(outputs)? {
                Value::String(text) => filled.push_str(text),
                scalar @ (Value::Bool(_) | Value::Number(_)) => filled.push_str(&scalar.to_string()),
                _ => return Err(TemplateError::NotText(reference.to_string())),
            },
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outputs() -> Map<String, Value> {
        let outputs = json!({
            "trigger": {"session": "0x07", "rate": 100},
            "open": {"transaction": "0xab", "blocks": [5, 6]},
            "refund": null,
        });
        outputs.as_object().unwrap().clone()
    }

    #[test]
    fn a_step_reads_what_the_steps_before_it_gave() {
        let config = json!({
            "session": "{{trigger.session}}",
            "note": "block {{ open.blocks.1 }} at {{@trigger:Start.rate}}/s",
            "whole": ["{{@open:Open the vault}}", "{{refund.amount}}"],
            "plain": 3,
        });
        assert_eq!(
            fill(&config, &outputs()).unwrap(),
            json!({
                "session": "0x07",
                "note": "block 6 at 100/s",
                "whole": [{"transaction": "0xab", "blocks": [5, 6]}, null],
                "plain": 3,
            })
        );
        assert_eq!(references(&config).unwrap().len(), 5);
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let error = |text: &str| fill(&json!(text), &outputs()).unwrap_err();
        assert_eq!(error("{{open.amount}}"), TemplateError::Missing("open.amount".to_owned()));
        assert_eq!(error("{{close.amount}}"), TemplateError::Missing("close.amount".to_owned()));
        assert_eq!(error("it is {{open.blocks}}"), TemplateError::NotText("open.blocks".to_owned()));
        for broken in ["{{open", "{{}}", "{{a b}}", "{{@open}}", "{{open..x}}", "x {{ {{open}} }}"] {
            assert!(matches!(error(broken), TemplateError::Syntax(_)), "{broken} is no template");
        }
    }
}
