//! Pydantic's lists of errors: fields of the wrong type, with SGLang's messages.
//!
//! Checks only the fields that tests of a balancer use. Unknown fields are ignored, as by SGLang.
//! Source: the transcripts `err_*`, `d_room_string`; SGLang 0.5.23, `entrypoints/http_server.py`.

use serde_json::Value;

use super::python::{is_python_int, python, python_string, type_name};
use super::report::{Site, report};
use crate::sim::errors::Failure;

/// Roles of a chat message besides `user`. Case-insensitive.
/// Source: SGLang 0.5.23, `entrypoints/openai/protocol.py`, `ChatCompletionMessageGenericParam`.
const GENERIC_ROLES: [&str; 7] = [
    "system",
    "assistant",
    "tool",
    "function",
    "developer",
    "latest_reminder",
    "root",
];

/// The errors so far, each as the `repr` of pydantic's dict.
#[derive(Default)]
pub(super) struct Errors(Vec<String>);

/// The first alternative of a `str | list[str]` in the schema: pydantic reports errors in that order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    Text,
    List,
}

impl Errors {
    pub(super) fn add(&mut self, kind: &str, location: &str, message: &str, input: &str) {
        self.0.push(format!(
            "{{'type': '{kind}', 'loc': ({location}), 'msg': {}, 'input': {input}}}",
            python_string(message)
        ));
    }

    pub(super) fn missing(&mut self, name: &str, body: &Value) {
        self.add(
            "missing",
            &format!("'body', '{name}'"),
            "Field required",
            &python(body),
        );
    }

    /// A field that may be absent, but not null.
    pub(super) fn not_null(&mut self, body: &Value, name: &str) {
        if body.get(name).is_some_and(Value::is_null) {
            let message = "Input should be a valid integer";
            self.add("int_type", &format!("'body', '{name}'"), message, "None");
        }
    }

    /// `int | null`, or with `list` also `list[int | null]`.
    pub(super) fn integer(&mut self, body: &Value, name: &str, list: Option<&str>) {
        let Some(value) = body.get(name).filter(|value| !value.is_null()) else {
            return;
        };
        if list.is_some() && value.is_array() {
            return;
        }
        if let Some((kind, message)) = no_integer(value) {
            match list {
                Some(list) => {
                    let input = python(value);
                    let location = format!("'body', '{name}', '{list}'");
                    self.add(
                        "list_type",
                        &location,
                        "Input should be a valid list",
                        &input,
                    );
                    self.add(kind, &format!("'body', '{name}', 'int'"), message, &input);
                }
                None => self.add(kind, &format!("'body', '{name}'"), message, &python(value)),
            }
        }
    }

    pub(super) fn boolean(&mut self, body: &Value, name: &str) {
        let Some(value) = body.get(name).filter(|value| !value.is_null()) else {
            return;
        };
        let words = [
            "true", "false", "1", "0", "yes", "no", "on", "off", "t", "f", "y", "n",
        ];
        let location = format!("'body', '{name}'");
        match value {
            Value::Bool(_) => {}
            Value::String(text) if words.contains(&text.to_ascii_lowercase().as_str()) => {}
            Value::Number(number) if [Some(0.0), Some(1.0)].contains(&number.as_f64()) => {}
            Value::String(_) | Value::Number(_) => self.add(
                "bool_parsing",
                &location,
                "Input should be a valid boolean, unable to interpret input",
                &python(value),
            ),
            _ => self.add(
                "bool_type",
                &location,
                "Input should be a valid boolean",
                &python(value),
            ),
        }
    }

    pub(super) fn number(&mut self, body: &Value, name: &str) {
        match body.get(name) {
            None | Some(Value::Null | Value::Number(_)) => {}
            Some(Value::String(text)) if text.trim().parse::<f64>().is_ok() => {}
            Some(value) => self.add(
                "float_parsing",
                &format!("'body', '{name}'"),
                "Input should be a valid number, unable to parse string as a number",
                &python(value),
            ),
        }
    }

