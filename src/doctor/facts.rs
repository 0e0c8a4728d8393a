//! The settings that a worker reports, read from its JSON. A field that is missing, as in other versions, is `None`.
//!
//! Source: SGLang 0.5.23 `entrypoints/http_server.py` (`server_info`, `model_info`), `server_args.py`,
//! `entrypoints/openai/serving_models.py` (`max_model_len`).

use serde_json::Value;

/// The settings that a worker reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `prefill`, `decode`, or `null` for an ordinary server.
    pub(super) mode: Option<String>,
    pub(super) version: Option<String>,
    pub(super) served_model_name: Option<String>,
    pub(super) model_path: Option<String>,
    /// The longest prompt and response together, in tokens.
    pub(super) context_length: Option<u64>,
    /// In tokens.
    pub(super) page_size: Option<u64>,
    pub(super) kv_cache_dtype: Option<String>,
    pub(super) transfer_backend: Option<String>,
    pub(super) allocation_policy: Option<String>,
    pub(super) sizes: Option<Sizes>,
    /// How a rank is chosen (`--load-balance-method`), with `auto` resolved.
    pub(super) load_balance_method: Option<String>,
    pub(super) bootstrap_port: Option<u16>,
    /// The address that the worker listens on (`--host`).
    pub(super) host: Option<String>,
    /// Whether prompts must be token ids (`--skip-tokenizer-init`).
    pub(super) takes_ids_only: bool,
    /// Whether it was started with `--admin-api-key`. Its value is not kept.
    pub(super) has_admin_key: bool,
    /// Requests that it generates for at once, over all its ranks.
    pub(super) max_running: Option<u64>,
}

/// The parallel sizes of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Tensor parallel.
    pub(super) tp: u64,
    /// Data parallel: replicas, or groups of attention.
    pub(super) dp: u64,
    /// Those of `dp` that are groups of attention.
    pub(super) attention_dp: u64,
    /// Pipeline parallel.
    pub(super) pp: u64,
    /// Context parallel, of attention.
    pub(super) cp: u64,
    /// The ranks over which the heads of attention are divided.
    pub(super) attention_tp: u64,
}

impl Facts {
    /// Reads `/server_info`, `/model_info` and `/v1/models`; `None` for one that was not answered. Where two say the same
    /// thing, `/model_info` is the newer: it follows a change of the weights or of the role.
    pub(super) fn read(
        server: Option<&Value>,
        model: Option<&Value>,
        list: Option<&Value>,
    ) -> Self {
        let [server, model, list] =
            [server, model, list].map(|value| value.unwrap_or(&Value::Null));
        let either = |key| text(model, key).or_else(|| text(server, key));
        let card = &list["data"][0];
        Self {
            mode: text(model, "disaggregation_mode")
                .or_else(|| text(&server["internal_states"][0], "disaggregation_mode"))
                .or_else(|| text(server, "disaggregation_mode")),
            version: text(server, "version"),
            served_model_name: either("served_model_name").or_else(|| text(card, "id")),
            model_path: either("model_path"),
            context_length: number(card, "max_model_len")
                .or_else(|| number(server, "context_length")),
            page_size: number(server, "page_size"),
            kv_cache_dtype: text(server, "kv_cache_dtype"),
            transfer_backend: text(server, "disaggregation_transfer_backend"),
            allocation_policy: text(server, "disaggregation_decode_allocation_policy"),
            sizes: Sizes::read(server),
            load_balance_method: text(server, "load_balance_method"),
            bootstrap_port: number(server, "disaggregation_bootstrap_port")
                .and_then(|port| port.try_into().ok()),
            host: text(server, "host"),
            takes_ids_only: server["skip_tokenizer_init"] == true,
            has_admin_key: text(server, "admin_api_key").is_some(),
            max_running: running(server),
        }
    }

    /// Whether the worker reports nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Sizes {
    /// Whether its data parallel ranks are replicas, of which each computes attention by itself.
    pub(super) fn are_replicas(self) -> bool {
        self.dp > 1 && self.attention_dp == 1
    }

