//! `kv_transfer_params`: what a request asks of the KV transfer, and what prefill answers.
//!
//! Source: transcripts 01 to 23; vLLM 0.32.0, `kv_connector/v1/nixl/pull_scheduler.py`.

use std::sync::Arc;

use serde_json::Value;

use super::{Connector, errors, mooncake};
use crate::sim::errors::Failure;
use crate::sim::render::string;

/// The part of one item in a KV transfer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Transfer {
    /// None: the worker computes the prompt for itself.
    #[default]
    Alone,
    /// `do_remote_decode`: the blocks are held for a decode worker.
    Hold,
    /// The same with Mooncake: for the decode worker that names this transfer.
    HoldFor(Arc<str>),
    /// `do_remote_prefill`: the blocks are another worker's.
    Pull(Arc<Remote>),
    /// `do_remote_prefill` without the names of blocks.
    Nameless,
}

/// The blocks of a prompt on another worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Remote {
    /// None with Mooncake, where prefill knows them by the request.
    pub(crate) blocks: Vec<u64>,
    pub(crate) engine_id: String,
    /// With Mooncake the transfer.
    pub(crate) request_id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Number of tokens in the blocks.
    pub(crate) tokens: usize,
    /// Tokens that prefill had in its cache; none when it computed more than one token.
    pub(crate) cached_tokens: Option<usize>,
}

impl Remote {
    /// `host:port` of the side channel, with brackets for IPv6.
    pub(crate) fn address(&self) -> String {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        match bare.contains(':') {
            true => format!("[{bare}]:{}", self.port),
            false => format!("{bare}:{}", self.port),
        }
    }

    fn of(params: &Value) -> Option<Remote> {
        let text = |name: &str| Some(params.get(name)?.as_str()?.to_owned());
        let groups = params.get("remote_block_ids")?.as_array()?;
        let blocks = groups
            .iter()
            .flat_map(|group| group.as_array().into_iter().flatten())
            .filter_map(Value::as_u64);
        let size = |name: &str| usize::try_from(params.get(name)?.as_u64()?).ok();
        Some(Remote {
            blocks: blocks.collect(),
            engine_id: text("remote_engine_id")?,
            request_id: text("remote_request_id")?,
            host: text("remote_host")?,
            port: params.get("remote_port")?.as_u64()?.try_into().ok()?,
            tokens: size("remote_num_tokens").unwrap_or(usize::MAX),
            cached_tokens: size("remote_prefill_cached_tokens"),
        })
    }

    /// The params as prefill answers them.
    pub(crate) fn json(&self) -> String {
        let blocks: Vec<String> = self.blocks.iter().map(u64::to_string).collect();
        let cached = self.cached_tokens.map_or(String::new(), |tokens| {
            format!(",\"remote_prefill_cached_tokens\":{tokens}")
        });
        format!(
            "{{\"do_remote_prefill\":true,\"do_remote_decode\":false,\"remote_block_ids\":[[{}]],\
             \"remote_engine_id\":{},\"remote_request_id\":{},\"remote_host\":{},\"remote_port\":{},\"tp_size\":1,\
             \"dcp_size\":1,\"pp_size\":1,\"remote_num_tokens\":{},\"remote_blocks_expiry_time\":null,\
             \"transfer_mode\":\"pull\"{cached}}}",
            blocks.join(","),
            string(&self.engine_id),
            string(&self.request_id),
            string(&self.host),
            self.port,
            self.tokens,
        )
    }
}

/// The params of a request's body.
///
/// # Errors
/// When they are no object.
pub(super) fn of(body: &Value, connector: Connector) -> Result<Transfer, Failure> {
    let params = match body.get("kv_transfer_params") {
        None | Some(Value::Null) => return Ok(Transfer::Alone),
        Some(params @ Value::Object(_)) => params,
        Some(other) => {
            let entry = errors::entry(
                "dict_type",
                "body.kv_transfer_params",
                "Input should be a valid dictionary",
                other,
            );
            return Err(errors::validation(&[entry], "body.kv_transfer_params"));
        }
    };
    let wants = |name: &str| params.get(name) == Some(&Value::Bool(true));
    let remote = match connector {
        Connector::Nixl => Remote::of,
        Connector::Mooncake => mooncake::remote,
    };
    Ok(
        match (wants("do_remote_prefill"), wants("do_remote_decode")) {
            (true, _) => remote(params).map_or(Transfer::Nameless, |remote| {
                Transfer::Pull(Arc::new(remote))
            }),
            (false, true) if connector == Connector::Mooncake => mooncake::hold(params),
            (false, true) => Transfer::Hold,
            (false, false) => Transfer::Alone,
        },
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    /// The params of transcript 01, as prefill answered them.
    const CAPTURED: &str = r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2,3,4]],"remote_engine_id":"69c818dd-ff01-45ab-8949-85ee725c8fda","remote_request_id":"chatcmpl-8e2f942c4e175c46-a830a8aa","remote_host":"127.0.0.1","remote_port":35500,"tp_size":1,"dcp_size":1,"pp_size":1,"remote_num_tokens":100,"remote_blocks_expiry_time":null,"transfer_mode":"pull","remote_prefill_cached_tokens":0}"#;

    #[test]
    fn params_are_written_as_they_were_read() {
        let body = format!("{{\"kv_transfer_params\":{CAPTURED}}}");
        let body: Value = serde_json::from_str(&body).unwrap();
        let Transfer::Pull(remote) = of(&body, Connector::Nixl).unwrap() else {
            unreachable!("the params name blocks")
        };
        assert_eq!(remote.json(), CAPTURED);
        assert_eq!(remote.address(), "127.0.0.1:35500");
    }

    #[test]
    fn the_two_requests_are_told_apart() {
        for (params, transfer) in [
            (json!(null), Transfer::Alone),
            (json!({}), Transfer::Alone),
            (
                json!({"do_remote_decode":true,"do_remote_prefill":false}),
                Transfer::Hold,
            ),
            (json!({"do_remote_prefill":true}), Transfer::Nameless),
        ] {
            let body = json!({"kv_transfer_params":params});
            assert_eq!(of(&body, Connector::Nixl), Ok(transfer));
        }
        assert!(of(&json!({"kv_transfer_params":"x"}), Connector::Nixl).is_err());
    }
}
