//! vLLM's error bodies.
//!
//! Source: transcripts 05c, 23 and 24; vLLM 0.32.0, `entrypoints/serve/exception_handling`, where none shows a message.

use serde_json::{Value, json};

use crate::sim::errors::{Failure, Family};
use crate::sim::request::python::python_string;

/// vLLM's reason for every failure of its own.
const INTERNAL: &str = "Internal server error";
/// The most characters of a value that an error shows.
const SHOWN: usize = 200;

/// Why vLLM refuses a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// `type`.
    kind: &'static str,
    /// The field that it concerns.
    param: Option<String>,
    message: String,
}

/// The JSON body of a failure.
pub(crate) fn body(failure: &Failure, family: Family) -> Value {
    let internal = internal();
    let refusal = match failure {
        Failure::Vllm(refusal) => refusal,
        _ => &internal,
    };
    let Refusal {
        status,
        kind,
        param,
        message,
    } = refusal;
    // Validation comes before the handler, which alone knows Anthropic's shape.
    if family == Family::VllmMessages && *kind != "Bad Request" {
        return json!({"type":"error","error":{"type":kind,"message":message}});
    }
    json!({"error":{"message":message,"type":kind,"param":param,"code":status}})
}

/// The JSON of the event in a stream whose head has been sent, with the spaces of `json.dumps`.
pub(crate) fn event(failure: &Failure, family: Family) -> String {
    let internal = internal();
    let refusal = match failure {
        Failure::Vllm(refusal) => refusal,
        _ => &internal,
    };
    if family != Family::VllmMessages {
        return refusal.event();
    }
    // The converter of streams takes the event of chat for a chunk. Source: `entrypoints/anthropic/serving.py`.
    let missing = |name: &str| format!("{name}\n  Field required [type=missing]");
    let message = format!(
        "2 validation errors for ChatCompletionStreamResponse\n{}\n{}",
        missing("model"),
        missing("choices")
    );
    json!({"type":"error","error":{"type":"internal_error","message":message}}).to_string()
}

/// The event of a failure of the engine with another message.
pub(crate) fn internal_event(message: &str) -> String {
    let refusal = Refusal {
        message: message.to_owned(),
        ..internal()
    };
    refusal.event()
}

impl Refusal {
    fn event(&self) -> String {
        format!(
            "{{\"error\": {{\"message\": {}, \"type\": \"{}\", \"param\": null, \"code\": {}}}}}",
            Value::from(self.message.as_str()),
            self.kind,
            self.status
        )
    }
}

/// A check of vLLM's own.
pub(super) fn bad_request(param: Option<&str>, message: String) -> Failure {
    refused(400, "BadRequestError", param, message)
}

/// The blocks of a prompt could not be read.
pub(crate) fn failed_load() -> Failure {
    Failure::Vllm(internal())
}

pub(super) fn unknown_model(name: &str, served: &str) -> Failure {
    let message = format!("The model `{name}` does not exist. Valid aliases: {served}.");
    refused(404, "NotFoundError", Some("model"), message)
}

pub(super) fn too_long(tokens: usize, limit: usize) -> Failure {
    let message = format!(
        "This model's maximum context length is {limit} tokens. However, your prompt contains at least {tokens} input \
         tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. \
         (parameter=input_tokens, value={tokens})"
    );
    bad_request(Some("input_tokens"), message)
}

pub(super) fn too_many_tokens(name: &str, asked: usize, limit: usize) -> Failure {
    let message = format!(
        "{name}={asked} cannot be greater than max_model_len={limit}. Please request fewer output tokens. \
         (parameter={name}, value={asked})"
    );
    bad_request(Some(name), message)
}

/// `--enable-scale-out` is missing.
pub(super) fn scale_out_disabled() -> Failure {
    let message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.";
    refused(403, "PermissionDeniedError", None, message.to_owned())
}

/// What the schema refuses: a list of [`entry`]s. `param` is the place of the first.
pub(super) fn validation(entries: &[String], param: &str) -> Failure {
    refused_by_schema(entries, Some(param))
}

/// The content type is not JSON.
pub(super) fn unsupported_media_type() -> Failure {
    let entry = "Unsupported Media Type: Only 'application/json' is allowed";
    refused_by_schema(&[entry.to_owned()], None)
}

/// One error of the schema, as pydantic reports it and vLLM shortens it.
pub(super) fn entry(kind: &str, location: &str, message: &str, input: &Value) -> String {
    format!(
        "{{'type': '{kind}', 'loc': '{location}', 'msg': {}, 'input': {}}}",
        python_string(message),
        shown(input)
    )
}

/// The body is not JSON. `at` is the place of the error.
pub(super) fn not_json(at: usize, why: &str) -> Failure {
    let entry = format!(
        "{{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', \
         'ctx': {{'error': {}}}}}",
        python_string(why)
    );
    validation(&[entry], &format!("body.{at}"))
}

/// A check that names its field in the message too. Source: vLLM 0.32.0, `exceptions.py` (`VLLMValidationError`).
pub(super) fn invalid(param: &str, message: &str) -> Failure {
    bad_request(Some(param), format!("{message} (parameter={param})"))
}

fn refused_by_schema(entries: &[String], param: Option<&str>) -> Failure {
    let plural = match entries.len() {
        1 => "",
        _ => "s",
    };
    let message = format!(
        "{} validation error{plural}:\n  {}",
        entries.len(),
        entries.join("\n  ")
    );
    refused(400, "Bad Request", param, message)
}

fn refused(status: u16, kind: &'static str, param: Option<&str>, message: String) -> Failure {
    Failure::Vllm(Refusal {
        status,
        kind,
        param: param.map(str::to_owned),
        message,
    })
}

fn internal() -> Refusal {
    Refusal {
        status: 500,
        kind: "InternalServerError",
        param: None,
        message: INTERNAL.to_owned(),
    }
}

/// A value as errors show it: containers by their size.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(list) => format!("<list of {} items>", list.len()),
        Value::Object(map) => format!("<dict of {} items>", map.len()),
        Value::String(text) => text.chars().take(SHOWN).collect(),
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
    };
    python_string(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_in_the_transcripts() {
        let text = |failure: Failure| body(&failure, Family::Vllm).to_string();
        assert_eq!(
            text(unknown_model("nope", "tiny")),
            r#"{"error":{"message":"The model `nope` does not exist. Valid aliases: tiny.","type":"NotFoundError","param":"model","code":404}}"#
        );
        assert_eq!(
            text(not_json(
                16,
                "Expecting property name enclosed in double quotes"
            )),
            r#"{"error":{"message":"1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.16', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}","type":"Bad Request","param":"body.16","code":400}}"#
        );
        assert_eq!(
            event(&failed_load(), Family::Vllm),
            r#"{"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}"#
        );
        assert_eq!(
            body(&unknown_model("a", "b"), Family::VllmMessages)["error"]["type"],
            "NotFoundError"
        );
    }
}
