//! Calls that any one worker can response, because all workers of both roles know the same.
//!
//! The workers are called in the order of the fleet, prefill first, until one responds. Its response is passed on
//! whatever its status: 404 for an unknown model is a response. Only a refusal of the proxy's key is not.

use http::StatusCode;
use serde_json::Value;

use super::call::{Call, CallError, CallResult};
use super::error::{error, error_of_workers};
use crate::endpoint::WholeResponse;
use crate::error::Code;
use crate::fleet::Fleet;
use crate::net::Client;

/// The first response of a worker, unchanged.
pub(super) async fn first_response(
    client: &Client,
    fleet: &Fleet,
    call: &Call,
    path: &str,
) -> WholeResponse {
    // One after the other: the first worker nearly always responds, and every further call would be wasted work.
    let mut failed = Vec::new();
    let members = fleet.members();
    for worker in members.workers() {
        let result = call.send(client, worker).await;
        match result.outcome {
            Ok(response) => return response,
            Err(_) => failed.push(result),
        }
    }
    no_response(path, &failed)
}

/// The error response when all calls have failed. Its status is that of the first worker, which should have responded.
pub(super) fn no_response(path: &str, failed: &[CallResult]) -> WholeResponse {
    let Some(first) = failed.first() else {
        return error(path, Code::NoWorker, "there is no worker");
    };
    let code = match &first.outcome {
        Err(CallError::KeyRefused(_)) => Code::WorkerAuth,
        _ if first.status() == StatusCode::GATEWAY_TIMEOUT => Code::WorkerTimeout,
        _ => Code::WorkerUnreachable,
    };
    let message = format!("no worker responded: {}", first.summary());
    let workers: Value = failed.iter().map(CallResult::report).collect();
    error_of_workers(path, first.status(), code, &message, workers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::fanout::tests::{result, unreachable};
    use super::*;
    use crate::fleet::Role;

    #[test]
    fn without_any_response_every_worker_is_named() {
        let failed = [
            result(Role::Prefill, 1, Err(unreachable())),
            result(Role::Decode, 2, Err(unreachable())),
        ];
        let response = no_response("/model_info", &failed);
        assert_eq!(response.status, StatusCode::BAD_GATEWAY);
        assert_eq!(response.headers["x-mini-lb-error"], "worker_unreachable");
        let body: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(body["workers"][1]["url"], "http://127.0.0.1:2");
        assert_eq!(
            body["error"]["message"],
            "no worker responded: prefill http://127.0.0.1:1 cannot be reached (refused)"
        );
        assert_eq!(
            no_response("/model_info", &[]).status,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
}
