//! Questions to every worker at once, and how their answers become one.
//!
//! All are asked side by side, each with a time of its own: a dead worker delays nobody beyond it.

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::ask::{Asked, Question, Unanswered};
use super::error::{error, error_of_workers};
use crate::endpoint::WholeResponse;
use crate::error::Code;
use crate::fleet::{Fleet, Role};
use crate::net::Client;

/// Asks every worker. The answers have the order of the fleet: prefill first.
pub(super) async fn ask_all(client: &Client, fleet: &Fleet, question: &Question) -> Vec<Asked> {
    let members = fleet.members();
    let workers = members.workers();
    join_all(workers.map(|worker| question.ask(client, worker))).await
}

/// The answer to an action that every worker must do: a worker's own answer when all did it, otherwise the
/// status of the worst and what each of them did.
pub(super) fn all_or_report(path: &str, asked: Vec<Asked>) -> WholeResponse {
    if asked.iter().all(Asked::passed)
        && let Some(Ok(answer)) = asked.first().map(|first| first.outcome.clone())
    {
        return answer;
    }
    failed(path, &asked)
}

/// 200 when at least one worker of each role passed, and how each of them did.
pub(super) fn one_of_each(path: &str, asked: &[Asked]) -> WholeResponse {
    let workers = reports(asked);
    let missing = [Role::Prefill, Role::Decode].into_iter().find(|role| {
        !asked
            .iter()
            .any(|one| one.worker.role() == *role && one.passed())
    });
    let Some(role) = missing else {
        return json_answer(&json!({ "workers": workers }));
    };
    let message = match complaints(asked.iter().filter(|one| one.worker.role() == role)) {
        none if none.is_empty() => format!("there is no {role} worker"),
        complaints => format!("no {role} worker can generate: {complaints}"),
    };
    let status = StatusCode::SERVICE_UNAVAILABLE;
    error_of_workers(path, status, Code::NoWorker, &message, workers)
}

/// The answer when nobody, or not everybody, did what was asked.
pub(super) fn failed(path: &str, asked: &[Asked]) -> WholeResponse {
    let failures = || asked.iter().filter(|one| !one.passed());
    let status = worst(failures().map(Asked::status));
    if asked.is_empty() {
        return error(path, Code::NoWorker, "there is no worker");
    }
    let unanswered = failures().filter_map(|one| one.outcome.as_ref().err());
    let unanswered: Vec<_> = unanswered.collect();
    let of_key = |why: &&Unanswered| matches!(why, Unanswered::KeyRefused(_));
    let code = match unanswered.len() {
        0 => Code::WorkerRefused,
        _ if status == StatusCode::GATEWAY_TIMEOUT => Code::WorkerTimeout,
        _ if unanswered.iter().all(of_key) => Code::WorkerAuth,
        _ => Code::WorkerUnreachable,
    };
    let message = format!(
        "{} of {} workers failed: {}",
        failures().count(),
        asked.len(),
        complaints(failures())
    );
    error_of_workers(path, status, code, &message, reports(asked))
}

/// 200 with this JSON.
pub(super) fn json_answer(value: &Value) -> WholeResponse {
    WholeResponse::new(StatusCode::OK, "application/json", value.to_string())
}

/// The status of several failures: a worker that could not be asked weighs more than one that refused, and a
/// fault of a server more than one of the request. The numbers of HTTP have this order already.
fn worst(statuses: impl Iterator<Item = StatusCode>) -> StatusCode {
    match statuses.max() {
        None => StatusCode::SERVICE_UNAVAILABLE,
        // A redirect is no answer that can be passed on: it names the worker.
        Some(status) if status.as_u16() < 400 => StatusCode::BAD_GATEWAY,
        Some(status) => status,
    }
}

fn reports(asked: &[Asked]) -> Value {
    asked.iter().map(Asked::report).collect()
}

