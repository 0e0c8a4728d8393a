//! A call to every worker at once, and the one response made of their results.
//!
//! The calls run concurrently, each with its own timeout, so that a dead worker delays the response by one timeout at
//! most.

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::call::{Call, CallError, CallResult};
use super::error::{error, error_of_workers};
use crate::endpoint::WholeResponse;
use crate::error::Code;
use crate::fleet::{Fleet, Role};
use crate::net::Client;

/// Calls every worker. The results have the order of the fleet: prefill first.
pub(super) async fn call_all(client: &Client, fleet: &Fleet, call: &Call) -> Vec<CallResult> {
    let members = fleet.members();
    join_all(members.workers().map(|worker| call.send(client, worker))).await
}

/// The response to an action of all workers: the first worker's own when all succeeded, else an error with the worst
/// status and a report of each worker.
pub(super) fn all_or_report(path: &str, results: Vec<CallResult>) -> WholeResponse {
    if results.iter().all(CallResult::succeeded)
        && let Some(Ok(response)) = results.first().map(|first| first.outcome.clone())
    {
        return response;
    }
    failed(path, &results)
}

/// A report of each worker, with status 200 when at least one worker of each role succeeded.
pub(super) fn one_of_each(path: &str, results: &[CallResult]) -> WholeResponse {
    health(path, results, reports(results), |of_role| {
        format!(": {}", summaries(of_role.iter().copied()))
    })
}

/// The same without the addresses of workers and their words, for a client that need not know them.
pub(super) fn one_of_each_unnamed(path: &str, results: &[CallResult]) -> WholeResponse {
    let unnamed = |result: &CallResult| {
        let mut report = result.report();
        if let Value::Object(fields) = &mut report {
            fields.retain(|name, _| !["url", "error"].contains(&name.as_str()));
        }
        report
    };
    let reports = results.iter().map(unnamed).collect();
    health(path, results, reports, |_| String::new())
}

/// `why` says what the workers of a role without success responded.
fn health(
    path: &str,
    results: &[CallResult],
    workers: Value,
    why: impl Fn(&[&CallResult]) -> String,
) -> WholeResponse {
    let of = |role| {
        results
            .iter()
            .filter(move |result| result.worker.role() == role)
    };
    let mut roles = [Role::Prefill, Role::Decode].into_iter();
    let Some(role) = roles.find(|role| !of(*role).any(CallResult::succeeded)) else {
        return json_response(&json!({ "workers": workers }));
    };
    let of_role: Vec<_> = of(role).collect();
    let message = match of_role.is_empty() {
        true => format!("there is no {role} worker"),
        false => format!("no {role} worker can generate{}", why(&of_role)),
    };
    let status = StatusCode::SERVICE_UNAVAILABLE;
    error_of_workers(path, status, Code::NoWorker, &message, workers)
}

/// The error response when at least one worker did not succeed, or there is none.
pub(super) fn failed(path: &str, results: &[CallResult]) -> WholeResponse {
    let failures = || results.iter().filter(|result| !result.succeeded());
    let status = worst(failures().map(CallResult::status));
    if results.is_empty() {
        return error(path, Code::NoWorker, "there is no worker");
    }
    let errors = failures().filter_map(|result| result.outcome.as_ref().err());
    let errors: Vec<_> = errors.collect();
    let is_of_key = |error: &&CallError| matches!(error, CallError::KeyRefused(_));
    let code = match errors.len() {
        0 => Code::WorkerRefused,
        _ if status == StatusCode::GATEWAY_TIMEOUT => Code::WorkerTimeout,
        _ if errors.iter().all(is_of_key) => Code::WorkerAuth,
        _ => Code::WorkerUnreachable,
    };
    let message = format!(
        "{} of {} workers failed: {}",
        failures().count(),
        results.len(),
        summaries(failures())
    );
    error_of_workers(path, status, code, &message, reports(results))
}

/// A response with this JSON and status 200.
pub(super) fn json_response(value: &Value) -> WholeResponse {
    WholeResponse::new(StatusCode::OK, "application/json", value.to_string())
}

/// The worst of several statuses of failure; 503 when there are none.
pub(super) fn worst(statuses: impl Iterator<Item = StatusCode>) -> StatusCode {
    // By number: a failed exchange (502, 504) outweighs a worker's refusal, and an error of a worker (5xx) one of the
    // request (4xx).
    match statuses.max() {
        None => StatusCode::SERVICE_UNAVAILABLE,
        // A redirect cannot be passed on: it names the worker.
        Some(status) if status.as_u16() < 400 => StatusCode::BAD_GATEWAY,
        Some(status) => status,
    }
}

fn reports(results: &[CallResult]) -> Value {
    results.iter().map(CallResult::report).collect()
}

