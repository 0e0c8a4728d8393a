//! The engine that the workers run, asked for everything that depends on its protocol.
//!
//! What lives here: one method for each question, with one `match` over the engines. What may not: the protocol, whose
//! functions are in the engine's own module. JSON, events, routes and the verdict on the legs are the same for every
//! engine, and need no question.

use bytes::{Bytes, BytesMut};

use super::Route;
use super::sglang::{
    self, ErrorShape, Facts, Fields, Gather, Injected, Invalid, RequestIds, StreamEnd, WorkerError,
};

/// The engine of all workers of a balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// SGLang. Both legs get the same body at the same time, and find each other by its bootstrap fields.
    #[default]
    Sglang,
}

impl Engine {
    /// Reads the facts of a request from its body.
    ///
    /// # Errors
    /// The body is not a JSON object, nests too deep, or has a field out of range.
    pub fn parse(self, route: Route, body: &[u8]) -> Result<Facts, Invalid> {
        match self {
            Self::Sglang => sglang::parse(route, body),
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
        }
    }

    /// The body that each sample of a request with `n > 1` is sent with: the client's, from which `facts` were read,
    /// without `n`. All samples have the same.
    pub fn sample_body(self, route: Route, body: &[u8], facts: &Facts) -> Bytes {
        match self {
            Self::Sglang => sglang::samples::sample_body(route, body, facts),
        }
    }

    /// How the responses for the samples of a request become its own response.
    pub fn gather(self, route: Route, facts: &Facts) -> Gather {
        match self {
            Self::Sglang => Gather::new(route, facts),
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
        }
    }

    /// The `POST` by which a worker aborts the request with this id: its path and its JSON body.
    pub fn abort(self, id: &str) -> (&'static str, String) {
        match self {
            Self::Sglang => sglang::ids::abort(id),
        }
    }

    /// The spare capacity, in bytes, with which [`Self::inject`] moves no byte of the body of so many prompts.
    pub const fn tail_reserve(self, prompts: usize) -> usize {
        match self {
            Self::Sglang => sglang::tail_reserve(prompts),
        }
    }

    /// Writes the fields of the first attempt into the client's body, from which `facts` were read.
    ///
    /// # Panics
    /// There is not exactly one room for each prompt: a defect of the caller.
    pub fn inject(self, body: BytesMut, facts: &Facts, fields: &Fields<'_>) -> Injected {
        match self {
            Self::Sglang => sglang::inject(body, facts, fields),
        }
    }

    /// The client's part of a body, from which `facts` were read, in pieces: all that distinguishes two requests.
    pub fn client_part<'a>(self, body: &'a [u8], facts: &Facts) -> impl Iterator<Item = &'a [u8]> {
        match self {
            Self::Sglang => sglang::client_part(body, facts),
        }
    }

    /// Writes the fields of the next attempt into a copy of the body of the last one.
    ///
    /// # Panics
    /// As [`Self::inject`].
    pub fn inject_again(self, last: &Injected, fields: &Fields<'_>) -> Injected {
        match self {
            Self::Sglang => last.again(fields),
        }
    }

    /// A worker's error response to the request `sent`, which has these fields, without them: it may quote the request.
    /// `None` where nothing of them is in it.
    pub fn conceal(self, text: &[u8], sent: &Injected, fields: &Fields<'_>) -> Option<Vec<u8>> {
        match self {
            Self::Sglang => sglang::conceal::conceal(text, sent, fields),
        }
    }

    /// The error of the whole request that the first event of a worker's stream reports under the status 200; `None` when
    /// it reports none.
    pub fn stream_error(self, route: Route, first_event: &[u8]) -> Option<WorkerError> {
        match self {
            Self::Sglang => sglang::stream_error(route, first_event),
        }
    }

    /// The error of the whole request that a worker's document reports under the status 200; `None` when it reports none.
    pub fn document_error(self, route: Route, document: &[u8]) -> Option<WorkerError> {
        match self {
            Self::Sglang => sglang::document_error(route, document),
        }
    }

    /// Whether this error of a prefill worker tells of the end of decode's leg: its cause is there, or in an abort.
    pub fn tells_of_decode(self, error: &[u8]) -> bool {
        match self {
            Self::Sglang => sglang::tells_of_decode(error),
        }
    }

    /// Follows a stream of this route to its end marker.
    pub fn stream_end(self, route: Route) -> StreamEnd {
        match self {
            Self::Sglang => StreamEnd::new(route),
        }
    }

    /// The event of an error of the proxy in a stream of this route, from the error's JSON.
    pub fn error_event(self, route: Route, json: &str) -> String {
        match self {
            Self::Sglang => sglang::error_body::error_event(route, json),
        }
    }

    /// The shape of an error of the proxy, as a client of the engine's own server would read it. `None` is any path
    /// without legs.
    pub fn error_shape(self, route: Option<Route>) -> ErrorShape {
        match self {
            Self::Sglang => ErrorShape::of(route),
        }
    }
}
