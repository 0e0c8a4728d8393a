//! Errors of the endpoints without legs that the proxy itself makes: status, stable code and body.
//!
//! A worker's own answer never comes through here. The JSON shapes are `pd`'s.

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

use super::table::Row;
use crate::endpoint::{ERROR_CODE, WholeResponse};
use crate::pd::{ErrorShape, Route};

/// Asks clients made with the SDKs of OpenAI and Anthropic (not) to repeat a request.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Which error it is, for programs. Users match on these words, so they stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    NotFound,
    MethodNotAllowed,
    NotServedByPd,
    /// The path or the query cannot be sent on.
    BadTarget,
    /// The process leaves.
    ShuttingDown,
    /// No worker of a role, or none at all.
    NoWorker,
    /// A worker could not be asked, or broke off.
    WorkerUnreachable,
    /// A worker took longer than it gets.
    WorkerTimeout,
    /// A worker refuses the proxy's key.
    WorkerAuth,
    /// A worker answered, with an error.
    WorkerRefused,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::NotFound => "not_found",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::NotServedByPd => "not_served_by_pd",
            Code::BadTarget => "bad_target",
            Code::ShuttingDown => "shutting_down",
            Code::NoWorker => "no_worker",
            Code::WorkerUnreachable => "worker_unreachable",
            Code::WorkerTimeout => "worker_timeout",
            Code::WorkerAuth => "worker_auth",
            Code::WorkerRefused => "worker_refused",
        }
    }
}

/// An error answer in the shape that clients of `path` read.
pub(super) fn error(path: &str, status: StatusCode, code: Code, message: &str) -> WholeResponse {
    let body = shape(path).body(status.as_u16(), message);
    let mut answer = WholeResponse::new(status, "application/json", body);
    let code = HeaderValue::from_static(code.name());
    answer.headers.insert(ERROR_CODE, code);
    if status == StatusCode::NOT_IMPLEMENTED {
        // The openai SDK repeats every 5xx otherwise, and this one stays what it is.
        let never = HeaderValue::from_static("false");
        answer.headers.insert(SHOULD_RETRY, never);
    }
    answer
}

/// An error answer that says in `workers` what each of them did.
pub(super) fn error_of_workers(
    path: &str,
    status: StatusCode,
    code: Code,
    message: &str,
    workers: Value,
) -> WholeResponse {
    let mut answer = error(path, status, code, message);
    // The shapes are objects; another one would stay as it is.
    if let Ok(Value::Object(mut body)) = serde_json::from_slice(&answer.body) {
        body.insert("workers".to_owned(), workers);
        answer.body = Value::Object(body).to_string().into();
    }
    answer
}

/// The path is served, but not with this method.
pub(super) fn method_not_allowed(path: &str, row: &Row) -> WholeResponse {
    let allow = row.allow();
    let message = format!("{path} takes {allow}");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut answer = error(path, status, Code::MethodNotAllowed, &message);
    if let Ok(allow) = HeaderValue::try_from(allow) {
        answer.headers.insert(header::ALLOW, allow);
    }
    answer
}

fn shape(path: &str) -> ErrorShape {
    match path {
        "/v1/messages/count_tokens" => ErrorShape::Anthropic,
        _ => ErrorShape::of(Route::find(path)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::super::table;
    use super::*;

    fn parsed(answer: &WholeResponse) -> Value {
        serde_json::from_slice(&answer.body).unwrap()
    }

    #[test]
    fn an_error_has_the_shape_of_its_endpoint_and_a_code_for_programs() {
        let nested = error(
            "/nope",
            StatusCode::NOT_FOUND,
            Code::NotFound,
            "no \"such\" path",
        );
        assert_eq!(parsed(&nested)["error"]["message"], "no \"such\" path");
        assert_eq!(nested.headers[ERROR_CODE], "not_found");
        assert_eq!(nested.headers[header::CONTENT_TYPE], "application/json");
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            let anthropic = error(
                path,
                StatusCode::BAD_GATEWAY,
                Code::WorkerUnreachable,
                "gone",
            );
            assert_eq!(parsed(&anthropic)["type"], "error", "{path}");
            assert_eq!(parsed(&anthropic)["error"]["message"], "gone", "{path}");
        }
    }

    #[test]
    fn the_workers_stand_beside_the_error() {
        let status = StatusCode::BAD_GATEWAY;
        let workers = json!([{"role": "decode"}]);
        let answer = error_of_workers("/flush_cache", status, Code::WorkerRefused, "x", workers);
        assert_eq!(parsed(&answer)["workers"][0]["role"], "decode");
        assert_eq!(parsed(&answer)["error"]["code"], 502);
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let row = table::find("/generate").unwrap();
        let answer = method_not_allowed("/generate", row);
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.headers[header::ALLOW], "PUT, POST");
        assert_eq!(parsed(&answer)["message"], "/generate takes PUT, POST");
    }
}
