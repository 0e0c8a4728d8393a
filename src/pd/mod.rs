//! The prefill/decode protocol as pure functions: bytes in, bytes out.
//!
//! What lives here: the engine's protocol ([`Engine`], which asks [`sglang`] or [`vllm`]), and the parts that all engines share: a JSON
//! scanner ([`json`]), the events of a stream ([`sse`]), the verdict on the two legs of a request ([`verdict`]), the facts
//! for a policy ([`RoutingKey`], [`Prefix`]), and the tokens that a worker reports ([`Usage`]). What may not: a socket, a clock, randomness, a log line. All of it is tested as
//! values in and values out.

mod engine;
mod facts;
pub mod json;
mod prefix;
mod routing;
pub mod sglang;
pub mod sse;
mod usage;
pub mod verdict;
pub mod vllm;

pub use engine::Engine;
pub use facts::{Batch, Facts, Merge, Rid};
pub use prefix::{BLOCK_BYTES, Prefix};
pub use routing::{RoutingKey, named_rank, named_session, tokens_to_come};
pub use sglang::{
    Bootstrap, ErrorShape, Fields, Gather, GatherError, GatherFault, GatherStream, Injected,
    Invalid, MergeError, PrefillData, Refusal, RequestId, RequestIds, ResponseIdSearch, Room,
    StreamEnd, StreamError, StreamMerger, WorkerError, bootstrap, document_error, inject, merge,
    parse, previous_response, request, stream_error, tail_reserve,
};
pub use sse::{Boundary, EventTooLong, Splitter};
pub use usage::Usage;
pub use verdict::{Leg, Order, RequestState, RetryRules, Verdict};
pub use vllm::{KvEngines, Params, TransferId};

use std::fmt;

/// The endpoints that need a pair.
///
/// Source: SGLang 0.5.23, `srt/entrypoints/http_server.py` and `srt/entrypoints/openai/protocol.py`
/// (`PDRoutingFields`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// The engine's own: SGLang's `/generate`, vLLM's `/inference/v1/generate`.
    Generate,
    /// `/v1/chat/completions`.
    ChatCompletions,
    /// `/v1/completions`.
    Completions,
    /// `/v1/responses`.
    Responses,
    /// Anthropic's `/v1/messages`.
    Messages,
}

impl Route {
    /// Every route, in the order of the documentation.
    pub const ALL: [Self; 5] = [
        Self::Generate,
        Self::ChatCompletions,
        Self::Completions,
        Self::Responses,
        Self::Messages,
    ];

    /// The route of a path of SGLang without its query, see [`Engine::route`].
    pub fn find(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.path() == path)
    }

    /// The path on the wire with SGLang, see [`Engine::path`].
    pub const fn path(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    /// A constant label for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::ChatCompletions => "chat_completions",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Messages => "messages",
        }
    }
}

/// The role of a worker in a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Computes the prompt and the first token.
    Prefill,
    /// Generates the rest.
    Decode,
}

impl Role {
    /// `prefill` or `decode`, for logs, labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }

    /// The role with this name.
    pub fn named(name: &str) -> Option<Role> {
        [Role::Prefill, Role::Decode]
            .into_iter()
            .find(|role| role.name() == name)
    }

    /// Prefill for decode, and decode for prefill.
    pub fn other(self) -> Role {
        match self {
            Role::Prefill => Role::Decode,
            Role::Decode => Role::Prefill,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_found_by_its_exact_path_only() {
        for route in Route::ALL {
            assert_eq!(Route::find(route.path()), Some(route));
        }
        for path in [
            "",
            "/",
            "/generate/",
            "/Generate",
            "/v1/completions?x",
            "/v1/embeddings",
        ] {
            assert_eq!(Route::find(path), None, "{path}");
        }
    }
}
