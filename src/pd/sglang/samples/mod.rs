//! SAMPLES: a request for several samples per prompt (`n > 1`), which a pair does not serve itself, as that many requests
//! for one sample, and their responses as the one that an ordinary server gives.
//!
//! What lives here: what such a request must not ask for, the body of one sample ([`sample_body`]), and the gathering of the
//! samples' documents and streams ([`Gather`]). What may not: sending a sample, and waiting for one.
//!
//! A request with `B` prompts and `n` samples becomes `n` requests with all `B` prompts. Everywhere in the response an
//! ordinary server numbers the samples of all prompts by `prompt * n + sample`: the *flat index*.
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`_handle_batch_request`), `srt/managers/io_struct.py`
//! (`_handle_parallel_sampling`), `srt/entrypoints/openai/serving_chat.py` and `serving_completions.py`; captured
//! responses under `tests/fixtures/`.

mod document;
mod event;
mod openai;
mod quick;
mod refusal;
mod request;
mod stream;

use std::fmt;

use bytes::Bytes;

use super::super::Route;
use super::super::json;
use super::request::{Batch, Facts};

pub use refusal::Refusal;
pub use request::sample_body;
pub(super) use request::{check, samples};
pub use stream::GatherStream;

/// How the responses for the samples of one request become its own response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    route: Route,
    batch: Batch,
    samples: usize,
}

impl Gather {
    /// The gathering for a request of this route with these facts.
    pub fn new(route: Route, facts: &Facts) -> Self {
        Self {
            route,
            batch: facts.batch,
            samples: usize::try_from(facts.n).unwrap_or(usize::MAX),
        }
    }

    /// Makes the client's document of those of all samples, which are in the order of the samples.
    ///
    /// `/generate` gets a list of all items, in the order of the flat index. The other routes get the document of the
    /// first sample with the choices of all, and with a usage that counts the prompt once.
    ///
    /// # Errors
    /// A document is not JSON, or has another shape than the request asks for.
    pub fn document(&self, documents: &[Bytes]) -> Result<Bytes, GatherError> {
        document::gather(self, documents)
    }

    /// The gathering of the samples' streams, at their start. An event of a sample may have `max_event_bytes`. Each sample
    /// takes some memory: the caller limits their number.
    pub fn stream(&self, max_event_bytes: usize) -> GatherStream {
        GatherStream::new(*self, max_event_bytes)
    }

    /// Checks that there is such a prompt.
    fn check(&self, prompt: usize) -> Result<(), GatherFault> {
        if prompt < self.batch.prompts() {
            Ok(())
        } else {
            Err(GatherFault::Index(prompt))
        }
    }

    /// The flat index of one prompt's sample.
    fn flat(&self, prompt: usize, sample: usize) -> usize {
        prompt * self.samples + sample
    }
}

/// Why the responses for the samples do not become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatherError {
    /// The sample whose response is at fault, from 0.
    pub sample: usize,
    /// The fault.
    pub fault: GatherFault,
}

/// What is wrong with the response for one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatherFault {
    /// The stream reports an error by this event. Nothing of the sample follows.
    Failed(Bytes),
    /// The stream has ended without its end marker.
    Unfinished,
    /// The response is not JSON, or not an object or list where one belongs.
    Malformed(json::Error),
    /// The response lacks this key, or it is not a value of its kind.
    Missing(&'static str),
    /// The response has more or fewer items or choices than the request has prompts.
    Count {
        /// Prompts of the request.
        expected: usize,
        /// Items or choices of the response.
        found: usize,
    },
    /// The response has this index, which is no prompt of the request.
    Index(usize),
    /// An event, or the events of one sample that wait for the other samples, are longer than this many bytes.
    TooLong(usize),
}

impl fmt::Display for GatherError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the response for sample {} ", self.sample)?;
        match &self.fault {
            GatherFault::Failed(_) => f.write_str("reports an error"),
            GatherFault::Unfinished => f.write_str("has no end marker"),
            GatherFault::Malformed(error) => write!(f, "is malformed: {error}"),
            GatherFault::Missing(key) => write!(f, "has no {key}"),
            GatherFault::Count { expected, found } => {
                write!(f, "is for {found} prompts, not for {expected}")
            }
            GatherFault::Index(index) => {
                write!(f, "has index {index}, which is no prompt of the request")
            }
            GatherFault::TooLong(limit) => {
                write!(f, "has an event that is longer than {limit} bytes")
            }
        }
    }
}

impl std::error::Error for GatherError {}

#[cfg(test)]
mod tests;
