//! The JSON bodies of the proxy's own errors, in the shape that the clients of each endpoint read.
//!
//! What may not live here: a worker's error, whose body passes unchanged.
//!
//! Source: SGLang 0.5.23, `entrypoints/http_server.py`, `entrypoints/openai/serving_base.py`,
//! `entrypoints/anthropic/serving.py`.

use serde_json::{Value, json};

use super::super::{Route, sse};

/// The JSON shape of an error, as the clients of an endpoint read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorShape {
    /// `/generate`, chat and completions: the flat object of SGLang, `{"object":"error","message","type",...}`.
    Flat,
    /// `/v1/responses` and all paths without legs: `{"error":{...}}`.
    Nested,
    /// `/v1/messages`: `{"type":"error","error":{"type","message"}}`.
    Anthropic,
}

impl ErrorShape {
    /// The shape of a route; `None` is any path without legs.
    pub fn of(route: Option<Route>) -> Self {
        match route {
            Some(Route::Generate | Route::ChatCompletions | Route::Completions) => ErrorShape::Flat,
            Some(Route::Messages) => ErrorShape::Anthropic,
            Some(Route::Responses) | None => ErrorShape::Nested,
        }
    }

    /// The body of the error `code`, the stable name of the error, with this HTTP status.
    ///
    /// The name is the member `error_code` beside `message`, where the SDKs keep it in the `body` of their exception. The
    /// member `code` is the status, as in SGLang: load generators take it for a number.
    pub fn body(self, code: &str, status: u16, message: &str) -> String {
        self.value(code, status, message).to_string()
    }

    /// The JSON of an error inside a stream that has begun: an object with the key `error`, which is also the body's shape
    /// except for [`Self::Flat`].
    pub fn event(self, code: &str, status: u16, message: &str) -> String {
        match self {
            ErrorShape::Flat => json!({ "error": self.value(code, status, message) }).to_string(),
            ErrorShape::Nested | ErrorShape::Anthropic => self.body(code, status, message),
        }
    }

    /// The JSON of the body.
    fn value(self, code: &str, status: u16, message: &str) -> Value {
        match self {
            ErrorShape::Flat => json!({
                "object": "error", "message": message, "type": kind(status), "param": null, "code": status,
                "error_code": code,
            }),
            ErrorShape::Nested => json!({
                "error": {
                    "message": message, "type": kind(status), "param": null, "code": status, "error_code": code,
                },
            }),
            ErrorShape::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_kind(status), "message": message, "error_code": code},
            }),
        }
    }
}

/// The event that carries the JSON of an error in a stream that has begun. It has a name, which some clients look for;
/// clients of `/generate` read lines of `data:` alone, as SGLang sends them.
///
/// Seen with aiperf 0.13, which notices an error event without a name only by the break that follows.
pub fn error_event(route: Route, json: &str) -> String {
    let event = sse::error_event(json);
    match route {
        Route::Generate => event,
        Route::ChatCompletions | Route::Completions | Route::Responses | Route::Messages => {
            format!("event: error\n{event}")
        }
    }
}

fn kind(status: u16) -> &'static str {
    match status {
        401 | 403 => "authentication_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        501 => "not_implemented_error",
        503 => "service_unavailable_error",
        504 => "timeout_error",
        _ => "internal_server_error",
    }
}

/// One of the types that Anthropic documents: its list has none for 501.
fn anthropic_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "overloaded_error",
        _ => "api_error",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(route: Option<Route>, status: u16) -> Value {
        serde_json::from_str(&ErrorShape::of(route).body("a_code", status, "a \"b\"\n")).unwrap()
    }

    #[test]
    fn each_endpoint_gets_the_shape_that_its_clients_read() {
        assert_eq!(parsed(Some(Route::Generate), 400)["message"], "a \"b\"\n");
        let chat = parsed(Some(Route::ChatCompletions), 502);
        assert_eq!(
            (&chat["object"], &chat["code"]),
            (&json!("error"), &json!(502))
        );
        assert_eq!(
            parsed(Some(Route::Responses), 400)["error"]["param"],
            Value::Null
        );
        assert_eq!(parsed(None, 404)["error"]["type"], "not_found_error");
        assert_eq!(parsed(None, 501)["error"]["type"], "not_implemented_error");
        let messages = parsed(Some(Route::Messages), 503);
        assert_eq!(messages["type"], "error");
        assert_eq!(messages["error"]["type"], "overloaded_error");
    }

    #[test]
    fn an_error_event_of_chat_has_the_error_under_its_key() {
        let event = ErrorShape::Flat.event("decode_lost", 502, "gone");
        let event: Value = serde_json::from_str(&event).unwrap();
        assert_eq!(event["error"]["message"], "gone");
    }

    /// The openai and anthropic SDKs keep the object with the message as the `body` of the exception; openai's takes the
    /// one under `error` where there is one.
    #[test]
    fn the_stable_code_stands_beside_the_message_in_every_body_and_event() {
        for shape in [ErrorShape::Flat, ErrorShape::Nested, ErrorShape::Anthropic] {
            let body = shape.body("decode_lost", 502, "gone");
            for text in [body, shape.event("decode_lost", 502, "gone")] {
                let value: Value = serde_json::from_str(&text).unwrap();
                let error = value.get("error").unwrap_or(&value);
                assert_eq!(error["message"], "gone", "{text}");
                assert_eq!(error["error_code"], "decode_lost", "{text}");
            }
        }
    }
}
