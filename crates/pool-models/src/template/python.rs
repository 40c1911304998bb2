//! How Python prints values: `True`, `None`, `1e-05`, `{'a': [1]}`.

use minijinja::{Error, Output, State, Value, value::ValueKind};

const DEEPEST: usize = 128;

/// Text being written at the cost of the template's fuel. A value can be far larger written out than in memory, where
/// its parts are shared, so the cost is paid as it is written.
pub(super) struct Writer<'a> {
    pub(super) text: String,
    state: &'a State<'a, 'a>,
    charged: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(state: &'a State<'_, '_>) -> Self {
        Self { text: String::new(), state, charged: 0 }
    }

    /// Pays for one more value and for the text written since the last call, at eight bytes a unit.
    pub(super) fn charge(&mut self) -> Result<(), Error> {
        let new = self.text.len() - self.charged;
        self.charged = self.text.len();
        self.state.consume_fuel(1 + new as u64 / 8)
    }

    pub(super) fn finish(mut self) -> Result<String, Error> {
        self.charge()?;
        Ok(self.text)
    }
}

/// What `{{ value }}` writes.
pub(super) fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&text(state, value)?),
    };
    written.map_err(Error::from)
}

/// Python's `str(value)`.
pub(super) fn text(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Undefined => Ok(String::new()),
        _ => {
            let mut out = Writer::new(state);
            repr(&mut out, value, 0)?;
            out.finish()
        }
    }
}

/// Python's `repr(value)`.
fn repr(out: &mut Writer<'_>, value: &Value, depth: usize) -> Result<(), Error> {
    out.charge()?;
    if depth > DEEPEST {
        out.text.push_str("...");
        return Ok(());
    }
    match value.kind() {
        ValueKind::None => out.text.push_str("None"),
        ValueKind::Undefined => out.text.push_str("Undefined"),
        ValueKind::Bool => out.text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.text.push_str(&number(value)),
        ValueKind::String => quoted(&mut out.text, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.text.push(open);
            for (index, item) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.text.push_str(", ");
                }
                repr(out, &item, depth + 1)?;
            }
            out.text.push(close);
        }
        ValueKind::Map => {
            out.text.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.text.push_str(", ");
                }
                repr(out, &key, depth + 1)?;
                out.text.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.text.push('}');
        }
        // Functions and the like; templates have no reason to print them.
        kind => out.text.push_str(&format!("<{kind}>")),
    }
    Ok(())
}

fn quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Python's form of a number: the shortest that reads back, with an exponent of two digits outside of 1e-4..1e16.
pub(super) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(number) = f64::try_from(value.clone()) else { return value.to_string() };
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}
