//! JSON as Python's `json.dumps(ensure_ascii=False)` writes it.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, ValueKind},
};

use super::python::{self, Writer};

/// Deeper values exist only in hostile templates.
const DEEPEST: usize = 128;

pub(super) struct Style {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ascii: bool,
}

impl Style {
    pub(super) fn from_arguments(arguments: &Kwargs) -> Result<Self, Error> {
        let indent = match arguments.get::<Option<Value>>("indent")? {
            Some(indent) if indent.is_none() => None,
            Some(indent) => match indent.as_str() {
                Some(text) => Some(text.chars().take(64).collect()),
                None => Some(" ".repeat(usize::try_from(indent)?.min(64))),
            },
            None => None,
        };
        let (item_separator, key_separator) = match arguments.get::<Option<Value>>("separators")? {
            Some(pair) if !pair.is_none() => {
                let part = |index: usize| -> Result<String, Error> {
                    let part = pair.get_item_by_index(index)?;
                    let text = part.as_str().filter(|text| text.len() <= 64);
                    text.map(str::to_owned)
                        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "separators are two short texts"))
                };
                (part(0)?, part(1)?)
            }
            _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            _ => (", ".to_owned(), ": ".to_owned()),
        };
        let flag = |name: &str| arguments.get::<Option<bool>>(name).map(|flag| flag.unwrap_or(false));
        let style =
            Self { indent, item_separator, key_separator, sort_keys: flag("sort_keys")?, ascii: flag("ensure_ascii")? };
        arguments.assert_all_used()?;
        Ok(style)
    }
}

pub(super) fn dumps(state: &State<'_, '_>, value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = Writer::new(state);
    write_value(&mut out, value, style, 0)?;
    out.finish()
}

fn write_value(out: &mut Writer<'_>, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    let not_json = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("{what} is not JSON serializable"));
    if depth > DEEPEST {
        return Err(not_json("a value nested this deep"));
    }
    out.charge()?;
    match value.kind() {
        ValueKind::None => out.text.push_str("null"),
        ValueKind::Bool => out.text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.text.push_str(&python::number(value)),
        ValueKind::String => write_text(&mut out.text, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            write_items(out, ('[', ']'), items, style, depth, |out, item| write_value(out, &item, style, depth + 1))?;
        }
        ValueKind::Map => {
            let mut keys: Vec<(String, Value)> = Vec::new();
            for key in value.try_iter()? {
                let name = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::None => "null".to_owned(),
                    ValueKind::Bool => key.to_string(),
                    ValueKind::Number => python::number(&key),
                    _ => return Err(not_json("a key of this type")),
                };
                keys.push((name, key));
            }
            if style.sort_keys {
                keys.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            write_items(out, ('{', '}'), keys.into_iter(), style, depth, |out, (name, key)| {
                write_text(&mut out.text, &name, style);
                out.text.push_str(&style.key_separator);
                write_value(out, &value.get_item(&key)?, style, depth + 1)
            })?;
        }
        _ => return Err(not_json("a value of this type")),
    }
    Ok(())
}

fn write_items<T>(
    out: &mut Writer<'_>,
    (open, close): (char, char),
    items: impl Iterator<Item = T>,
    style: &Style,
    depth: usize,
    write: impl Fn(&mut Writer<'_>, T) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut Writer<'_>, depth: usize| {
        if let Some(indent) = &style.indent {
            out.text.push('\n');
            (0..depth).for_each(|_| out.text.push_str(indent));
        }
    };
    out.text.push(open);
    let mut empty = true;
    for item in items {
        if !empty {
            out.text.push_str(&style.item_separator);
        }
        empty = false;
        line(out, depth + 1);
        write(out, item)?;
    }
    if !empty {
        line(out, depth);
    }
    out.text.push(close);
    Ok(())
}

fn write_text(out: &mut String, text: &str, style: &Style) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || (style.ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String does not fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
