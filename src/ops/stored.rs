//! Stored responses: asked for, or cancelled, at the decode worker that has made them.
//!
//! SGLang 0.5.23 refuses to start a prefill or decode worker with `--enable-response-store`, and answers for every id that
//! the store is disabled; that answer is passed on. An engine that stores responses is served by the same rule.
//!
//! Source: SGLang 0.5.23 `srt/arg_groups/validation_hook.py` (`validate_response_store`).

use http::{HeaderValue, Method, header};

use super::call::Call;
use super::error::error;
use super::single::no_response;
use crate::endpoint::WholeResponse;
use crate::error::Code;
use crate::fleet::{Fleet, Role, Worker};
use crate::net::Client;

/// What a path below `/v1/responses/` asks for.
enum Asked<'a> {
    Response(&'a str),
    Cancel(&'a str),
}

impl<'a> Asked<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v1/responses/")?;
        match rest.split_once('/') {
            None => Some(Asked::Response(rest)),
            Some((id, "cancel")) => Some(Asked::Cancel(id)),
            Some(_) => None,
        }
    }

    fn id(&self) -> &'a str {
        match self {
            Asked::Response(id) | Asked::Cancel(id) => id,
        }
    }

    /// The methods of the path, as `Allow` has them.
    fn allow(&self) -> &'static str {
        match self {
            Asked::Response(_) => "GET, HEAD",
            Asked::Cancel(_) => "POST",
        }
    }
}

/// The error before any worker is asked; `None` where the path and the method fit together.
pub(super) fn refusal(path: &str, method: &Method) -> Option<WholeResponse> {
    let Some(asked) = Asked::of(path) else {
        let message = format!("there is no endpoint {path}");
        return Some(error(path, Code::NotFound, &message));
    };
    let allow = asked.allow();
    if allow.split(", ").any(|allowed| allowed == method.as_str()) {
        return None;
    }
    let message = format!("{path} accepts {allow}");
    let mut response = error(path, Code::MethodNotAllowed, &message);
    let headers = &mut response.headers;
    headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    Some(response)
}

/// The response of the worker that has what the path asks for.
pub(super) async fn of_owner(
    client: &Client,
    fleet: &Fleet,
    call: &Call,
    path: &str,
) -> WholeResponse {
    let id = Asked::of(path).map_or("", |asked| asked.id());
    let Some(stored) = fleet.stored_responses().find(id) else {
        let message = format!(
            "no response {id:?} is known here: it was not made by way of this load balancer, or it was forgotten for newer \
             ones or in a restart"
        );
        return error(path, Code::UnknownResponse, &message);
    };
    let members = fleet.members();
    let has_it = |worker: &&std::sync::Arc<Worker>| worker.id() == stored.decode;
    let Some(worker) = members.of(Role::Decode).iter().find(has_it) else {
        let message = format!("the worker that had the response {id:?} is gone");
        return error(path, Code::UnknownResponse, &message);
    };
    let result = call.send(client, worker).await;
    match result.outcome {
        Ok(response) => response,
        Err(_) => no_response(path, &[result]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_got_and_cancelled_and_nothing_else() {
        let status = |path, method| refusal(path, &method).map(|refused| refused.status.as_u16());
        assert_eq!(status("/v1/responses/resp_1", Method::GET), None);
        assert_eq!(status("/v1/responses/resp_1/cancel", Method::POST), None);
        assert_eq!(status("/v1/responses/resp_1", Method::POST), Some(405));
        assert_eq!(status("/v1/responses/resp_1", Method::DELETE), Some(405));
        assert_eq!(
            status("/v1/responses/resp_1/cancel", Method::GET),
            Some(405)
        );
        assert_eq!(
            status("/v1/responses/resp_1/input_items", Method::GET),
            Some(404)
        );
    }
}
