//! `/v1/loads` of every worker in one answer, so that a reader sees the whole fleet in one list.
//!
//! Source: SGLang 0.5.23 `entrypoints/v1_loads.py` (a worker's answer has one load for each data parallel rank).

use serde_json::{Map, Value, json};

use super::ask::Asked;
use crate::fleet::Worker;

/// `workers`: each worker with its whole answer; `loads`: every load of every worker, with the role and the
/// address of its worker in it.
pub(super) fn merged(asked: &[Asked]) -> Value {
    let mut workers = Vec::with_capacity(asked.len());
    let mut loads = Vec::new();
    for one in asked {
        let mut entry = one.report();
        match one.json() {
            Ok(answer) => {
                loads.extend(loads_of(&answer).map(|load| named(load, &one.worker)));
                entry["answer"] = answer;
            }
            Err(why) => entry["error"] = why.into(),
        }
        workers.push(entry);
    }
    json!({"workers": workers, "loads": loads})
}

/// Whether the query asks for Prometheus' text format, which has no place for several workers.
pub(super) fn wants_text(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair == "format=prometheus"))
}

fn loads_of(answer: &Value) -> impl Iterator<Item = &Map<String, Value>> {
    let loads = answer.get("loads").and_then(Value::as_array);
    loads.into_iter().flatten().filter_map(Value::as_object)
}

fn named(load: &Map<String, Value>, worker: &Worker) -> Value {
    let mut named = Map::with_capacity(load.len() + 2);
    named.insert("role".to_owned(), worker.role().name().into());
    named.insert("url".to_owned(), worker.url().into());
    named.extend(load.iter().map(|(key, value)| (key.clone(), value.clone())));
    Value::Object(named)
}

#[cfg(test)]
mod tests {
    use super::super::fanout::tests::{asked, gone};
    use super::*;
    use crate::fleet::Role;

    #[test]
    fn every_load_names_its_worker_and_keeps_its_digits() {
        let body = r#"{"version":"0.5.23","loads":[{"dp_rank":0,"token_usage":0.10},{"dp_rank":1,"token_usage":123456789012345678901234567890}]}"#;
        let merged = merged(&[
            asked(Role::Prefill, 1, Ok((200, body))),
            asked(Role::Decode, 2, Err(gone())),
            asked(Role::Decode, 3, Ok((401, r#"{"error":"Unauthorized"}"#))),
            asked(Role::Decode, 4, Ok((200, "# TYPE x gauge"))),
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
