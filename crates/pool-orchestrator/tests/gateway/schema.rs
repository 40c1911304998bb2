//! JSON against the schemas of an OpenAPI 3.1 document: the part of JSON Schema that such documents use.

use serde_json::Value;

/// The schema of a response, where the document has one. `path` may be of one model.
pub(crate) fn of_response<'a>(
    document: &'a Value,
    path: &str,
    method: &str,
    status: u16,
    content: &str,
) -> Option<&'a Value> {
    let path = if path.starts_with("/v1/models/") { "/v1/models/{id}" } else { path };
    document["paths"].get(path)?.get(method.to_lowercase())?["responses"].get(status.to_string())?["content"]
        .get(content)?
        .get("schema")
}

/// Panics where a value is not as its schema says.
pub(crate) fn check(document: &Value, schema: &Value, value: &Value) {
    if let Err(problem) = matches(document, schema, value, "$") {
        panic!("{problem}\nin {value}");
    }
}

/// Whether a value is as a schema says; otherwise where it is not. Properties that a schema does not name are refused:
/// our own answers must be documented in full.
pub(crate) fn matches(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = document.pointer(reference.strip_prefix('#').unwrap());
        return matches(document, target.ok_or(format!("{reference} leads nowhere"))?, value, place);
    }
    if let Some(parts) = schema.get("allOf").and_then(Value::as_array) {
        return parts.iter().try_for_each(|part| matches(document, part, value, place));
    }
    for several in ["oneOf", "anyOf"] {
        if let Some(parts) = schema.get(several).and_then(Value::as_array) {
            let tried: Vec<_> = parts.iter().map(|part| matches(document, part, value, place)).collect();
            let fitting = tried.iter().filter(|tried| tried.is_ok()).count();
            if fitting == 0 || (several == "oneOf" && fitting > 1) {
                return Err(format!("{place}: {fitting} of {several} fit: {tried:?}"));
            }
            return Ok(());
        }
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        return Err(format!("{place}: {value} is not one of {allowed:?}"));
    }
    let kinds: Vec<&str> = match schema.get("type") {
        None => return Ok(()),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        Some(kind) => kind.as_str().into_iter().collect(),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
    if !fits {
        return Err(format!("{place}: {value} is {kind}, not {kinds:?}"));
    }
    if let (Some(items), Value::Array(values)) = (schema.get("items"), value) {
        for (index, value) in values.iter().enumerate() {
            matches(document, items, value, &format!("{place}[{index}]"))?;
        }
    }
    let Value::Object(fields) = value else { return Ok(()) };
    for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !fields.contains_key(required.as_str().unwrap()) {
            return Err(format!("{place}: {required} is missing"));
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, value) in fields {
        let place = format!("{place}.{name}");
        match (properties.and_then(|properties| properties.get(name)), schema.get("additionalProperties")) {
            (Some(schema), _) => matches(document, schema, value, &place)?,
            (None, Some(schema)) if schema.is_object() => matches(document, schema, value, &place)?,
            (None, _) if properties.is_none() => {}
            (None, _) => return Err(format!("{place} is not documented")),
        }
    }
    Ok(())
}