    fn read(server: &Value) -> Option<Self> {
        let of = |key| number(server, key).filter(|size| *size > 0);
        let (tp, dp) = (of("tp_size")?, of("dp_size").unwrap_or(1));
        let cp = of("attn_cp_size").unwrap_or(1);
        // `dp_size` counts replicas only, where `attn_dp_size` is there to count the groups of attention.
        let (replicas, attention_dp) = match of("attn_dp_size") {
            Some(groups) => (dp, groups),
            None if server["enable_dp_attention"] == true => (1, dp),
            None => (dp, 1),
        };
        Some(Self {
            tp,
            dp: replicas.saturating_mul(attention_dp),
            attention_dp,
            pp: of("pp_size").unwrap_or(1),
            cp,
            attention_tp: (tp / attention_dp.saturating_mul(cp)).max(1),
        })
    }
}

/// The sum over the ranks; the limit of one server where the ranks say nothing.
fn running(server: &Value) -> Option<u64> {
    let states = server["internal_states"].as_array();
    let ranks = states.into_iter().flatten();
    let of_ranks: Option<u64> = ranks
        .map(|rank| number(rank, "effective_max_running_requests_per_dp"))
        .sum();
    of_ranks
        .filter(|requests| *requests > 0)
        .or_else(|| number(server, "max_running_requests"))
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}

fn number(value: &Value, key: &str) -> Option<u64> {
    value.get(key)?.as_u64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_facts_of_a_real_worker_are_read() {
        let server = json!({"version":"0.5.23","disaggregation_mode":"null","served_model_name":"old","model_path":"/m",
            "context_length":null,"page_size":1,"kv_cache_dtype":"auto","disaggregation_transfer_backend":"mooncake",
            "disaggregation_decode_allocation_policy":"early","tp_size":8,"dp_size":4,"pp_size":1,"attn_cp_size":1,
            "enable_dp_attention":true,"load_balance_method":"follow_bootstrap_room","disaggregation_bootstrap_port":31900,"host":"127.0.0.1",
            "skip_tokenizer_init":false,"admin_api_key":"secret","max_running_requests":16,
            "internal_states":[{"effective_max_running_requests_per_dp":4},{"effective_max_running_requests_per_dp":4}]});
        let model = json!({"disaggregation_mode":"prefill","served_model_name":"tiny"});
        let list = json!({"data":[{"id":"tiny","max_model_len":2048}]});
        let facts = Facts::read(Some(&server), Some(&model), Some(&list));
        assert!(!format!("{facts:?}").contains("secret"));
        let sizes = Sizes {
            tp: 8,
            dp: 4,
            attention_dp: 4,
            pp: 1,
            cp: 1,
            attention_tp: 2,
        };
        let text = |text: &str| Some(text.to_owned());
        let expected = Facts {
            mode: text("prefill"),
            version: text("0.5.23"),
            served_model_name: text("tiny"),
            model_path: text("/m"),
            context_length: Some(2048),
            page_size: Some(1),
            kv_cache_dtype: text("auto"),
            transfer_backend: text("mooncake"),
            allocation_policy: text("early"),
            sizes: Some(sizes),
            load_balance_method: text("follow_bootstrap_room"),
            bootstrap_port: Some(31900),
            host: text("127.0.0.1"),
            takes_ids_only: false,
            has_admin_key: true,
            max_running: Some(8),
        };
        assert_eq!(facts, expected);
    }

    #[test]
    fn ranks_are_replicas_or_groups_of_attention() {
        for (server, expected) in [
            (
                json!({"tp_size":8,"dp_size":1,"attn_dp_size":4,"enable_dp_attention":true}),
                (4, 4, 2),
            ),
            (
                json!({"tp_size":8,"dp_size":4,"enable_dp_attention":true}),
                (4, 4, 2),
            ),
            (
                json!({"tp_size":8,"dp_size":4,"attn_dp_size":1,"enable_dp_attention":false}),
                (4, 1, 8),
            ),
            (
                json!({"tp_size":8,"dp_size":4,"enable_dp_attention":false}),
                (4, 1, 8),
            ),
            (json!({"tp_size":8}), (1, 1, 8)),
        ] {
            let sizes = Sizes::read(&server);
            let found = sizes.map(|sizes| (sizes.dp, sizes.attention_dp, sizes.attention_tp));
            assert_eq!(found, Some(expected), "{server}");
        }
    }

    #[test]
    fn strange_answers_have_no_facts() {
        for value in [
            json!(null),
            json!([1]),
            json!("x"),
            json!({"tp_size":0,"page_size":-1,"host":5}),
        ] {
            let facts = Facts::read(Some(&value), Some(&value), Some(&value));
            assert!(facts.is_empty(), "{value}");
        }
        assert!(Facts::read(None, None, None).is_empty());
    }
}
