//! `/server_info` of a pair of pools in one answer, in the shape that SGLang's benchmarks read.
//!
//! Values in, values out. Secrets are taken out by [`redact`](super::redact) before they come together.
//! Source: SGLang 0.5.23 `benchmark/one_batch_server.py` (`tokenizer_path` at the top or in `prefill[0]`,
//! `internal_states`), `benchmark/serving.py` (`decode[0].internal_states[0]`).

use serde_json::{Value, json};

use super::ask::Asked;
use super::redact::redact;
use crate::fleet::Role;

/// Every worker's whole answer under its role, and the states of decode's ranks at the top. A worker without
/// an answer keeps its place, so that the order is the fleet's.
pub(super) fn merged(asked: &[Asked]) -> Value {
    let of = |role| {
        asked
            .iter()
            .filter(move |one| one.worker.role() == role)
            .map(entry)
            .collect::<Vec<Value>>()
    };
    let (prefill, decode) = (of(Role::Prefill), of(Role::Decode));
    let internal_states: Vec<&Value> = decode
        .iter()
        .filter_map(|worker| worker.get("internal_states")?.as_array())
        .flatten()
        .collect();
    json!({"internal_states": internal_states, "prefill": prefill, "decode": decode})
}

fn entry(asked: &Asked) -> Value {
    match asked.json() {
        Ok(mut answer) => {
            redact(&mut answer);
            answer
        }
        Err(why) => {
            let mut entry = json!({"url": asked.worker.url(), "error": why});
            if let Ok(answer) = &asked.outcome {
                entry["status"] = answer.status.as_u16().into();
            }
            entry
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fanout::tests::{asked, gone};
    use super::*;

    #[test]
    fn decodes_states_stand_at_the_top_and_every_answer_under_its_role() {
        let prefill = r#"{"tokenizer_path":"/m","internal_states":[{"p":1}]}"#;
        let first = r#"{"version":"0.5.23","internal_states":[{"effective_max_running_requests_per_dp":16},{"d":1.50}]}"#;
        let second = r#"{"internal_states":[{"last_gen_throughput":1e400}]}"#;
        let merged = merged(&[
            asked(Role::Prefill, 1, Ok((200, prefill))),
            asked(Role::Decode, 2, Ok((200, first))),
            asked(Role::Decode, 3, Err(gone())),
            asked(Role::Decode, 4, Ok((200, second))),
            asked(Role::Decode, 5, Ok((503, ""))),
        ]);
        let keys: Vec<_> = merged
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys, ["internal_states", "prefill", "decode"]);
        // Digits survive, also those that no float can hold.
        assert_eq!(
            merged["internal_states"].to_string(),
            r#"[{"effective_max_running_requests_per_dp":16},{"d":1.50},{"last_gen_throughput":1e+400}]"#
        );
        assert_eq!(merged["prefill"][0].to_string(), prefill);
        assert_eq!(merged["decode"][0].to_string(), first);
        assert_eq!(
            merged["decode"][1],
            json!({"url": "http://127.0.0.1:3", "error": "cannot be reached (refused)"})
        );
        assert_eq!(merged["decode"][3]["status"], 503);
    }

    #[test]
    fn a_key_does_not_pass_through() {
        let answer = r#"{"api_key":"sk-1","launch_command":"--api-key sk-1","internal_states":[{"api_key":"sk-1"}]}"#;
        let merged = merged(&[asked(Role::Decode, 1, Ok((200, answer)))]).to_string();
        assert!(!merged.contains("sk-1"), "{merged}");
    }
}