fn complaints<'a>(asked: impl Iterator<Item = &'a Asked>) -> String {
    let complaints: Vec<_> = asked.map(Asked::complaint).collect();
    complaints.join("; ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::fleet::Worker;
    use crate::net::Failure;

    /// What came of a question to a worker of this role.
    pub(in super::super) fn asked(
        role: Role,
        port: u16,
        outcome: Result<(u16, &'static str), Unanswered>,
    ) -> Asked {
        Asked {
            worker: Arc::new(Worker::for_tests(role, port)),
            took: Duration::from_millis(7),
            outcome: outcome.map(|(status, body)| {
                WholeResponse::new(StatusCode::from_u16(status).unwrap(), "text/plain", body)
            }),
        }
    }

    pub(in super::super) fn gone() -> Unanswered {
        Unanswered::Failed(Failure::Unreachable("refused".into()))
    }

    fn late() -> Unanswered {
        Unanswered::Overdue(Duration::from_secs(3))
    }

    fn parsed(answer: &WholeResponse) -> Value {
        serde_json::from_slice(&answer.body).unwrap()
    }

    #[test]
    fn an_action_that_all_did_is_answered_in_a_workers_words() {
        let both = vec![
            asked(Role::Prefill, 1, Ok((200, "Cache flushed.\n"))),
            asked(Role::Decode, 2, Ok((200, "Cache flushed.\n"))),
        ];
        let answer = all_or_report("/flush_cache", both);
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, "Cache flushed.\n");
        assert_eq!(answer.headers["content-type"], "text/plain");
    }

    #[test]
    fn an_action_that_one_did_not_do_has_the_status_of_the_worst() {
        let check = |second, status: u16, code: &str| {
            let asked = vec![
                asked(Role::Prefill, 1, Ok((200, "ok"))),
                asked(Role::Decode, 2, second),
            ];
            let answer = all_or_report("/flush_cache", asked);
            assert_eq!(answer.status, status);
            assert_eq!(answer.headers["x-mini-lb-error"], code, "{status}");
            parsed(&answer)
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
        let dead = check(Err(gone()), 502, "worker_unreachable");
        assert_eq!(dead["workers"][1]["error"], "cannot be reached (refused)");
        assert_eq!(dead["workers"][1]["status"], Value::Null);
        check(Err(late()), 504, "worker_timeout");
        let wrong_key = || Err(Unanswered::KeyRefused(StatusCode::FORBIDDEN));
        let refused = check(wrong_key(), 502, "worker_auth");
        assert!(refused["error"]["message"].to_string().contains("(403)"));
        check(Ok((503, "")), 503, "worker_refused");
        check(Ok((307, "")), 502, "worker_refused");
    }

    #[test]
    fn a_worker_that_was_not_asked_outweighs_one_that_refused() {
        let status = |first, second| {
            failed(
                "/x",
                &[
                    asked(Role::Prefill, 1, first),
                    asked(Role::Decode, 2, second),
                ],
            )
            .status
        };
        assert_eq!(status(Ok((400, "busy")), Err(gone())), 502);
        assert_eq!(status(Err(gone()), Ok((500, ""))), 502);
        assert_eq!(status(Err(late()), Err(gone())), 504);
        assert_eq!(status(Ok((500, "")), Ok((400, ""))), 500);
        assert_eq!(failed("/x", &[]).status, 503);
    }

    #[test]
    fn health_needs_one_worker_of_each_role() {
        let (up, down) = (|| Ok((200, "")), || Ok((503, "")));
        let status = |asked: &[Asked]| one_of_each("/health_generate", asked).status;
        let (prefill, decode) = (
            |outcome| asked(Role::Prefill, 1, outcome),
            |outcome| asked(Role::Decode, 2, outcome),
        );
        assert_eq!(status(&[prefill(up()), decode(up())]), 200);
        assert_eq!(
            status(&[
                prefill(up()),
                prefill(down()),
                decode(Err(gone())),
                decode(up())
            ]),
            200
        );
        assert_eq!(status(&[prefill(up()), decode(down())]), 503);
        assert_eq!(status(&[prefill(Err(gone())), decode(up())]), 503);
        assert_eq!(status(&[prefill(up())]), 503);
        let sick = one_of_each("/health_generate", &[prefill(up()), decode(down())]);
        assert_eq!(
            parsed(&sick)["error"]["message"],
            "no decode worker can generate: decode http://127.0.0.1:2 answered 503"
        );
        assert_eq!(parsed(&sick)["workers"].as_array().unwrap().len(), 2);
    }
}
