//! vLLM's prefill/decode protocol: prefill's whole response first, then decode with the parameters from it (NIXL), or with those
//! that the balancer has made (`mooncake`).
//!
//! What lives here: which requests need a prefill worker, the body of each step, the parameters in prefill's response,
//! and how a worker reports a failure. The stream of a response ends as SGLang's does, and the balancer's own errors have
//! the shapes that OpenAI's and Anthropic's clients read, so that neither is here.
//!
//! Source: vLLM 0.32.0 with its NixlConnector (`vllm/entrypoints/`, `vllm/distributed/kv_transfer/`), and bytes captured from its
//! servers under `tests/fixtures/vllm-0.32.0/`.

mod mooncake;
mod outcome;
mod params;
mod request;
mod steps;

pub use mooncake::{KvEngines, TransferId, keeps_blocks};
pub use outcome::{is_preamble, stream_error};
pub use params::{Params, params};
pub use request::parse;
pub use steps::{Steps, decode_body, prefill_body};

use super::Route;

/// The path of vLLM's own endpoint for token ids. Source: vLLM 0.32.0, `entrypoints/serve/disagg/`.
const GENERATE: &str = "/inference/v1/generate";

/// A list of chats, each of which is a prompt: else it is as `/v1/chat/completions`.
const CHAT_BATCH: &str = "/v1/chat/completions/batch";

/// The route of a path without its query.
pub fn find(path: &str) -> Option<Route> {
    if path == CHAT_BATCH {
        return Some(Route::ChatCompletions);
    }
    Route::ALL
        .into_iter()
        .find(|route| self::path(*route) == path)
}

/// The path of a route on the wire.
pub const fn path(route: Route) -> &'static str {
    match route {
        Route::Generate => GENERATE,
        other => other.path(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_own_endpoint_is_the_one_for_token_ids() {
        assert_eq!(find("/inference/v1/generate"), Some(Route::Generate));
        assert_eq!(find("/generate"), None);
        assert_eq!(find("/v1/messages"), Some(Route::Messages));
        assert_eq!(find(CHAT_BATCH), Some(Route::ChatCompletions));
    }
}
