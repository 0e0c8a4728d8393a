//! A refusal in SGLang's own words: what an ordinary server answers to a request before it generates.
//!
//! What may not live here: the reason why a request is refused, see [`super::request`].
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/http_server.py` (`serve_generate_request`, `_create_error_response`) and
//! `srt/entrypoints/openai/serving_base.py` (`create_error_response`).

use bytes::Bytes;
use serde_json::json;

use super::super::super::Route;

/// The refusal of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The engine's own words.
    pub message: String,
    /// Whether an ordinary server has sent the head of a stream before it looks at the request: then the status is 200,
    /// and the error an event. Otherwise the status is 400.
    pub streamed: bool,
    /// The body of the response: a JSON document, or the whole stream.
    pub body: Bytes,
}

impl Refusal {
    /// The refusal with these words by an endpoint of an ordinary server. `stream` says whether a stream was asked for: the
    /// other routes than `/generate` wait for the first event before they send a head.
    pub(in crate::pd::sglang) fn new(route: Route, message: String, stream: bool) -> Self {
        let streamed = stream && route == Route::Generate;
        let body = match route {
            Route::Generate if streamed => {
                let error = json!({ "error": {
                    "message": message, "type": "invalid_request_error", "code": 400, "retryable": false,
                } });
                format!("data: {error}\n\ndata: [DONE]\n\n")
            }
            Route::Generate => json!({ "error": { "message": message } }).to_string(),
            _ => json!({
                "object": "error", "message": message, "type": "BadRequestError", "param": null, "code": 400,
            })
            .to_string(),
        };
        Self {
            message,
            streamed,
            body: body.into(),
        }
    }
}
