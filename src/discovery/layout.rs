//! What a prefill worker says about its ranks and its prefix cache: asked for once when it becomes a member, and once when it
//! comes back.
//!
//! Source: SGLang 0.5.23 `srt/entrypoints/http_server.py` (`server_info`), `srt/arg_groups/serving_hook.py` (`load_balance_method`,
//! whose `auto` is `follow_bootstrap_room` on prefill workers) and `srt/runtime_context.py` (`num_dp_ranks_of`).

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::probe::fetch;
use crate::fleet::{Fleet, Layout, Worker};
use crate::net::Client;

/// The longest response, in bytes: a worker has 37 KB, and about half of it again for each rank.
const RESPONSE_LIMIT: usize = 64 << 20;

const PATH: &str = "/server_info";

/// Asks a worker for its layout where it is wanted and not known. A worker that does not respond is asked again
/// with its next probe.
pub(super) async fn ask(fleet: &Fleet, client: &Client, worker: &Worker, timeout: Duration) {
    if !fleet.wants_layout(worker) {
        return;
    }
    if let Some(layout) = of(client, worker, timeout).await {
        fleet.note_layout(worker, layout);
    }
}

/// The layout of a worker; `None` where it does not respond.
pub(super) async fn of(client: &Client, worker: &Worker, timeout: Duration) -> Option<Layout> {
    match fetch(client, worker, PATH, timeout, RESPONSE_LIMIT).await {
        Ok(Ok((StatusCode::OK, body))) => Some(read(&body)),
        // It does not tell: an older engine, or a key that is missing.
        Ok(Ok(_)) => Some(Layout::default()),
        _ => None,
    }
}

fn read(body: &[u8]) -> Layout {
    let info: Value = serde_json::from_slice(body).unwrap_or_default();
    let number = |pointer| info.pointer(pointer).and_then(Value::as_u64);
    let method = info.get("load_balance_method").and_then(Value::as_str);
    // Ranks that are not chosen by the room cannot be chosen here.
    let follows = matches!(method, None | Some("auto" | "follow_bootstrap_room"));
    let (replicas, groups) = (number("/dp_size"), number("/attn_dp_size"));
    let ranks = match (replicas, groups) {
        (Some(replicas), Some(groups)) => replicas.checked_mul(groups),
        (one, other) => one.or(other),
    };
    let ranks = ranks.filter(|_| follows);
    let ranks = ranks.and_then(|ranks| u32::try_from(ranks).ok());
    // A version that does not tell its groups counted them as `dp_size`.
    let has_groups = match groups {
        Some(groups) => groups > 1,
        None => info["enable_dp_attention"] != false,
    };
    // A cache that goes on in the memory of the host holds more than is told.
    let is_whole = info["enable_hierarchical_cache"] != true;
    let tokens = number("/max_total_num_tokens")
        .or_else(|| number("/internal_states/0/memory_usage/token_capacity"));
    Layout {
        ranks: ranks.unwrap_or(1),
        are_replicas: ranks > Some(1) && !has_groups,
        cache_tokens: tokens.filter(|_| is_whole),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_that_the_room_chooses_and_a_cache_is_one_that_is_whole() {
        let layout = |ranks, cache_tokens| Layout {
            ranks,
            are_replicas: false,
            cache_tokens,
        };
        let replicas = |ranks| Layout {
            are_replicas: true,
            ..layout(ranks, None)
        };
        for (body, expected) in [
            (
                r#"{"dp_size":4,"load_balance_method":"follow_bootstrap_room","max_total_num_tokens":8192}"#,
                layout(4, Some(8192)),
            ),
            (
                r#"{"dp_size":4,"internal_states":[{"memory_usage":{"token_capacity":100}}]}"#,
                layout(4, Some(100)),
            ),
            (
                r#"{"dp_size":4,"load_balance_method":"round_robin","max_total_num_tokens":8192}"#,
                layout(1, Some(8192)),
            ),
            (
                r#"{"dp_size":1,"enable_hierarchical_cache":true,"max_total_num_tokens":8192}"#,
                layout(1, None),
            ),
            (
                r#"{"dp_size":1,"attn_dp_size":8,"enable_dp_attention":true}"#,
                layout(8, None),
            ),
            (
                r#"{"dp_size":8,"enable_dp_attention":true}"#,
                layout(8, None),
            ),
            (
                r#"{"dp_size":1,"attn_dp_size":1,"enable_dp_attention":false}"#,
                layout(1, None),
            ),
            (
                r#"{"dp_size":2,"attn_dp_size":1,"enable_dp_attention":false}"#,
                replicas(2),
            ),
            (r#"{"dp_size":2,"enable_dp_attention":false}"#, replicas(2)),
            (
                r#"{"dp_size":2,"attn_dp_size":1,"load_balance_method":"round_robin"}"#,
                layout(1, None),
            ),
            (
                r#"{"dp_size":4294967296,"attn_dp_size":4294967296}"#,
                Layout::default(),
            ),
            (r#"{"dp_size":-4}"#, Layout::default()),
            (
                r#"{"dp_size":1e30,"max_total_num_tokens":"x"}"#,
                Layout::default(),
            ),
            ("[1]", Layout::default()),
            ("<html>", Layout::default()),
        ] {
            assert_eq!(read(body.as_bytes()), expected, "{body}");
        }
    }
}
