//! Questions that one worker answers for all: what both roles know equally well.
//!
//! The workers are asked in the order of the fleet, prefill first, until one answers. Its answer is the
//! client's, whatever its status: a 404 for a model is an answer. That a worker refuses the proxy's key is none.

use http::StatusCode;
use serde_json::Value;

use super::ask::{Asked, Question, Unanswered};
use super::error::{error, error_of_workers};
use crate::endpoint::WholeResponse;
use crate::error::Code;
use crate::fleet::Fleet;
use crate::net::Client;

/// The first answer of a worker, unchanged.
pub(super) async fn ask_one(
    client: &Client,
    fleet: &Fleet,
    question: &Question,
    path: &str,
) -> WholeResponse {
    let mut silent = Vec::new();
    let members = fleet.members();
    for worker in members.workers() {
        let asked = question.ask(client, worker).await;
        match asked.outcome {
            Ok(answer) => return answer,
            Err(_) => silent.push(asked),
        }
    }
    no_answer(path, &silent)
}

/// The status is the first worker's: it is the one that should have answered.
fn no_answer(path: &str, silent: &[Asked]) -> WholeResponse {
    let Some(first) = silent.first() else {
        return error(path, Code::NoWorker, "there is no worker");
    };
    let code = match &first.outcome {
        Err(Unanswered::KeyRefused(_)) => Code::WorkerAuth,
        _ if first.status() == StatusCode::GATEWAY_TIMEOUT => Code::WorkerTimeout,
        _ => Code::WorkerUnreachable,
    };
    let message = format!("no worker answered: {}", first.complaint());
    let workers: Value = silent.iter().map(Asked::report).collect();
    error_of_workers(path, first.status(), code, &message, workers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::fanout::tests::{asked, gone};
    use super::*;
    use crate::fleet::Role;

    #[test]
    fn when_nobody_answers_every_worker_is_named() {
        let silent = [
            asked(Role::Prefill, 1, Err(gone())),
            asked(Role::Decode, 2, Err(gone())),
        ];
        let answer = no_answer("/model_info", &silent);
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.headers["x-mini-lb-error"], "worker_unreachable");
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["workers"][1]["url"], "http://127.0.0.1:2");
        assert_eq!(
            body["error"]["message"],
            "no worker answered: prefill http://127.0.0.1:1 cannot be reached (refused)"
        );
        assert_eq!(
            no_answer("/model_info", &[]).status,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
}
