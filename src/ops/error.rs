//! Errors of the endpoints without legs, in the shape that the clients of each path read.

use http::{HeaderValue, StatusCode, header};
use serde_json::Value;

use super::table::Row;
use crate::endpoint::WholeResponse;
use crate::error::{Code, error_response};
use crate::pd::{ErrorShape, Route};

/// The response to this error.
pub(super) fn error(path: &str, code: Code, message: &str) -> WholeResponse {
    error_response(code, code.status(), shape(path), message)
}

/// The response to an error of some workers: `status` is the worst of theirs, `workers` has each worker's part.
pub(super) fn error_of_workers(
    path: &str,
    status: StatusCode,
    code: Code,
    message: &str,
    workers: Value,
) -> WholeResponse {
    let mut response = error_response(code, status, shape(path), message);
    // Every shape is a JSON object. Another body would be left as it is.
    if let Ok(Value::Object(mut body)) = serde_json::from_slice(&response.body) {
        body.insert("workers".to_owned(), workers);
        response.body = Value::Object(body).to_string().into();
    }
    response
}

/// The response where the path exists, but not with this method.
pub(super) fn method_not_allowed(path: &str, row: &Row) -> WholeResponse {
    let allow = row.allow();
    let message = format!("{path} accepts {allow}");
    let mut response = error(path, Code::MethodNotAllowed, &message);
    if let Ok(allow) = HeaderValue::try_from(allow) {
        response.headers.insert(header::ALLOW, allow);
    }
    response
}

/// The shape of errors that clients of this path read.
fn shape(path: &str) -> ErrorShape {
    match path {
        "/v1/messages/count_tokens" => ErrorShape::Anthropic,
        _ if path.starts_with("/v1/responses/") => ErrorShape::of(Some(Route::Responses)),
        _ => ErrorShape::of(Route::find(path)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::super::table;
    use super::*;

    fn parsed(response: &WholeResponse) -> Value {
        serde_json::from_slice(&response.body).unwrap()
    }

    #[test]
    fn an_error_has_the_shape_of_its_endpoint_and_a_code_for_programs() {
        let nested = error("/nope", Code::NotFound, "no \"such\" path");
        assert_eq!(parsed(&nested)["error"]["message"], "no \"such\" path");
        assert_eq!(nested.headers[crate::endpoint::ERROR_CODE], "not_found");
        assert_eq!(nested.headers[header::CONTENT_TYPE], "application/json");
        for path in ["/v1/messages", "/v1/messages/count_tokens"] {
            let anthropic = error(path, Code::WorkerUnreachable, "gone");
            assert_eq!(parsed(&anthropic)["type"], "error", "{path}");
            assert_eq!(parsed(&anthropic)["error"]["message"], "gone", "{path}");
        }
    }

    #[test]
    fn a_report_of_the_workers_stands_beside_the_error() {
        let status = StatusCode::BAD_GATEWAY;
        let workers = json!([{"role": "decode"}]);
        let response = error_of_workers("/flush_cache", status, Code::WorkerRefused, "x", workers);
        assert_eq!(parsed(&response)["workers"][0]["role"], "decode");
        assert_eq!(parsed(&response)["error"]["code"], 502);
    }

    #[test]
    fn a_wrong_method_is_answered_with_the_right_ones() {
        let row = table::find(crate::pd::Engine::Sglang, "/generate").unwrap();
        let response = method_not_allowed("/generate", row);
        assert_eq!(response.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers[header::ALLOW], "PUT, POST");
        assert_eq!(parsed(&response)["message"], "/generate accepts PUT, POST");
    }
}
