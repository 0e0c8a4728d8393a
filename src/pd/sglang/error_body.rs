//! The JSON bodies of the proxy's own errors, in the shape that the clients of each endpoint read.
//!
//! What may not live here: a worker's error, whose body passes unchanged.
//!
//! Source: SGLang 0.5.23, `entrypoints/http_server.py`, `entrypoints/openai/serving_base.py`,
//! `entrypoints/anthropic/serving.py`.

use serde_json::{Value, json};

use super::super::Route;

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

    /// The body of an error with this HTTP status.
    pub fn body(self, status: u16, message: &str) -> String {
        self.value(status, message).to_string()
    }

    /// The JSON of an error inside a stream that has begun: an object with the key `error`, which is also the body's shape
    /// except for [`Self::Flat`].
    pub fn event(self, status: u16, message: &str) -> String {
        match self {
            ErrorShape::Flat => json!({ "error": self.value(status, message) }).to_string(),
            ErrorShape::Nested | ErrorShape::Anthropic => self.body(status, message),
        }
    }

    /// The JSON of the body.
    fn value(self, status: u16, message: &str) -> Value {
        match self {
            ErrorShape::Flat => json!({
                "object": "error", "message": message, "type": kind(status), "param": null, "code": status,
            }),
            ErrorShape::Nested => json!({
                "error": {"message": message, "type": kind(status), "param": null, "code": status},
            }),
            ErrorShape::Anthropic => json!({
                "type": "error", "error": {"type": anthropic_kind(status), "message": message},
            }),
        }
    }
}

fn kind(status: u16) -> &'static str {
    match status {
        401 | 403 => "authentication_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 => "service_unavailable_error",
        504 => "timeout_error",
        _ => "internal_server_error",
    }
}

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
        serde_json::from_str(&ErrorShape::of(route).body(status, "a \"b\"\n")).unwrap()
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
        let messages = parsed(Some(Route::Messages), 503);
        assert_eq!(messages["type"], "error");
        assert_eq!(messages["error"]["type"], "overloaded_error");
    }

    #[test]
    fn an_error_event_of_chat_has_the_error_under_its_key() {
        let event = ErrorShape::Flat.event(502, "gone");
        let event: Value = serde_json::from_str(&event).unwrap();
        assert_eq!(event["error"]["message"], "gone");
    }
}
