//! Python's methods on text and maps, as minijinja-contrib has them, paid for before they are done: what they make is
//! charged by minijinja only once it exists.

use minijinja::{Error, ErrorKind, State, Value, value::ValueKind};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Bytes one unit of fuel pays for.
const BYTES_PER_FUEL: u64 = 64;

pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (ValueKind::String, Some(text)) = (value.kind(), value.as_str()) {
        state.consume_fuel(1 + cost(text, method, args)? / BYTES_PER_FUEL)?;
    } else if let Some(length) = value.len() {
        state.consume_fuel(1 + length as u64 / 4)?;
    }
    unknown_method_callback(state, value, method, args)
}

/// An upper bound of the bytes a method makes or looks at.
fn cost(text: &str, method: &str, args: &[Value]) -> Result<u64, Error> {
    let length = text.len() as u64;
    let argument = |index: usize| args.get(index).and_then(Value::as_str);
    Ok(match method {
        "replace" => {
            let (Some(old), Some(new)) = (argument(0), argument(1)) else { return Ok(length) };
            let found = if old.is_empty() { length + 1 } else { text.matches(old).count() as u64 };
            length.saturating_add(found.saturating_mul(new.len() as u64))
        }
        "join" => {
            let mut sum = length;
            for part in args.first().map(Value::try_iter).transpose()?.into_iter().flatten() {
                let part = match part.kind() {
                    ValueKind::String => part.as_str().map_or(0, str::len) as u64,
                    ValueKind::Number | ValueKind::Bool | ValueKind::None | ValueKind::Undefined => 40,
                    kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("cannot join a {kind}"))),
                };
                sum = sum.saturating_add(part).saturating_add(length);
            }
            sum
        }
        // A width is the only way to make much of little.
        "format" => {
            let widest = text.split(|c: char| !c.is_ascii_digit()).map(|run| run.parse().unwrap_or(0)).max();
            let widest: u64 = if text.contains(":{") { u64::MAX } else { widest.unwrap_or(0) };
            let given: u64 = args.iter().map(|arg| arg.as_str().map_or(64, str::len) as u64).sum();
            let fields = text.matches('{').count() as u64;
            length.saturating_add(fields.saturating_mul(widest.saturating_add(given)))
        }
        // Each part is a value of its own.
        "split" | "splitlines" => length.saturating_mul(32),
        _ => length.saturating_mul(4),
    })
}
