//! `/v1/loads` of every worker in one response of the same form, so that a reader of one worker can read the fleet.
//!
//! Source: SGLang 0.5.23 `entrypoints/v1_loads.py` (a worker's response has one load for each data parallel rank).

use serde_json::{Map, Value};

use super::call::CallResult;
use crate::fleet::Worker;

/// The field with the number of a worker's accelerators.
const ACCELERATORS: &str = "num_accelerators";

/// The fields of the first response, with `num_accelerators` of all workers; `loads`, every load of every worker with
/// the `role` and the `url` of its worker; and `workers`, the report and the whole response of each worker.
pub(super) fn merged(results: &[CallResult]) -> Value {
    let mut merged = Map::new();
    let mut workers = Vec::with_capacity(results.len());
    let mut loads = Vec::new();
    let mut accelerators = None;
    for result in results {
        let mut entry = result.report();
        match result.json() {
            Ok(answer) => {
                loads.extend(loads_of(&answer).map(|load| with_worker(load, &result.worker)));
                if let Some(own) = answer.get(ACCELERATORS).and_then(Value::as_u64) {
                    accelerators = Some(own.saturating_add(accelerators.unwrap_or(0)));
                }
                if merged.is_empty() {
                    merged.extend(answer.as_object().cloned().unwrap_or_default());
                }
                entry["answer"] = answer;
            }
            Err(why) => entry["error"] = why.into(),
        }
        workers.push(entry);
    }
    if let Some(accelerators) = accelerators {
        merged.insert(ACCELERATORS.to_owned(), accelerators.into());
    }
    merged.insert("loads".to_owned(), loads.into());
    merged.insert("workers".to_owned(), workers.into());
    Value::Object(merged)
}

/// Whether the query asks for the Prometheus text format, which cannot be merged.
pub(super) fn wants_text(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair == "format=prometheus"))
}

fn loads_of(answer: &Value) -> impl Iterator<Item = &Map<String, Value>> {
    let loads = answer.get("loads").and_then(Value::as_array);
    loads.into_iter().flatten().filter_map(Value::as_object)
}

fn with_worker(load: &Map<String, Value>, worker: &Worker) -> Value {
    let mut with_worker = Map::with_capacity(load.len() + 2);
    with_worker.insert("role".to_owned(), worker.role().name().into());
    with_worker.insert("url".to_owned(), worker.url().into());
    with_worker.extend(load.iter().map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(with_worker)
}

#[cfg(test)]
mod tests {
    use super::super::fanout::tests::{result, unreachable};
    use super::*;
    use crate::fleet::Role;

    #[test]
    fn every_load_names_its_worker_and_keeps_its_digits() {
        let body = r#"{"version":"0.5.23","loads":[{"dp_rank":0,"token_usage":0.10},{"dp_rank":1,"token_usage":123456789012345678901234567890}]}"#;
        let merged = merged(&[
            result(Role::Prefill, 1, Ok((200, body))),
            result(Role::Decode, 2, Err(unreachable())),
            result(Role::Decode, 3, Ok((401, r#"{"error":"Unauthorized"}"#))),
            result(Role::Decode, 4, Ok((200, "# TYPE x gauge"))),
        ]);
        assert_eq!(
            merged["loads"].to_string(),
            concat!(
                r#"[{"role":"prefill","url":"http://127.0.0.1:1","dp_rank":0,"token_usage":0.10},"#,
                r#"{"role":"prefill","url":"http://127.0.0.1:1","dp_rank":1,"token_usage":123456789012345678901234567890}]"#
            )
        );
        assert_eq!(merged["workers"][0]["answer"].to_string(), body);
        assert_eq!(merged["workers"][1]["error"], "cannot be reached (refused)");
        assert_eq!(merged["workers"][2]["status"], 401);
        assert_eq!(merged["workers"][2]["error"], r#"{"error":"Unauthorized"}"#);
        assert!(merged["workers"][3]["error"].is_string());
    }

    #[test]
    fn the_response_has_the_form_of_a_workers_own() {
        let of = |role, port, body| result(role, port, Ok((200, body)));
        let merged = merged(&[
            result(Role::Prefill, 1, Err(unreachable())),
            of(
                Role::Prefill,
                2,
                r#"{"timestamp":"t","version":"0.5.23","accelerator":null,"num_accelerators":8,"loads":[{"dp_rank":0}]}"#,
            ),
            of(
                Role::Decode,
                3,
                r#"{"timestamp":"u","version":"0.5.24","num_accelerators":4,"loads":[{"dp_rank":0}]}"#,
            ),
            of(Role::Decode, 4, r#"{"loads":"none"}"#),
        ]);
        let text = merged.to_string();
        let begins = concat!(
            r#"{"timestamp":"t","version":"0.5.23","accelerator":null,"num_accelerators":12,"loads":["#,
            r#"{"role":"prefill","url":"http://127.0.0.1:2","dp_rank":0},"#,
            r#"{"role":"decode","url":"http://127.0.0.1:3","dp_rank":0}],"workers":["#
        );
        assert!(text.starts_with(begins), "{text}");
        assert_eq!(merged["workers"][2]["answer"]["version"], "0.5.24");
    }

    #[test]
    fn prometheus_text_is_recognised_by_the_query() {
        assert!(wants_text(Some("include=core&format=prometheus")));
        for other in [
            None,
            Some(""),
            Some("format=json"),
            Some("include=format=prometheus"),
        ] {
            assert!(!wants_text(other), "{other:?}");
        }
    }
}
