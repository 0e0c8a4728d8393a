//! The facts of one request, which each engine reads from a body in its own way.
//!
//! What lives here: what the proxy and the policies may know of any request, and the parts of one engine, which only its
//! own module reads. What may not: the reading.

use super::json::Cuts;
use super::sglang::options::TopLogprobs;
use super::vllm::Steps;

/// The facts of one request.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether the worker will respond with a stream of events.
    pub stream: bool,
    /// The number of prompts, and whether they are a list.
    pub batch: Batch,
    /// Samples per prompt that are requests of their own, at least 1.
    pub n: u64,
    /// The part of prefill's response that must be merged into decode's.
    pub merge: Merge,
    /// Whether hidden states are asked for, of which a pair has no part of the prompt's.
    pub hidden_states: bool,
    /// The request id that the client chose; `None` when it is absent or null.
    pub rid: Option<Rid>,
    /// SGLang's: the alternatives per token that the logprobs shall have.
    pub(super) top_logprobs: TopLogprobs,
    /// SGLang's: the client's fields that only the proxy may set.
    pub(super) cuts: Cuts,
    /// The closing brace, in bytes from the start of the body.
    pub(super) close: usize,
    /// vLLM's: how the body of each step is made of the client's. `None` for another engine.
    pub(super) steps: Option<Box<Steps>>,
}

impl Facts {
    /// Whether a prefill worker computes the prompt. With the steps of vLLM there are requests for which decode does.
    pub fn needs_prefill(&self) -> bool {
        self.steps
            .as_ref()
            .is_none_or(|steps| steps.needs_prefill())
    }

    /// The client's part of a body in pieces: without the closing brace, and without the fields that only the proxy may set.
    ///
    /// These facts must have been read from this `body`.
    pub fn client_part<'a>(&self, body: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let gaps = match &self.steps {
            None => self.cuts.ranges(),
            Some(steps) => steps.client_gaps(),
        };
        let starts = std::iter::once(0).chain(gaps.iter().map(|gap| gap.end));
        let ends = gaps.iter().map(|gap| gap.start).chain([self.close]);
        starts.zip(ends).map(|(start, end)| &body[start..end])
    }
}

/// The number of prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// One prompt, for which the response is one object.
    Single,
    /// A list of prompts, for which the response is a list, even of one.
    Of(usize),
}

impl Batch {
    /// The number of prompts. With bootstrap fields each needs a room.
    pub const fn prompts(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Of(prompts) => prompts,
        }
    }
}

/// The part of the response that only prefill has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Nothing; the body of prefill's response is not needed.
    None,
    /// `/generate`: the logprobs of the prompt, and the first row of `output_token_ids_logprobs`.
    InputLogprobs,
    /// `/v1/completions` with `echo` and `logprobs`: the prompt's part of the logprob lists.
    Echo,
}

/// The client's own request id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rid {
    /// One id.
    One(String),
    /// A list of this many ids, for a batch.
    Many(usize),
}
