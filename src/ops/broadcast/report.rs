//! What one worker came to in a broadcast, and the one response that names all of them.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::super::call::{CallError, CallResult};
use super::super::error::{error, error_of_workers};
use super::super::fanout::{json_response, worst};
use crate::endpoint::WholeResponse;
use crate::error::Code;
use crate::fleet::Worker;
use crate::net::Failure;

/// One worker's part in a broadcast.
pub(super) struct Part {
    pub(super) worker: Arc<Worker>,
    /// `None` where it was not asked, because an earlier one had failed.
    result: Option<CallResult>,
    /// Its first rank in the process group, where it got one.
    rank_offset: Option<u64>,
    /// Whether what it did was undone, or why not; `None` where that was not tried.
    undone: Option<Result<(), String>>,
}

impl Part {
    pub(super) fn of(result: CallResult, rank_offset: Option<u64>) -> Self {
        Self {
            worker: result.worker.clone(),
            result: Some(result),
            rank_offset,
            undone: None,
        }
    }

    pub(super) fn not_asked(worker: Arc<Worker>) -> Self {
        Self {
            worker,
            result: None,
            rank_offset: None,
            undone: None,
        }
    }

    /// Whether the worker says that it has done it.
    pub(super) fn is_done(&self) -> bool {
        self.result.as_ref().is_some_and(did)
    }

    /// Whether the worker has done it, or may have: its response did not come.
    pub(super) fn may_be_done(&self) -> bool {
        let lost = |result: &CallResult| {
            matches!(
                result.outcome,
                Err(CallError::TimedOut(_) | CallError::Failed(Failure::Lost(_)))
            )
        };
        self.is_done() || self.result.as_ref().is_some_and(lost)
    }

    /// Whether the worker did not do it, although it was asked.
    fn has_failed(&self) -> bool {
        self.result.is_some() && !self.is_done()
    }

    pub(super) fn note_undone(&mut self, undo: &CallResult) {
        self.undone = Some(match did(undo) {
            true => Ok(()),
            false => Err(undo.summary()),
        });
    }

    pub(super) fn is_undone(&self) -> bool {
        matches!(self.undone, Some(Ok(())))
    }

    /// `role`, `url`, `done`, and where there are any: `status`, `milliseconds`, `answer` (the worker's own), `error`,
    /// `rank_offset`, `rolled_back` (true, or why not).
    fn report(&self) -> Value {
        let Some(result) = &self.result else {
            return json!({
                "role": self.worker.role().name(),
                "url": self.worker.url(),
                "done": false,
                "error": "was not asked, because another worker had failed",
            });
        };
        let mut report = result.report();
        report["done"] = self.is_done().into();
        if let Some(answer) = answer(result) {
            // It says what the error is, in fields.
            if let (Value::Object(_), Value::Object(fields)) = (&answer, &mut report) {
                fields.remove("error");
            }
            report["answer"] = answer;
        }
        if let Some(offset) = self.rank_offset {
            report["rank_offset"] = offset.into();
        }
        match &self.undone {
            None => {}
            Some(Ok(())) => report["rolled_back"] = true.into(),
            Some(Err(why)) => report["rolled_back"] = why.as_str().into(),
        }
        report
    }
}

/// Whether a worker says that it has done what it was asked: some say no in a response with status 200.
///
/// Source: SGLang 0.5.23 `entrypoints/http_server.py` (`set_internal_state` answers `[false]`).
fn did(result: &CallResult) -> bool {
    let says_no = |answer: Value| match answer {
        Value::Object(fields) => {
            let no = |name| fields.get(name) == Some(&Value::Bool(false));
            no("success") || no("updated")
        }
        Value::Array(items) => items.contains(&Value::Bool(false)),
        _ => false,
    };
    result.succeeded() && !answer(result).is_some_and(says_no)
}

/// The worker's own response: its JSON, or else its text; `None` where it is empty or did not come.
fn answer(result: &CallResult) -> Option<Value> {
    let body = result.readable_body()?;
    match serde_json::from_slice(&body) {
        Ok(json) => Some(json),
        Err(_) => {
            let text = String::from_utf8_lossy(&body);
            let text = text.trim();
            (!text.is_empty()).then(|| text.into())
        }
    }
}

/// The response to a broadcast: the first worker's own fields and `workers` where all did it, else an error with the worst
/// status.
pub(super) fn response(path: &str, parts: &[Part], hint: &str) -> WholeResponse {
    let workers: Value = parts.iter().map(Part::report).collect();
    let Some(first) = parts.first() else {
        return error(path, Code::NoWorker, "there is no worker");
    };
    if parts.iter().all(Part::is_done) {
        let own = first.result.as_ref().and_then(answer);
        let mut body = match own {
            Some(Value::Object(fields)) => fields,
            Some(Value::String(text)) => Map::from_iter([("message".to_owned(), text.into())]),
            _ => Map::new(),
        };
        body.insert("workers".to_owned(), workers);
        return json_response(&Value::Object(body));
    }
    failure(path, parts, workers, hint)
}

