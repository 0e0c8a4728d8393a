//! The body of each step, spliced out of the client's own bytes.
//!
//! What lives here: what a body leaves out and what it gets instead, and the splice. What may not: the reading of the
//! client's body, see [`super::request`].
//!
//! Source: vLLM 0.32.0, `distributed/kv_transfer/kv_connector/v1/nixl/` (`do_remote_decode`), and what its servers refuse:
//! `stream_options` without `stream`, and `min_tokens` above `max_tokens`.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::super::{Facts, Route};
use super::{Params, TransferId};

/// The field of the parameters, in requests and responses.
pub(super) const PARAMS: &str = "kv_transfer_params";

/// What asks prefill for them. The nulls are customary, and old versions look for them.
const ASKS_FOR_PARAMS: &str = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;

/// How the bodies of the steps are made of the client's body.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// What no worker may get from the client: spans of its body, in order.
    pub(super) client: Without,
    /// Prefill's body; `None` where decode computes the prompt.
    pub(super) prefill: Option<PrefillBody>,
}

/// A body without some of its members.
#[derive(Clone, Debug, Default)]
pub(super) struct Without {
    /// The spans that are left out, in order and without overlap.
    pub(super) spans: Vec<Range<usize>>,
    /// Whether no member of the object stays.
    pub(super) leaves_nothing: bool,
}

/// The body of prefill's step.
#[derive(Clone, Debug, Default)]
pub(super) struct PrefillBody {
    pub(super) without: Without,
    /// The closing braces of objects inside the body that get the limit of tokens, each with whether it becomes their only
    /// member.
    pub(super) limits: Vec<(usize, bool)>,
}

impl Steps {
    /// Whether a prefill worker computes the prompt.
    pub fn needs_prefill(&self) -> bool {
        self.prefill.is_some()
    }

    /// What the client's part leaves out: spans of the body, in order and without overlap.
    pub fn client_gaps(&self) -> &[Range<usize>] {
        &self.client.spans
    }
}

/// The fields that limit prefill to one token, where they stand beside the prompt.
const fn limits(route: Route) -> &'static str {
    match route {
        Route::Generate => "",
        Route::ChatCompletions | Route::Completions | Route::Messages => r#""max_tokens":1,"#,
        // Nothing may ask prefill for its response later.
        Route::Responses => r#""max_output_tokens":1,"store":false,"#,
    }
}

/// The body of prefill's step: the client's, limited to one token, that asks for parameters. `None` where the request needs
/// no prefill worker. With Mooncake the transfer has an id, and the response no parameters.
///
/// `facts` must have been read from this `body`.
pub fn prefill_body(
    route: Route,
    body: &[u8],
    facts: &Facts,
    transfer: Option<&TransferId>,
) -> Option<Bytes> {
    let plan = facts.steps.as_ref()?.prefill.as_ref()?;
    let mut out = BytesMut::with_capacity(facts.close + 256);
    let mut inner = plan.limits.iter().peekable();
    let mut from = 0;
    let end = facts.close..facts.close;
    for gap in plan.without.spans.iter().chain([&end]) {
        while let Some((brace, only)) = inner.next_if(|(brace, _)| *brace < gap.start) {
            out.extend_from_slice(&body[from..*brace]);
            let comma = if *only { "" } else { "," };
            out.extend_from_slice(comma.as_bytes());
            out.extend_from_slice(br#""max_tokens":1"#);
            from = *brace;
        }
        out.extend_from_slice(&body[from..gap.start]);
        from = gap.end;
    }
    if !plan.without.leaves_nothing {
        out.extend_from_slice(b",");
    }
    out.extend_from_slice(limits(route).as_bytes());
    out.extend_from_slice(br#""stream":false,"kv_transfer_params":"#);
    match transfer {
        None => out.extend_from_slice(ASKS_FOR_PARAMS.as_bytes()),
        Some(transfer) => out.extend_from_slice(transfer.asks().as_bytes()),
    }
    out.extend_from_slice(b"}");
    Some(out.freeze())
}

/// The body of decode's step: the client's without parameters of its own, with those of prefill's response. `None` makes
/// decode compute the prompt.
///
/// `facts` must have been read from this `body`.
pub fn decode_body(body: &Bytes, facts: &Facts, params: Option<&Params>) -> Bytes {
    let without = facts.steps.as_ref().map(|steps| &steps.client);
    let unchanged = without.is_none_or(|without| without.spans.is_empty());
    let Some(params) = params else {
        return match unchanged {
            true => body.clone(),
            false => join(body, facts, b"}"),
        };
    };
    let bare = without.is_some_and(|without| without.leaves_nothing);
    let comma: &[u8] = if bare { b"" } else { b"," };
    let (name, text) = (b"\"kv_transfer_params\":", params.text());
    join(body, facts, &[comma, name, text, b"}"].concat())
}

fn join(body: &[u8], facts: &Facts, tail: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(facts.close + tail.len());
    for piece in facts.client_part(body) {
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(tail);
    out.freeze()
}

#[cfg(test)]
mod tests;