    /// `str | list[str] | null`.
    pub(super) fn text_or_list(&mut self, body: &Value, name: &str, first: First) {
        let Some(value) = body.get(name).filter(|value| !value.is_null()) else {
            return;
        };
        let (text, list) = (as_text(value, name), as_texts(value, name));
        if text.0.is_empty() || list.0.is_empty() {
            return;
        }
        let (text, list) = (text.0.into_iter(), list.0.into_iter());
        match first {
            First::Text => self.0.extend(text.chain(list)),
            First::List => self.0.extend(list.chain(text)),
        }
    }

    /// `list[int] | list[list[int]] | str | list[str]`, if the field is present.
    pub(super) fn prompt(&mut self, body: &Value, name: &str) {
        let Some(value) = body.get(name) else { return };
        let alternatives = [
            as_integers(value, name),
            as_rows(value, name),
            as_text(value, name),
            as_texts(value, name),
        ];
        if alternatives.iter().all(|errors| !errors.0.is_empty()) {
            self.0
                .extend(alternatives.into_iter().flat_map(|errors| errors.0));
        }
    }

    /// `list[int] | list[list[int]]`, checked by a validator of SGLang.
    /// Source: responses of SGLang 0.5.23 to `["a"]`, `[1,"x"]`, `[[1],["x"]]`.
    pub(super) fn token_lists(&mut self, body: &Value, name: &str) {
        let Some(list) = body.get(name).and_then(Value::as_array) else {
            return;
        };
        let foreign = |list: &[Value]| {
            list.iter()
                .find(|element| !is_python_int(element))
                .map(type_name)
        };
        let problem = match list.first() {
            None => None,
            Some(first) if is_python_int(first) => foreign(list).map(|name| {
                format!("contains non-int64 element: '{name}' object cannot be interpreted as an integer")
            }),
            Some(Value::Array(_)) => list.iter().enumerate().find_map(|(index, row)| {
                let row = row.as_array().map(Vec::as_slice).unwrap_or_default();
                foreign(row).map(|name| format!("row {index}: elements must be int; got {name}"))
            }),
            Some(first) => Some(format!("elements must be int or list; got {}", type_name(first))),
        };
        if let (Some(problem), Some(value)) = (problem, body.get(name)) {
            self.value_error(&format!("'body', '{name}'"), &problem, &python(value));
        }
    }

    /// `list[bool] | bool`.
    pub(super) fn boolean_or_list(&mut self, body: &Value, name: &str) {
        let mut alone = Errors::default();
        alone.boolean(body, name);
        let (Some(error), Some(value)) = (alone.0.pop(), body.get(name)) else {
            return;
        };
        if value.is_array() {
            return;
        }
        let plain = format!("'body', '{name}'");
        self.add(
            "list_type",
            &format!("{plain}, 'list[bool]'"),
            "Input should be a valid list",
            &python(value),
        );
        self.0
            .push(error.replacen(&plain, &format!("{plain}, 'bool'"), 1));
    }

    /// The roles of chat messages.
    pub(super) fn roles(&mut self, body: &Value) {
        let messages = body.get("messages").and_then(Value::as_array);
        for (index, message) in messages.into_iter().flatten().enumerate() {
            let Some(role) = message.get("role").and_then(Value::as_str) else {
                continue;
            };
            if role == "user" || GENERIC_ROLES.contains(&role.to_ascii_lowercase().as_str()) {
                continue;
            }
            let location = |class: &str| {
                format!(
                    "'body', 'messages', {index}, 'function-after[validate_thinking_parts_role(), \
                     ChatCompletionMessage{class}Param]', 'role'"
                )
            };
            let all = GENERIC_ROLES.map(|name| format!("'{name}'")).join(", ");
            let input = python_string(role);
            self.value_error(
                &location("Generic"),
                &format!("'role' must be one of {all} (case-insensitive)."),
                &input,
            );
            self.0.push(format!(
                "{{'type': 'literal_error', 'loc': ({}), 'msg': \"Input should be 'user'\", 'input': {input}, \
                 'ctx': {{'expected': \"'user'\"}}}}",
                location("User")
            ));
        }
    }