fn summaries<'a>(results: impl Iterator<Item = &'a CallResult>) -> String {
    let summaries: Vec<_> = results.map(CallResult::summary).collect();
    summaries.join("; ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::fleet::Worker;
    use crate::net::Failure;

    /// The result of a call to a worker of this role.
    pub(in super::super) fn result(
        role: Role,
        port: u16,
        outcome: Result<(u16, &'static str), CallError>,
    ) -> CallResult {
        CallResult {
            worker: Arc::new(Worker::for_tests(role, port)),
            elapsed: Duration::from_millis(7),
            outcome: outcome.map(|(status, body)| {
                WholeResponse::new(StatusCode::from_u16(status).unwrap(), "text/plain", body)
            }),
        }
    }

    pub(in super::super) fn unreachable() -> CallError {
        CallError::Failed(Failure::Unreachable("refused".into()))
    }

    fn late() -> CallError {
        CallError::TimedOut(Duration::from_secs(3))
    }

    fn parsed(response: &WholeResponse) -> Value {
        serde_json::from_slice(&response.body).unwrap()
    }

    #[test]
    fn an_action_of_all_workers_has_a_workers_own_response() {
        let both = vec![
            result(Role::Prefill, 1, Ok((200, "Cache flushed.\n"))),
            result(Role::Decode, 2, Ok((200, "Cache flushed.\n"))),
        ];
        let response = all_or_report("/flush_cache", both);
        assert_eq!(response.status, StatusCode::OK);
        assert_eq!(response.body, "Cache flushed.\n");
        assert_eq!(response.headers["content-type"], "text/plain");
    }

    #[test]
    fn an_action_that_one_worker_did_not_do_has_the_worst_status() {
        let check = |second, status: u16, code: &str| {
            let results = vec![
                result(Role::Prefill, 1, Ok((200, "ok"))),
                result(Role::Decode, 2, second),
            ];
            let response = all_or_report("/flush_cache", results);
            assert_eq!(response.status, status);
            assert_eq!(response.headers["x-mini-lb-error"], code, "{status}");
            parsed(&response)
        };
        let busy = check(Ok((400, "Flush cache failed.\n")), 400, "worker_refused");
        assert_eq!(
            busy["workers"],
            json!([
                {"role": "prefill", "url": "http://127.0.0.1:1", "status": 200, "milliseconds": 7},
                {"role": "decode", "url": "http://127.0.0.1:2", "status": 400,
                 "error": "Flush cache failed.", "milliseconds": 7},
            ])
        );
        assert_eq!(
            busy["error"]["message"],
            "1 of 2 workers failed: decode http://127.0.0.1:2 answered 400"
        );
        let dead = check(Err(unreachable()), 502, "worker_unreachable");
        assert_eq!(dead["workers"][1]["error"], "cannot be reached (refused)");
        assert_eq!(dead["workers"][1]["status"], Value::Null);
        check(Err(late()), 504, "worker_timeout");
        let wrong_key = || Err(CallError::KeyRefused(StatusCode::FORBIDDEN));
        let refused = check(wrong_key(), 502, "worker_auth");
        assert!(refused["error"]["message"].to_string().contains("(403)"));
        check(Ok((503, "")), 503, "worker_refused");
        check(Ok((307, "")), 502, "worker_refused");
    }

    #[test]
    fn a_failed_exchange_outweighs_a_refusal() {
        let status = |first, second| {
            failed(
                "/x",
                &[
                    result(Role::Prefill, 1, first),
                    result(Role::Decode, 2, second),
                ],
            )
            .status
        };
        assert_eq!(status(Ok((400, "busy")), Err(unreachable())), 502);
        assert_eq!(status(Err(unreachable()), Ok((500, ""))), 502);
        assert_eq!(status(Err(late()), Err(unreachable())), 504);
        assert_eq!(status(Ok((500, "")), Ok((400, ""))), 500);
        assert_eq!(failed("/x", &[]).status, 503);
    }

    #[test]
    fn health_needs_one_worker_of_each_role() {
        let (up, down) = (|| Ok((200, "")), || Ok((503, "")));
        let status = |results: &[CallResult]| one_of_each("/health_generate", results).status;
        let (prefill, decode) = (
            |outcome| result(Role::Prefill, 1, outcome),
            |outcome| result(Role::Decode, 2, outcome),
        );
        assert_eq!(status(&[prefill(up()), decode(up())]), 200);
        assert_eq!(
            status(&[
                prefill(up()),
                prefill(down()),
                decode(Err(unreachable())),
                decode(up())
            ]),
            200
        );
        assert_eq!(status(&[prefill(up()), decode(down())]), 503);
        assert_eq!(status(&[prefill(Err(unreachable())), decode(up())]), 503);
        assert_eq!(status(&[prefill(up())]), 503);
        let sick = one_of_each("/health_generate", &[prefill(up()), decode(down())]);
        assert_eq!(
            parsed(&sick)["error"]["message"],
            "no decode worker can generate: decode http://127.0.0.1:2 answered 503"
        );
        assert_eq!(parsed(&sick)["workers"].as_array().unwrap().len(), 2);
    }
}
