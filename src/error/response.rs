//! What a client gets of a [`Fault`]: its status, its word in the log, and the response or the event.
//!
//! What may not live here: what went wrong, see [`super`], and the table of codes, see [`super::code`].

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::code::{Code, Retry};
use super::{Fault, ProxyError, Suspected};
use crate::endpoint::{ERROR_CODE, EVENT_STREAM, WholeResponse};
use crate::fleet::Role;
use crate::pd::{ErrorShape, Invalid};

/// Tells the SDKs of OpenAI and Anthropic whether to repeat a request.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Makes a browser ask its user for a name and a password. Source: RFC 7617.
const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"mini-lb\"");

/// A worker comes back within seconds, and a full one has capacity as soon as its next request ends.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

impl Fault {
    /// The status of the response.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Fault::Rejected(_, rejection) => rejection.status,
            Fault::Own(ProxyError::Invalid(Invalid::Samples(refusal))) if refusal.streamed => {
                StatusCode::OK
            }
            Fault::Own(error) => error.code().status(),
        }
    }

    /// The word for the log: the code of the error, or of the worker's rejection.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Fault::Rejected(role, rejection) => rejected(*role, rejection.status),
            Fault::Own(error) => error.code().name(),
        }
    }

    /// Whether the connection must not be used for another request.
    pub(crate) fn ends_connection(&self) -> bool {
        matches!(self, Fault::Own(error) if error.ends_connection())
    }

    /// The error in a sentence.
    pub(crate) fn message(&self) -> String {
        match self {
            Fault::Rejected(role, rejection) => rejection_message(*role, rejection.status),
            Fault::Own(error) => error.to_string(),
        }
    }

    /// The whole response, in the shape that the clients of its route read.
    pub(crate) fn response(&self, shape: ErrorShape) -> WholeResponse {
        match self {
            Fault::Rejected(_, rejection) => WholeResponse {
                status: rejection.status,
                headers: rejection.headers.clone(),
                body: rejection.body.clone(),
                error: None,
            },
            Fault::Own(error) => {
                let code = error.code();
                let mut response = error_response(code, self.status(), shape, &error.to_string());
                // The words and the shape of an ordinary server, whose error it is.
                if let ProxyError::Invalid(Invalid::Samples(refusal)) = error {
                    response.body = refusal.body.clone();
                    if refusal.streamed {
                        response.headers.insert(CONTENT_TYPE, EVENT_STREAM);
                    }
                }
                if let ProxyError::LoginNeeded(_) = error {
                    response.headers.insert(WWW_AUTHENTICATE, BASIC);
                }
                // Not a moment later, as with other errors of this kind.
                if let ProxyError::Suspect(Suspected::Lost(refusal)) = error {
                    let headers = &mut response.headers;
                    headers.insert(RETRY_AFTER, refusal.left_secs().into());
                    headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
                }
                response
            }
        }
    }

    /// The JSON of this error inside a stream that has begun: a worker's own, where it has sent some.
    pub(crate) fn event(&self, shape: ErrorShape) -> String {
        if let Fault::Rejected(_, rejection) = self
            && let Ok(body @ Value::Object(_)) = serde_json::from_slice(&rejection.body)
        {
            return match body.get("error") {
                Some(_) => body.to_string(),
                None => json!({ "error": body }).to_string(),
            };
        }
        shape.event(self.name(), self.status().as_u16(), &self.message())
    }
}

/// The word for the log where a worker refuses the request itself. Both workers refuse such a request, and which of them
/// was first is chance.
pub(crate) const REJECTED: &str = "rejected";

/// The word for the log where the worker of this role responded with this status of failure.
pub(crate) fn rejected(role: Role, status: StatusCode) -> &'static str {
    match role {
        // 429 is about the load of one worker.
        _ if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => REJECTED,
        Role::Prefill => "prefill_rejected",
        Role::Decode => "decode_rejected",
    }
}

/// The rejection of a worker in a sentence.
pub(crate) fn rejection_message(role: Role, status: StatusCode) -> String {
    format!("the {role} worker answered {status}")
}

/// The response to an error of the proxy. `status` is the code's own, but for [`Code::WorkerRefused`].
pub(crate) fn error_response(
    code: Code,
    status: StatusCode,
    shape: ErrorShape,
    message: &str,
) -> WholeResponse {
    let body = shape.body(code.name(), status.as_u16(), message);
    let mut response = WholeResponse::new(status, "application/json", body);
    response.error = Some(message.to_owned());
    let headers = &mut response.headers;
    headers.insert(ERROR_CODE, HeaderValue::from_static(code.name()));
    match code.row().retry {
        Retry::Later => {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECS);
        }
        // The SDKs repeat every 5xx unless they are told not to.
        Retry::Useless if status.is_server_error() => {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        Retry::Useless | Retry::Possible => {}
    }
    if code == Code::Unauthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
