//! The body of a request: JSON, the types of its fields, and what all endpoints check.
//!
//! Source: transcripts 24; vLLM 0.32.0, `entrypoints/openai/chat_completion/protocol.py` and its like.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::errors;
use crate::sim::errors::Failure;
use crate::sim::request::fields::boolean;
use crate::sim::request::schema::no_integer;

/// The type of a field. Null is right for all but [`Kind::List`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Number,
    Boolean,
    Text,
    List,
}

/// The fields with a type that all generation endpoints know.
const COMMON: [(&str, Kind); 10] = [
    ("model", Kind::Text),
    ("temperature", Kind::Number),
    ("top_p", Kind::Number),
    ("top_k", Kind::Integer),
    ("max_tokens", Kind::Integer),
    ("min_tokens", Kind::Integer),
    ("n", Kind::Integer),
    ("seed", Kind::Integer),
    ("stream", Kind::Boolean),
    ("prompt_logprobs", Kind::Integer),
];

/// Parses a body.
///
/// # Errors
/// When it is not JSON, or no object.
pub(super) fn parse(body: &[u8]) -> Result<Value, Failure> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(other) => {
            let message = "Input should be a valid dictionary or object to extract fields from";
            let entry = errors::entry("model_attributes_type", "body", message, &other);
            Err(errors::validation(&[entry], "body"))
        }
        Err(error) => {
            let at = offset(body, &error);
            Err(errors::not_json(at, why(body, at, &error)))
        }
    }
}

/// How often the body names `kv_transfer_params`, in any spelling of the key. Parsers take the last.
pub(super) fn count_params(body: &[u8]) -> usize {
    struct Count;
    impl<'de> Visitor<'de> for Count {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while let Some(key) = map.next_key::<String>()? {
                count += usize::from(key == "kv_transfer_params");
                map.next_value::<IgnoredAny>()?;
            }
            Ok(count)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    (&mut reader).deserialize_map(Count).unwrap_or(0)
}

/// Checks the types of the common fields and of `fields`, and that `needed` is there.
pub(super) fn check(body: &Value, needed: &[&str], fields: &[(&str, Kind)]) -> Result<(), Failure> {
    if body.get("stream_options").is_some_and(is_set) && !boolean(body.get("stream")) {
        let message = "Stream options can only be defined when `stream=True`.";
        return Err(errors::invalid("stream_options", message));
    }
    let mut entries = Vec::new();
    for name in needed.iter().filter(|name| body.get(**name).is_none()) {
        let place = format!("body.{name}");
        let entry = errors::entry("missing", &place, "Field required", body);
        entries.push((place, entry));
    }
    for (name, kind) in fields.iter().chain(&COMMON) {
        let Some(value) = body.get(*name) else {
            continue;
        };
        if let Some((problem, message)) = problem(*kind, value) {
            let place = format!("body.{name}");
            let entry = errors::entry(problem, &place, message, value);
            entries.push((place, entry));
        }
    }
    match entries.first().map(|(place, _)| place.clone()) {
        None => Ok(()),
        Some(first) => {
            let entries: Vec<String> = entries.into_iter().map(|(_, entry)| entry).collect();
            Err(errors::validation(&entries, &first))
        }
    }
}

/// What Python takes for true.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

/// What pydantic takes for false.
fn is_false(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => {
            let words = ["false", "0", "no", "off", "f", "n"];
            words.contains(&text.to_ascii_lowercase().as_str())
        }
        _ => false,
    }
}

