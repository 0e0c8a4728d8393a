//! `/server_info` of all workers in one response, in the shape that SGLang's benchmarks read.
//!
//! Values in, values out. [`redact`] masks the secrets in each worker's part first.
//! Source: SGLang 0.5.23 `benchmark/one_batch_server.py` (`tokenizer_path` at the top or in `prefill[0]`,
//! `internal_states`), `benchmark/serving.py` (`decode[0].internal_states[0]`).

use serde_json::{Value, json};

use super::call::CallResult;
use super::redact::redact;
use crate::fleet::Role;

/// Every worker's response under its role, and the states of all decode ranks in `internal_states`. A worker without a
/// response has an entry with its error, so that the order is the fleet's.
pub(super) fn merged(results: &[CallResult]) -> Value {
    let of = |role| {
        results
            .iter()
            .filter(move |result| result.worker.role() == role)
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

fn entry(result: &CallResult) -> Value {
    match result.json() {
        Ok(mut info) => {
            redact(&mut info);
            info
        }
        Err(why) => {
            let mut entry = json!({"url": result.worker.url(), "error": why});
            if let Ok(response) = &result.outcome {
                entry["status"] = response.status.as_u16().into();
            }
            entry
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fanout::tests::{result, unreachable};
    use super::*;

    #[test]
    fn the_states_of_decode_stand_at_the_top_and_every_response_under_its_role() {
        let prefill = r#"{"tokenizer_path":"/m","internal_states":[{"p":1}]}"#;
        let first = r#"{"version":"0.5.23","internal_states":[{"effective_max_running_requests_per_dp":16},{"d":1.50}]}"#;
        let second = r#"{"internal_states":[{"last_gen_throughput":1e400}]}"#;
        let merged = merged(&[
            result(Role::Prefill, 1, Ok((200, prefill))),
            result(Role::Decode, 2, Ok((200, first))),
            result(Role::Decode, 3, Err(unreachable())),
            result(Role::Decode, 4, Ok((200, second))),
            result(Role::Decode, 5, Ok((503, ""))),
        ]);
        let keys: Vec<_> = merged
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys, ["internal_states", "prefill", "decode"]);
        // Numbers keep their digits, even those out of the range of a float.
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
        let info = r#"{"api_key":"sk-1","launch_command":"--api-key sk-1","internal_states":[{"api_key":"sk-1"}]}"#;
        let merged = merged(&[result(Role::Decode, 1, Ok((200, info)))]).to_string();
        assert!(!merged.contains("sk-1"), "{merged}");
    }
}