fn failure(path: &str, parts: &[Part], workers: Value, hint: &str) -> WholeResponse {
    let failed = || parts.iter().filter(|part| part.has_failed());
    let results = || failed().filter_map(|part| part.result.as_ref());
    let status = worst(results().map(CallResult::status));
    let errors = results().filter_map(|result| result.outcome.as_ref().err());
    let code = match errors.last() {
        None => Code::WorkerRefused,
        Some(_) if status == StatusCode::GATEWAY_TIMEOUT => Code::WorkerTimeout,
        Some(CallError::KeyRefused(_)) => Code::WorkerAuth,
        Some(_) => Code::WorkerUnreachable,
    };
    let says_no = |result: &CallResult| match result.succeeded() {
        true => format!("{} {} says no", result.worker.role(), result.worker.url()),
        false => result.summary(),
    };
    let summaries: Vec<_> = results().map(says_no).collect();
    let mut message = format!(
        "{} of {} workers did not do it: {}",
        failed().count(),
        parts.len(),
        summaries.join("; ")
    );
    let not_asked = parts.iter().filter(|part| part.result.is_none()).count();
    if not_asked > 0 {
        message += &format!("; not asked: {not_asked}");
    }
    let (undone, kept): (Vec<&Part>, Vec<_>) = parts
        .iter()
        .filter(|part| part.undone.is_some())
        .partition(|part| part.is_undone());
    if !undone.is_empty() {
        message += &format!("; rolled back: {}", undone.len());
    }
    if !kept.is_empty() {
        message += &format!("; not rolled back: {}", kept.len());
    }
    if !hint.is_empty() {
        message += &format!("; {hint}");
    }
    let mut response = error_of_workers(path, status, code, &message, workers);
    // Trainers read this word of SGLang's.
    if let Ok(Value::Object(mut body)) = serde_json::from_slice(&response.body) {
        body.insert("success".to_owned(), false.into());
        response.body = Value::Object(body).to_string().into();
    }
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::fanout::tests::{result, unreachable};
    use super::*;
    use crate::fleet::Role;

    fn parsed(response: &WholeResponse) -> Value {
        serde_json::from_slice(&response.body).unwrap()
    }

    fn parts<const N: usize>(outcomes: [Result<(u16, &'static str), CallError>; N]) -> Vec<Part> {
        let parts = outcomes.into_iter().zip(1..);
        parts
            .map(|(outcome, port)| Part::of(result(Role::Decode, port, outcome), None))
            .collect()
    }

    #[test]
    fn where_all_did_it_the_response_has_the_first_ones_fields_and_names_every_worker() {
        let own = r#"{"success":true,"message":"ok"}"#;
        let response = response("/x", &parts([Ok((200, own)), Ok((200, own))]), "");
        let body = parsed(&response);
        assert_eq!(
            (response.status.as_u16(), &body["message"]),
            (200, &json!("ok"))
        );
        let second = &body["workers"][1];
        assert_eq!(second["url"], "http://127.0.0.1:2");
        assert_eq!(second["answer"]["success"], true);
        assert_eq!(
            (&second["done"], &second["status"]),
            (&json!(true), &json!(200))
        );
    }

    #[test]
    fn answers_that_are_no_objects_are_named_by_worker_alone_or_as_a_message() {
        let body = |text| parsed(&response("/x", &parts([Ok((200, text))]), ""));
        assert_eq!(body("null")["workers"][0]["answer"], Value::Null);
        assert_eq!(body("[true]")["workers"][0]["answer"], json!([true]));
        assert_eq!(body("Start recording.\n")["message"], "Start recording.");
    }

    #[test]
    fn a_worker_that_says_no_with_status_200_has_not_done_it() {
        for no in [
            r#"{"success":false}"#,
            "[true,false]",
            r#"{"updated":false}"#,
        ] {
            let response = response("/x", &parts([Ok((200, "[true]")), Ok((200, no))]), "");
            assert_eq!(response.status, 502, "{no}");
            let body = parsed(&response);
            let done: Vec<_> = [0, 1].map(|i| body["workers"][i]["done"].clone()).into();
            assert_eq!(done, [json!(true), json!(false)], "{no}");
            assert_eq!(body["success"], false);
        }
    }

    #[test]
    fn a_partial_failure_says_who_was_not_asked_and_what_was_rolled_back() {
        let mut parts = parts([Ok((200, "{}")), Err(unreachable())]);
        parts.push(Part::not_asked(Arc::new(Worker::for_tests(
            Role::Decode,
            3,
        ))));
        parts[0].note_undone(&result(Role::Decode, 1, Ok((200, "{}"))));
        let response = response("/pause_generation", &parts, "generation goes on");
        assert_eq!(response.status, 502);
        let body = parsed(&response);
        assert_eq!(
            body["error"]["message"],
            "1 of 3 workers did not do it: decode http://127.0.0.1:2 cannot be reached (refused); not asked: 1; \
             rolled back: 1; generation goes on"
        );
        assert_eq!(body["workers"][0]["rolled_back"], true);
        assert!(body["workers"][2]["status"].is_null());
    }
}