fn problem(kind: Kind, value: &Value) -> Option<(&'static str, &'static str)> {
    match (kind, value) {
        (Kind::List, Value::Array(_)) => None,
        (Kind::List, _) => Some(("list_type", "Input should be a valid list")),
        (_, Value::Null) | (Kind::Text, Value::String(_)) => None,
        (Kind::Text, _) => Some(("string_type", "Input should be a valid string")),
        (Kind::Integer, value) => no_integer(value),
        (Kind::Number, Value::Number(_) | Value::Bool(_)) => None,
        (Kind::Number, Value::String(text)) if text.trim().parse::<f64>().is_ok() => None,
        (Kind::Number, Value::String(_)) => Some((
            "float_parsing",
            "Input should be a valid number, unable to parse string as a number",
        )),
        (Kind::Number, _) => Some(("float_type", "Input should be a valid number")),
        (Kind::Boolean, value) if boolean(Some(value)) || is_false(value) => None,
        (Kind::Boolean, Value::String(_) | Value::Number(_)) => Some((
            "bool_parsing",
            "Input should be a valid boolean, unable to interpret input",
        )),
        (Kind::Boolean, _) => Some(("bool_type", "Input should be a valid boolean")),
    }
}

fn offset(body: &[u8], error: &serde_json::Error) -> usize {
    if error.is_eof() {
        return body.len();
    }
    let lines = body.split_inclusive(|&byte| byte == b'\n');
    let before: usize = lines
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + error.column().saturating_sub(1)).min(body.len())
}

/// The reason that Python's parser gives at this place.
fn why(body: &[u8], at: usize, error: &serde_json::Error) -> &'static str {
    let before = body[..at].trim_ascii_end().last();
    let text = error.to_string();
    match before {
        _ if text.starts_with("trailing characters") => "Extra data",
        Some(b',' | b'{') if is_in_object(&body[..at]) => {
            "Expecting property name enclosed in double quotes"
        }
        _ if text.starts_with("EOF while parsing a string") => "Unterminated string starting at",
        _ if text.starts_with("expected `:`") => "Expecting ':' delimiter",
        _ if text.starts_with("expected `,`") => "Expecting ',' delimiter",
        _ if text.starts_with("EOF while parsing") && before != Some(&b':') => {
            "Expecting ',' delimiter"
        }
        _ => "Expecting value",
    }
}

/// Whether the innermost container that is open at the end is an object.
fn is_in_object(body: &[u8]) -> bool {
    let (mut open, mut in_string, mut escaped) = (Vec::new(), false, false);
    for &byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => open.push(byte),
            b'}' | b']' => _ = open.pop(),
            _ => {}
        }
    }
    open.last() == Some(&b'{')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sim::errors::Family;
    use serde_json::json;

    fn message(failure: &Failure) -> String {
        errors::body(failure, Family::Vllm)["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn a_body_that_ends_early_has_the_place_and_the_reason_of_the_transcript() {
        let failure = parse(b"{\"model\":\"tiny\",").unwrap_err();
        let body = errors::body(&failure, Family::Vllm);
        assert_eq!(body["error"]["param"], "body.16");
        assert!(message(&failure).contains("Expecting property name enclosed in double quotes"));
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        let failure = check(&json!({"temperature":"hot"}), &[], &[]).unwrap_err();
        let body = errors::body(&failure, Family::Vllm);
        assert_eq!(
            (&body["error"]["type"], &body["error"]["param"]),
            (&json!("Bad Request"), &json!("body.temperature"))
        );
    }

    #[test]
    fn stream_options_need_a_stream() {
        let options = json!({"include_usage":true});
        for (body, is_right) in [
            (json!({"stream_options":options,"stream":true}), true),
            (json!({"stream_options":null}), true),
            (json!({"stream_options":options}), false),
            (json!({"stream_options":options,"stream":false}), false),
        ] {
            assert_eq!(check(&body, &[], &[]).is_ok(), is_right, "{body}");
        }
    }

    #[test]
    fn every_spelling_of_the_params_is_counted() {
        let body =
            br#"{"kv_transfer_params":1,"a":{"kv_transfer_params":2},"kv\u005ftransfer_params":3}"#;
        assert_eq!(count_params(body), 2);
        assert_eq!(count_params(b"[1]"), 0);
    }
}
