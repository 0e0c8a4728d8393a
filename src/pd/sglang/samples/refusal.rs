//! A refusal in SGLang's own words: what an ordinary server answers to a request before it generates.
//!
//! What may not live here: the reason why a request is refused, see [`super::request`].
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/http_server.py` (`_create_error_response`) and
//! `srt/entrypoints/openai/serving_base.py` (`create_error_response`).

use bytes::Bytes;
use serde_json::json;

use super::super::super::Route;

/// The refusal of a request, for which an ordinary server has the status 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The engine's own words.
    pub message: String,
    /// The JSON body of the response.
    pub body: Bytes,
}

impl Refusal {
    /// The refusal with these words by an endpoint of an ordinary server.
    pub(in crate::pd::sglang) fn new(route: Route, message: String) -> Self {
        let body = match route {
            Route::Generate => json!({ "error": { "message": message } }),
            _ => json!({
                "object": "error", "message": message, "type": "BadRequestError", "param": null, "code": 400,
            }),
        };
        Self {
            message,
            body: body.to_string().into(),
        }
    }
}
