//! Mooncake's connector: prefill sends the blocks to the decode worker that asks for them under the id of the transfer, which
//! the balancer chooses.
//!
//! What lives here: that id, what prefill's bootstrap server tells of its engine, and the parameters of both steps. The bodies
//! around them are those of [`super::steps`]. vLLM takes the steps in any order and at once; here prefill's is first as with
//! NIXL, because only its response tells whether there are blocks that decode may ask for: a prompt that ends by a stop token has
//! none.
//!
//! Source: vLLM 0.32.0, `distributed/kv_transfer/kv_connector/v1/mooncake/` (`mooncake_connector.py`, `request_finished`;
//! `mooncake_utils.py`, `/query`).

use bytes::Bytes;
use serde_json::Value;

use super::super::Route;
use super::Params;

/// The id of one transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferId(String);

impl TransferId {
    /// The id with these bits, which no other request may have.
    pub fn new(bits: u128) -> Self {
        Self(format!("xfer-{bits:032x}"))
    }

    /// What asks prefill for the blocks, as the text of a JSON object.
    pub(super) fn asks(&self) -> String {
        format!(
            r#"{{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"{}"}}"#,
            self.0
        )
    }
}

/// The ids of a prefill worker's engines, each with its data parallel rank. A worker that is started again has others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEngines(Vec<(u32, String)>);

impl KvEngines {
    /// Reads the response of a bootstrap server to `/query`; `None` where it names no engine.
    pub fn read(response: &[u8]) -> Option<Self> {
        let told: Value = serde_json::from_slice(response).ok()?;
        let of_rank = |(rank, entry): (&String, &Value)| {
            let id = entry.get("engine_id")?.as_str()?;
            Some((rank.parse().ok()?, id.to_owned()))
        };
        let engines: Vec<_> = told.as_object()?.iter().filter_map(of_rank).collect();
        (!engines.is_empty()).then_some(Self(engines))
    }

    /// The parameters that make decode ask for the blocks of this transfer, at the bootstrap server `http://HOST:PORT`. `rank`
    /// is the one that the client has named; without it a worker with several ranks has none to ask.
    pub fn params(
        &self,
        bootstrap: &str,
        rank: Option<u32>,
        transfer: &TransferId,
    ) -> Option<Params> {
        let engine = match (rank, &self.0[..]) {
            (None, [(_, only)]) => only,
            (None, _) => return None,
            (Some(rank), all) => &all.iter().find(|(of, _)| *of == rank)?.1,
        };
        let text = format!(
            r#"{{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":{},"remote_engine_id":{},"transfer_id":"{}"}}"#,
            Value::from(bootstrap),
            Value::from(engine.as_str()),
            transfer.0,
        );
        Some(Params(Bytes::from(text)))
    }
}

/// Whether prefill keeps the blocks of a prompt to which it has responded with this document: it was the limit of tokens that
/// ended it, and nothing else.
pub fn keeps_blocks(route: Route, response: &[u8]) -> bool {
    let Ok(response) = serde_json::from_slice::<Value>(response) else {
        return false;
    };
    match route {
        Route::ChatCompletions | Route::Completions | Route::Generate => {
            response["choices"][0]["finish_reason"] == "length"
        }
        Route::Messages => response["stop_reason"] == "max_tokens",
        Route::Responses => response["status"] == "incomplete",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// As vLLM 0.32.0 with Mooncake 0.3.13 has answered.
    const QUERY: &str = r#"{"0":{"engine_id":"35864234-7f1f-4568-a40a-d1c02093a5d6","worker_addr":{"0":{"0":"tcp://127.0.0.1:46073"}}}}"#;

    #[test]
    fn both_steps_name_the_transfer_and_decode_s_names_the_engine() {
        let transfer = TransferId::new(0xa63f);
        let asks: Value = serde_json::from_str(&transfer.asks()).unwrap();
        let engines = KvEngines::read(QUERY.as_bytes()).unwrap();
        let params = engines.params("http://[::1]:8998", None, &transfer);
        let params: Value = serde_json::from_slice(params.unwrap().text()).unwrap();
        assert_eq!(asks["transfer_id"], params["transfer_id"]);
        assert_eq!(
            params,
            serde_json::json!({
                "do_remote_decode": false,
                "do_remote_prefill": true,
                "remote_bootstrap_addr": "http://[::1]:8998",
                "remote_engine_id": "35864234-7f1f-4568-a40a-d1c02093a5d6",
                "transfer_id": "xfer-0000000000000000000000000000a63f",
            })
        );
    }

    #[test]
    fn of_several_ranks_the_named_one_is_asked() {
        let two =
            r#"{"0":{"engine_id":"a","worker_addr":{}},"1":{"engine_id":"b","worker_addr":{}}}"#;
        let engines = KvEngines::read(two.as_bytes()).unwrap();
        let transfer = TransferId::new(1);
        let engine = |rank| {
            let params = engines.params("http://h:1", rank, &transfer)?;
            let params: Value = serde_json::from_slice(params.text()).unwrap();
            Some(params["remote_engine_id"].as_str().unwrap().to_owned())
        };
        assert_eq!(engine(Some(1)).as_deref(), Some("b"));
        assert_eq!((engine(Some(2)), engine(None)), (None, None));
    }

    #[test]
    fn a_server_that_names_no_engine_is_none() {
        for response in ["{}", "[]", "", r#"{"0":{}}"#, r#"{"detail":"Not Found"}"#] {
            assert_eq!(KvEngines::read(response.as_bytes()), None, "{response}");
        }
    }

    #[test]
    fn only_a_prompt_that_the_limit_has_ended_has_blocks() {
        for (route, kept, freed) in [
            (
                Route::ChatCompletions,
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/chat.json"),
                r#"{"choices":[{"finish_reason":"stop"}]}"#,
            ),
            (
                Route::Completions,
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/completions.json"),
                r#"{"choices":[{"finish_reason":"stop"}]}"#,
            ),
            (
                Route::Generate,
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/generate.json"),
                r#"{"choices":[]}"#,
            ),
            (
                Route::Responses,
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/responses.json"),
                r#"{"status":"completed"}"#,
            ),
            (
                Route::Messages,
                include_str!("../../../tests/fixtures/vllm-0.32.0/prefill/messages.json"),
                r#"{"stop_reason":"end_turn"}"#,
            ),
        ] {
            assert!(keeps_blocks(route, kept.as_bytes()), "{}", route.name());
            assert!(!keeps_blocks(route, freed.as_bytes()), "{}", route.name());
        }
        assert!(!keeps_blocks(Route::ChatCompletions, b"no document"));
    }
}
