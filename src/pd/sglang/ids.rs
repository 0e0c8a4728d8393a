//! The ids under which the workers know a request, so that it can be aborted.
//!
//! What lives here: the choice of the ids, their wire form, and the abort that names one. What may not: randomness,
//! which is handed in, and the sending.

use std::fmt;

use super::super::Route;
use super::request::{Batch, Facts, Rid};

/// The id of one prompt, made by the proxy: 32 hexadecimal digits on the wire, as SGLang's own. An abort applies to
/// every id that begins with the given one, and of ids of one length none begins with another.
///
/// Source: SGLang 0.5.23, `srt/managers/scheduler.py` (`abort_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The ids under which the workers know the request of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestIds {
    /// Made by the proxy, one for each prompt.
    Proxy(Vec<RequestId>),
    /// Chosen by the client, one for each prompt.
    Client(Vec<String>),
    /// Chosen by the worker, or a list of the client's of which only the length was read.
    Unknown,
}

impl RequestIds {
    /// Chooses the ids of one attempt; each call of `draw` gives 128 random bits. `/v1/responses` and `/v1/messages`
    /// take no id.
    ///
    /// Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py`; a batch with one id names its items `id_0` and so
    /// on: `srt/managers/io_struct.py` (`_normalize_rid`).
    pub fn choose(route: Route, facts: &Facts, mut draw: impl FnMut() -> u128) -> Self {
        let prompts = facts.batch.prompts();
        match (&facts.rid, route) {
            (Some(Rid::One(id)), _) => Self::Client(match facts.batch {
                Batch::Single => vec![id.clone()],
                Batch::Of(_) => (0..prompts).map(|item| format!("{id}_{item}")).collect(),
            }),
            (Some(Rid::Many(_)), _) | (None, Route::Responses | Route::Messages) => Self::Unknown,
            (None, Route::Generate | Route::ChatCompletions | Route::Completions) => {
                Self::Proxy((0..prompts).map(|_| RequestId(draw())).collect())
            }
        }
    }

    /// The ids that the body does not have yet, one for each prompt.
    pub fn to_inject(&self) -> Option<&[RequestId]> {
        match self {
            Self::Proxy(ids) => Some(ids),
            Self::Client(_) | Self::Unknown => None,
        }
    }

    /// The first `limit` ids, as they stand on the wire.
    pub fn texts(&self, limit: usize) -> Vec<String> {
        match self {
            Self::Proxy(ids) => ids.iter().take(limit).map(RequestId::to_string).collect(),
            Self::Client(ids) => ids.iter().take(limit).cloned().collect(),
            Self::Unknown => Vec::new(),
        }
    }
}

/// The `POST` by which a worker aborts the request with this id: its path and its JSON body.
///
/// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`AbortReq`).
pub fn abort(id: &str) -> (&'static str, String) {
    (
        "/abort_request",
        serde_json::json!({ "rid": id }).to_string(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::request::parse;
    use super::*;

    fn chosen(route: Route, body: &str) -> RequestIds {
        let mut drawn = 0;
        RequestIds::choose(route, &parse(route, body.as_bytes()).unwrap(), || {
            drawn += 1;
            drawn
        })
    }

    #[test]
    fn the_proxy_makes_one_id_for_each_prompt_where_the_endpoint_takes_ids() {
        let ids = chosen(Route::Generate, r#"{"text":["a","b"]}"#);
        assert_eq!(ids, RequestIds::Proxy(vec![RequestId(1), RequestId(2)]));
        assert_eq!(ids.to_inject(), Some(&[RequestId(1), RequestId(2)][..]));
        assert_eq!(ids.texts(1), ["00000000000000000000000000000001"]);
        for route in [Route::Responses, Route::Messages] {
            assert_eq!(chosen(route, "{}"), RequestIds::Unknown);
        }
    }

    #[test]
    fn a_clients_id_is_kept_and_numbers_the_items_of_a_batch() {
        let one = chosen(Route::ChatCompletions, r#"{"rid":"a"}"#);
        assert_eq!(one.texts(9), ["a"]);
        assert_eq!(one.to_inject(), None);
        let batch = chosen(Route::Generate, r#"{"text":["a","b"],"rid":"a"}"#);
        assert_eq!(batch.texts(9), ["a_0", "a_1"]);
        let list = chosen(Route::Generate, r#"{"text":["a","b"],"rid":["c","d"]}"#);
        assert_eq!(list, RequestIds::Unknown);
    }

    #[test]
    fn an_abort_names_the_id_as_json() {
        let (path, body) = abort("a\"b");
        assert_eq!((path, &*body), ("/abort_request", r#"{"rid":"a\"b"}"#));
    }
}
