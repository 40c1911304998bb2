//! JSON as Python's `json.dumps(ensure_ascii=False)` writes it.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

use super::python;

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
                Some(text) => Some(text.to_owned()),
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

pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write_value(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    let not_json = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("{what} is not JSON serializable"));
    if depth > DEEPEST {
        return Err(not_json("a value nested this deep"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&python::number(value)),
        ValueKind::String => write_text(out, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(out, ('[', ']'), items, style, depth, |out, item| write_value(out, item, style, depth + 1))?;
        }
        ValueKind::Map => {
            let mut pairs = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                let name = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::None => "null".to_owned(),
                    ValueKind::Bool => key.to_string(),
                    ValueKind::Number => python::number(&key),
                    _ => return Err(not_json("a key of this type")),
                };
                pairs.push((name, item));
            }
            if style.sort_keys {
                pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            write_items(out, ('{', '}'), pairs, style, depth, |out, (name, item)| {
                write_text(out, name, style);
                out.push_str(&style.key_separator);
                write_value(out, item, style, depth + 1)
            })?;
        }
        _ => return Err(not_json("a value of this type")),
    }
    Ok(())
}

fn write_items<T>(
    out: &mut String,
    (open, close): (char, char),
    items: Vec<T>,
    style: &Style,
    depth: usize,
    write: impl Fn(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        line(out, depth + 1);
        write(out, item)?;
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
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
