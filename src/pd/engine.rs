//! The engine that the workers run, asked for everything that depends on its protocol.
//!
//! What lives here: one method for each question, with one `match` over the engines. What may not: the protocol, whose
//! functions are in the engine's own module. JSON, events, routes and the verdict on the legs are the same for every
//! engine, and need no question.

use bytes::{Bytes, BytesMut};

use super::sglang::{
    self, ErrorShape, Fields, Gather, Injected, Invalid, RequestIds, StreamEnd, WorkerError,
};
use super::vllm::{self, Params, TransferId};
use super::{Facts, Route};

/// The engine of all workers of a balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// SGLang. Both legs get the same body at the same time, and find each other by its bootstrap fields.
    #[default]
    Sglang,
    /// vLLM with NIXL. Prefill's leg is first, and decode's has the parameters of its response.
    Vllm,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sglang, Self::Vllm];

    /// The word of the configuration that leaves the engine to the workers.
    const AUTO: &str = "auto";

    /// The engine that a word of the configuration stands for: `Some(None)` is the one that the workers tell, `None` is no
    /// such word.
    pub fn of_word(word: &str) -> Option<Option<Self>> {
        match Self::ALL.into_iter().find(|engine| engine.name() == word) {
            Some(engine) => Some(Some(engine)),
            None => (word == Self::AUTO).then_some(None),
        }
    }

    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sglang => "sglang",
            Self::Vllm => "vllm",
        }
    }

    /// Whether decode's leg begins when prefill's has ended.
    pub const fn prefill_is_first(self) -> bool {
        match self {
            Self::Sglang => false,
            Self::Vllm => true,
        }
    }

    /// The route of a path without its query. The path must match exactly, as on the worker.
    pub fn route(self, path: &str) -> Option<Route> {
        match self {
            Self::Sglang => Route::find(path),
            Self::Vllm => vllm::find(path),
        }
    }

    /// The path of a route on the wire. vLLM has more than one for chats.
    pub const fn path(self, route: Route) -> &'static str {
        match self {
            Self::Sglang => route.path(),
            Self::Vllm => vllm::path(route),
        }
    }

    /// Reads the facts of a request from its body.
    ///
    /// # Errors
    /// The body is not a JSON object, nests too deep, or has a field out of range.
    pub fn parse(self, route: Route, body: &[u8]) -> Result<Facts, Invalid> {
        match self {
            Self::Sglang => sglang::parse(route, body),
            Self::Vllm => vllm::parse(route, body),
        }
    }

    /// Checks the number of alternatives per token that a request asks for: from 0 to `max`.
    ///
    /// # Errors
    /// It is out of range.
    pub fn limit_top_logprobs(self, route: Route, facts: &Facts, max: u32) -> Result<(), Invalid> {
        match self {
            Self::Sglang => {
                sglang::options::limit_top_logprobs(route, facts, max).map_err(Invalid::Option)
            }
            // Its workers have a limit of their own.
            Self::Vllm => Ok(()),
        }
    }

    /// The body that each sample of a request with `n > 1` is sent with: the client's, from which `facts` were read,
    /// without `n`. All samples have the same.
    pub fn sample_body(self, route: Route, body: &[u8], facts: &Facts) -> Bytes {
        match self {
            Self::Sglang => sglang::samples::sample_body(route, body, facts),
            // Samples are the worker's own.
            Self::Vllm => Bytes::copy_from_slice(body),
        }
    }

    /// How the responses for the samples of a request become its own response.
    pub fn gather(self, route: Route, facts: &Facts) -> Gather {
        match self {
            Self::Sglang | Self::Vllm => Gather::new(route, facts),
        }
    }

    /// Chooses the ids under which the workers know the request of one attempt. Each call of `draw` gives 128 random
    /// bits.
    pub fn request_ids(
        self,
        route: Route,
        facts: &Facts,
        draw: impl FnMut() -> u128,
    ) -> RequestIds {
        match self {
            Self::Sglang => RequestIds::choose(route, facts, draw),
            // A worker aborts a request as soon as its connection closes.
            Self::Vllm => RequestIds::Unknown,
        }
    }

    /// The `POST` by which a worker aborts the request with this id: its path and its JSON body.
    pub fn abort(self, id: &str) -> (&'static str, String) {
        match self {
            Self::Sglang | Self::Vllm => sglang::ids::abort(id),
        }
    }

    /// The spare capacity, in bytes, with which [`Self::inject`] moves no byte of the body of so many prompts.
    pub const fn tail_reserve(self, prompts: usize) -> usize {
        match self {
            Self::Sglang => sglang::tail_reserve(prompts),
            Self::Vllm => 0,
        }
    }

    /// Writes the fields of the first attempt into the client's body, from which `facts` were read. With an engine whose
    /// prefill is first there are none.
    ///
    /// # Panics
    /// There is not exactly one room for each prompt: a defect of the caller.
    pub fn inject(self, body: BytesMut, facts: &Facts, fields: &Fields<'_>) -> Injected {
        match self {
            Self::Sglang => sglang::inject(body, facts, fields),
            Self::Vllm => Injected::without_fields(body.freeze()),
        }
    }

    /// The client's part of a body, from which `facts` were read, in pieces: all that distinguishes two requests.
    pub fn client_part<'a>(self, body: &'a [u8], facts: &Facts) -> impl Iterator<Item = &'a [u8]> {
        match self {
            Self::Sglang | Self::Vllm => facts.client_part(body),
        }
    }

    /// Writes the fields of the next attempt into a copy of the body of the last one.
    ///
    /// # Panics
    /// As [`Self::inject`].
    pub fn inject_again(self, last: &Injected, fields: &Fields<'_>) -> Injected {
        match self {
            Self::Sglang => last.again(fields),
            Self::Vllm => last.clone(),
        }
    }

    /// A worker's error response to the request `sent`, which has these fields, without them: it may quote the request.
    /// `None` where nothing of them is in it.
    pub fn conceal(self, text: &[u8], sent: &Injected, fields: &Fields<'_>) -> Option<Vec<u8>> {
        match self {
            Self::Sglang => sglang::conceal::conceal(text, sent, fields),
            // An error of its workers quotes no more than the field that is wrong.
            Self::Vllm => None,
        }
    }

    /// The error of the whole request that the first event of a worker's stream reports under the status 200; `None` when
    /// it reports none.
    pub fn stream_error(self, route: Route, first_event: &[u8]) -> Option<WorkerError> {
        match self {
            Self::Sglang => sglang::stream_error(route, first_event),
            Self::Vllm => vllm::stream_error(route, first_event),
        }
    }

    /// Whether this event at the begin of a worker's stream may still be followed by an error of the whole request.
    pub fn is_preamble(self, route: Route, event: &[u8]) -> bool {
        match self {
            Self::Sglang => false,
            Self::Vllm => vllm::is_preamble(route, event),
        }
    }

    /// The error of the whole request that a worker's document reports under the status 200; `None` when it reports none.
    pub fn document_error(self, route: Route, document: &[u8]) -> Option<WorkerError> {
        match self {
            Self::Sglang => sglang::document_error(route, document),
            Self::Vllm => None,
        }
    }

    /// Whether this error of a prefill worker tells of the end of decode's leg: its cause is there, or in an abort.
    pub fn tells_of_decode(self, error: &[u8]) -> bool {
        match self {
            Self::Sglang => sglang::tells_of_decode(error),
            Self::Vllm => false,
        }
    }

    /// Follows a stream of this route to its end marker.
    pub fn stream_end(self, route: Route) -> StreamEnd {
        match self {
            Self::Sglang | Self::Vllm => StreamEnd::new(route),
        }
    }

    /// The event of an error of the proxy in a stream of this route, from the error's JSON.
    pub fn error_event(self, route: Route, json: &str) -> String {
        match self {
            Self::Sglang | Self::Vllm => sglang::error_body::error_event(route, json),
        }
    }

    /// The shape of an error of the proxy, as a client of the engine's own server would read it. `None` is any path
    /// without legs.
    pub fn error_shape(self, route: Option<Route>) -> ErrorShape {
        match self {
            Self::Sglang => ErrorShape::of(route),
            Self::Vllm => match route {
                Some(Route::Messages) => ErrorShape::Anthropic,
                _ => ErrorShape::Nested,
            },
        }
    }

    /// The body of prefill's leg where that is first; `None` where decode computes the prompt, or both legs have one body. A
    /// transfer that is not named by prefill's response has an id.
    ///
    /// `facts` must have been read from this `body`.
    pub fn prefill_body(
        self,
        route: Route,
        body: &[u8],
        facts: &Facts,
        transfer: Option<&TransferId>,
    ) -> Option<Bytes> {
        match self {
            Self::Sglang => None,
            Self::Vllm => vllm::prefill_body(route, body, facts, transfer),
        }
    }

    /// The parameters of the transfer in prefill's response; `None` where it has none.
    pub fn params(self, response: &Bytes) -> Option<Params> {
        match self {
            Self::Sglang => None,
            Self::Vllm => vllm::params(response),
        }
    }

    /// Whether prefill keeps the blocks of a prompt to which it has responded with this document, for a transfer with an id.
    pub fn keeps_blocks(self, route: Route, document: &[u8]) -> bool {
        match self {
            Self::Sglang => false,
            Self::Vllm => vllm::keeps_blocks(route, document),
        }
    }

    /// The body of decode's leg where prefill's is first. Without parameters decode computes the prompt.
    ///
    /// `facts` must have been read from this `body`.
    pub fn decode_body(self, body: &Bytes, facts: &Facts, params: Option<&Params>) -> Injected {
        Injected::without_fields(match self {
            Self::Sglang => body.clone(),
            Self::Vllm => vllm::decode_body(body, facts, params),
        })
    }
}
