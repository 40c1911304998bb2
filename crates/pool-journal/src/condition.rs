//! What a `Condition` node asks: two operands and a comparison, `{{@close:Close.deferred}} === true`.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::template::{Reference, TemplateError, whole_reference};

/// A comparison of what earlier nodes gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    left: Operand,
    comparison: Comparison,
    right: Operand,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Reference(Reference),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Longer spellings first, so that `<=` is not read as `<`.
const COMPARISONS: [(&str, Comparison); 6] = [
    ("===", Comparison::Equal),
    ("!==", Comparison::NotEqual),
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

/// Why a condition cannot be read or decided.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConditionError {
    /// Not of the form `operand comparison operand`.
    #[error(
        "the condition {0:?} is not of the form: reference or literal, ===, !==, <, <=, > or >=, reference or literal"
    )]
    Syntax(String),
    /// An operand refers to nothing.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Only integers, as numbers or as text, have an order.
    #[error("{0} is no integer and has no order")]
    NoOrder(Value),
}

impl Condition {
    pub(crate) fn parse(text: &str) -> Result<Condition, ConditionError> {
        let syntax = || ConditionError::Syntax(text.to_owned());
        let (left, rest) = Operand::parse(text).ok_or_else(syntax)??;
        let rest = rest.trim_start();
        let (spelling, comparison) =
            *COMPARISONS.iter().find(|(spelling, _)| rest.starts_with(spelling)).ok_or_else(syntax)?;
        let (right, rest) = Operand::parse(&rest[spelling.len()..]).ok_or_else(syntax)??;
        if !rest.trim().is_empty() {
            return Err(syntax());
        }
        Ok(Condition { left, comparison, right })
    }

    pub(crate) fn references(&self) -> impl Iterator<Item = &Reference> {
        [&self.left, &self.right].into_iter().filter_map(|operand| match operand {
            Operand::Reference(reference) => Some(reference),
            Operand::Literal(_) => None,
        })
    }

    /// Decides it. Equality is strict: the text `"5"` is not the number 5. Order is that of integers.
    pub(crate) fn holds(&self, outputs: &Map<String, Value>) -> Result<bool, ConditionError> {
        let (left, right) = (self.left.value(outputs)?, self.right.value(outputs)?);
        let ordered = || -> Result<_, ConditionError> { Ok(integer(left)?.cmp(&integer(right)?)) };
        Ok(match self.comparison {
            Comparison::Equal => left == right,
            Comparison::NotEqual => left != right,
            Comparison::Less => ordered()?.is_lt(),
            Comparison::LessOrEqual => ordered()?.is_le(),
            Comparison::Greater => ordered()?.is_gt(),
            Comparison::GreaterOrEqual => ordered()?.is_ge(),
        })
    }
}

fn integer(value: &Value) -> Result<i128, ConditionError> {
    let read = match value {
        Value::Number(number) => number.to_string().parse().ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    read.ok_or_else(|| ConditionError::NoOrder(value.clone()))
}

impl Operand {
    /// Reads an operand off the front; gives what is left.
    fn parse(text: &str) -> Option<Result<(Operand, &str), TemplateError>> {
        let text = text.trim_start();
        if text.starts_with("{{") {
            let end = text.find("}}")? + 2;
            return match whole_reference(&text[..end]) {
                Ok(reference) => Some(Ok((Operand::Reference(reference?), &text[end..]))),
                Err(error) => Some(Err(error)),
            };
        }
        if let Some(inside) = text.strip_prefix('\'') {
            let (literal, rest) = inside.split_once('\'')?;
            return Some(Ok((Operand::Literal(Value::from(literal)), rest)));
        }
        let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let literal = match word {
            "true" => Value::from(true),
            "false" => Value::from(false),
            "null" => Value::Null,
            number => Value::from(number.parse::<i64>().ok()?),
        };
        Some(Ok((Operand::Literal(literal), rest)))
    }

    fn value<'v>(&'v self, outputs: &'v Map<String, Value>) -> Result<&'v Value, TemplateError> {
        match self {
            Operand::Reference(reference) => reference.look_up(outputs),
            Operand::Literal(value) => Ok(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn comparisons_decide_as_they_read() {
        let outputs = json!({"close": {"deferred": true, "refund": "120", "kind": "late", "count": 3, "none": null}});
        let outputs = outputs.as_object().unwrap();
        for (text, holds) in [
            ("{{close.deferred}} === true", true),
            ("{{@close:Close the vault.deferred}} !== true", false),
            ("{{close.kind}} === 'late'", true),
            ("{{close.kind}}==='on time'", false),
            ("{{close.count}} === '3'", false),
            ("{{close.none}} === null", true),
            ("{{close.refund}} > 0", true),
            ("{{close.refund}} <= 119", false),
            ("-4 < {{close.count}}", true),
            ("{{close.count}} >= 3", true),
        ] {
            assert_eq!(Condition::parse(text).unwrap().holds(outputs), Ok(holds), "{text}");
        }
        let no_order = Condition::parse("{{close.kind}} < 3").unwrap();
        assert_eq!(no_order.holds(outputs), Err(ConditionError::NoOrder(json!("late"))));
    }

    #[test]
    fn anything_else_is_refused() {
        for broken in
            ["", "true", "{{a.b}}", "{{a.b}} == true", "{{a.b}} === ", "{{a.b}} === 'x", "1 === 1 === 1", "a === b"]
        {
            assert!(Condition::parse(broken).is_err(), "{broken:?} is no condition");
        }
    }
}