    fn value_error(&mut self, location: &str, message: &str, input: &str) {
        self.0.push(format!(
            "{{'type': 'value_error', 'loc': ({location}), 'msg': {}, 'input': {input}, \
             'ctx': {{'error': ValueError({})}}}}",
            python_string(&format!("Value error, {message}")),
            python_string(message)
        ));
    }

    pub(super) fn list(&mut self, body: &Value, name: &str) {
        match body.get(name) {
            None => self.missing(name, body),
            Some(Value::Array(_)) => {}
            Some(value) => {
                let location = format!("'body', '{name}'");
                self.add(
                    "list_type",
                    &location,
                    "Input should be a valid list",
                    &python(value),
                );
            }
        }
    }

    pub(super) fn done(self, site: Site) -> Result<(), Failure> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(report(&self.0, Some(site)))
        }
    }
}

/// The kind and message of pydantic's error for a value that is not an integer.
pub(in crate::sim) fn no_integer(value: &Value) -> Option<(&'static str, &'static str)> {
    match value {
        Value::Number(number) if number.as_str().parse::<i128>().is_ok() => None,
        Value::Number(number) if number.as_f64().is_some_and(|float| float.fract() == 0.0) => None,
        Value::Number(_) => Some((
            "int_from_float",
            "Input should be a valid integer, got a number with a fractional part",
        )),
        Value::String(text) if text.trim().parse::<i128>().is_ok() => None,
        Value::String(_) => Some((
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
        )),
        Value::Bool(_) => None,
        _ => Some(("int_type", "Input should be a valid integer")),
    }
}

fn as_text(value: &Value, name: &str) -> Errors {
    let mut errors = Errors::default();
    if !value.is_string() {
        let location = format!("'body', '{name}', 'str'");
        errors.add(
            "string_type",
            &location,
            "Input should be a valid string",
            &python(value),
        );
    }
    errors
}

fn as_texts(value: &Value, name: &str) -> Errors {
    as_list(
        value,
        &format!("'body', '{name}', 'list[str]'"),
        |element| {
            (!element.is_string()).then_some(("string_type", "Input should be a valid string"))
        },
    )
}

fn as_integers(value: &Value, name: &str) -> Errors {
    as_list(value, &format!("'body', '{name}', 'list[int]'"), no_integer)
}

fn as_rows(value: &Value, name: &str) -> Errors {
    let location = format!("'body', '{name}', 'list[list[int]]'");
    let Some(rows) = value.as_array() else {
        return as_list(value, &location, no_integer);
    };
    let of_row =
        |(index, row): (usize, &Value)| as_list(row, &format!("{location}, {index}"), no_integer).0;
    Errors(rows.iter().enumerate().flat_map(of_row).collect())
}

fn as_list(
    value: &Value,
    location: &str,
    problem: impl Fn(&Value) -> Option<(&'static str, &'static str)>,
) -> Errors {
    let mut errors = Errors::default();
    let Some(list) = value.as_array() else {
        let message = "Input should be a valid list";
        errors.add("list_type", location, message, &python(value));
        return errors;
    };
    for (index, element) in list.iter().enumerate() {
        if let Some((kind, message)) = problem(element) {
            let location = format!("{location}, {index}");
            errors.add(kind, &location, message, &python(element));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_room_that_is_text_is_refused_with_the_message_of_the_transcript() {
        let mut errors = Errors::default();
        let body = json!({"bootstrap_room":"abc"});
        errors.integer(&body, "bootstrap_room", Some("list[nullable[int]]"));
        let Err(Failure::Schema(message)) = errors.done(Site::GENERATE) else {
            unreachable!("the room was accepted")
        };
        let captured =
            include_str!("../../../tests/fixtures/sglang-0.5.23/d_room_string/prefill.http");
        let body: Value =
            serde_json::from_str(captured.split("\r\n\r\n").nth(1).unwrap_or_default())
                .unwrap_or_default();
        let captured = body["message"]
            .as_str()
            .unwrap_or_default()
            .replace("/opt/sgl/ve", "/usr/local");
        assert_eq!(message, captured);
    }
}
