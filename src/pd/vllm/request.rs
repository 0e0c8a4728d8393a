//! PARSE: what the proxy must know of a request before it sends it to vLLM's workers.
//!
//! What lives here: one pass over the body that finds the facts, and the places where [`super::steps`] cuts and writes.
//! What may not: judging a request. The worker says what is wrong with it.
//!
//! A request goes through prefill only where prefill's blocks are sure to be fetched, once, for the one prompt that they
//! were computed for. Each other request is sent to decode as it is, which then answers as an ordinary server does:
//!
//! * several prompts: the parameters of a response are those of the first prompt, and decode takes them for all of them;
//! * several samples: each of them fetches the same blocks, and the end of the first fetch frees them;
//! * logprobs of the prompt: decode computes the prompt itself for them, and fetches nothing;
//! * a beam search, embeddings as the prompt, and what only the worker has that served an earlier response;
//! * a value that prefill's step replaces and decode would refuse, and a `max_tokens` that `/v1/messages` lacks: the blocks would
//!   wait for their lease to end.
//!
//! A repeated key counts as in Python: the last one wins. Prefill's step cuts all of them.
//!
//! Source: vLLM 0.32.0, `entrypoints/openai/` and `entrypoints/anthropic/` (`protocol.py`), `sampling_params.py`.

use std::ops::Range;

use super::super::json::{self, Cuts, Kind, Member, Scanner};
use super::super::sglang::request::is_truthy;
use super::super::{Batch, Facts, Invalid, Merge, Route};
use super::steps::{PARAMS, PrefillBody, Steps, Without};

/// Reads the facts of a request.
///
/// # Errors
/// The body is not a JSON object, or nests too deep.
pub fn parse(route: Route, body: &[u8]) -> Result<Facts, Invalid> {
    let mut scanner = Scanner::new(body)?;
    if scanner.kind()? != Kind::Object {
        scanner.skip()?;
        scanner.end()?;
        return Err(Invalid::NotAnObject);
    }
    let mut reading = Reading::of(route);
    let close = scanner.object(|s, member| reading.member(s, member))?;
    scanner.end()?;
    let values = &reading.values;
    let (stream, batch) = (values.stream, values.batch());
    let alone = values.is_for_decode(route);
    Ok(Facts {
        stream,
        batch,
        n: 1,
        merge: Merge::None,
        hidden_states: false,
        rid: None,
        top_logprobs: Default::default(),
        cuts: Cuts::default(),
        close,
        steps: Some(Box::new(reading.steps(alone))),
    })
}

/// A limit or number that prefill's step replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Value {
    /// Absent, null, or what every worker takes.
    #[default]
    Fine,
    /// A worker may refuse it.
    Odd,
}

/// What decides who computes the prompt. A field that is there again replaces the earlier one.
#[derive(Debug, Default)]
struct Values {
    stream: bool,
    /// The type of `stream`.
    stream_type: Value,
    /// Whether there are options of a stream.
    stream_options: bool,
    stream_options_type: Value,
    /// The prompts of a list; `None` where there is no list.
    prompts: Option<usize>,
    embeddings: bool,
    /// Whether there is a list of chats.
    chats: bool,
    echo: bool,
    logprobs: bool,
    prompt_logprobs: bool,
    beams: bool,
    /// Whether the response depends on an earlier one, or is asked for later.
    stored: bool,
    store: Value,
    /// The limits of tokens, each by its field.
    limits: [Value; LIMITS.len()],
    /// Whether there is a `max_tokens`.
    max_tokens: bool,
    /// Whether `n` is absent, null or 1.
    samples: Samples,
    sampling_params: SamplingParams,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Samples {
    #[default]
    One,
    Several,
}

/// Whether `/inference/v1/generate` has its `sampling_params`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SamplingParams {
    #[default]
    Absent,
    Object,
}

/// The fields that limit the number of tokens, and of which prefill's step keeps none.
const LIMITS: [&str; 4] = [
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "min_tokens",
];

/// The fields of sampling that prefill's step replaces or leaves out, where a route has them.
fn limits_prefill(route: Route, name: &str) -> bool {
    match route {
        Route::Generate => matches!(name, "max_tokens" | "min_tokens" | "n"),
        Route::ChatCompletions => {
            matches!(
                name,
                "max_tokens" | "max_completion_tokens" | "min_tokens" | "n"
            )
        }
        Route::Completions => matches!(name, "max_tokens" | "min_tokens" | "n"),
        Route::Responses => matches!(name, "max_output_tokens" | "store"),
        Route::Messages => name == "max_tokens",
    }
}

/// The objects by which a request could hand parameters to the engine in another way.
///
/// Source: vLLM 0.32.0, `entrypoints/openai/chat_completion/protocol.py` (`vllm_xargs`), `sampling_params.py` (`extra_args`).
const EXTRA: [&str; 2] = ["vllm_xargs", "extra_args"];

/// One pass over a body.
struct Reading {
    route: Route,
    values: Values,
    /// The members of the body that stay in the client's part, and in prefill's body.
    client: Cuts,
    prefill: Cuts,
    /// The same for objects inside, in any order.
    inner_client: Vec<Range<usize>>,
    inner_prefill: Vec<Range<usize>>,
    limits: Vec<(usize, bool)>,
}

impl Reading {
    fn of(route: Route) -> Self {
        Self {
            route,
            values: Values::default(),
            client: Cuts::default(),
            prefill: Cuts::default(),
            inner_client: Vec::new(),
            inner_prefill: Vec::new(),
            limits: Vec::new(),
        }
    }

    fn member(&mut self, s: &mut Scanner<'_>, member: Member<'_>) -> Result<(), json::Error> {
        let name = &*member.name;
        if name == PARAMS {
            let value = s.skip()?;
            self.client.cut(member.comma, member.start..value.end);
            self.prefill.cut(member.comma, member.start..value.end);
            return Ok(());
        }
        self.client.keep(member.comma);
        let route = self.route;
        let is_sampling = route == Route::Generate && name == "sampling_params";
        if is_sampling && s.kind()? == Kind::Object {
            self.prefill.keep(member.comma);
            return self.sampling_params(s);
        }
        if EXTRA.contains(&name) && s.kind()? == Kind::Object {
            self.prefill.keep(member.comma);
            return self.extra(s);
        }
        if is_sampling {
            self.values.sampling_params = SamplingParams::Absent;
        }
        self.values.read(route, name, s)?;
        let replaced = matches!(name, "stream" | "stream_options")
            || route != Route::Generate && limits_prefill(route, name);
        if replaced {
            self.prefill.cut(member.comma, member.start..s.at());
        } else {
            self.prefill.keep(member.comma);
        }
        Ok(())
    }

    /// `sampling_params`, which has the limits of `/inference/v1/generate`.
    fn sampling_params(&mut self, s: &mut Scanner<'_>) -> Result<(), json::Error> {
        self.values.forget_sampling();
        let mut cuts = Cuts::default();
        let close = s.object(|s, member| {
            let name = &*member.name;
            if EXTRA.contains(&name) && s.kind()? == Kind::Object {
                cuts.keep(member.comma);
                return self.extra(s);
            }
            self.values.read_sampling(name, s)?;
            if limits_prefill(Route::Generate, name) {
                cuts.cut(member.comma, member.start..s.at());
            } else {
                cuts.keep(member.comma);
            }
            Ok(())
        })?;
        self.inner_prefill.extend_from_slice(cuts.ranges());
        self.limits.push((close, cuts.leaves_nothing()));
        Ok(())
    }

    fn extra(&mut self, s: &mut Scanner<'_>) -> Result<(), json::Error> {
        let mut cuts = Cuts::default();
        s.object(|s, member| {
            let value = s.skip()?;
            match member.name == PARAMS {
                true => cuts.cut(member.comma, member.start..value.end),
                false => cuts.keep(member.comma),
            }
            Ok(())
        })?;
        // Without such a member no comma is cut either.
        self.inner_client.extend_from_slice(cuts.ranges());
        self.inner_prefill.extend_from_slice(cuts.ranges());
        Ok(())
    }

    fn steps(self, alone: bool) -> Steps {
        let without = |cuts: &Cuts, mut spans: Vec<Range<usize>>| {
            spans.extend_from_slice(cuts.ranges());
            spans.sort_unstable_by_key(|span| span.start);
            Without {
                spans,
                leaves_nothing: cuts.leaves_nothing(),
            }
        };
        Steps {
            client: without(&self.client, self.inner_client),
            prefill: (!alone).then(|| PrefillBody {
                without: without(&self.prefill, self.inner_prefill),
                limits: self.limits,
            }),
        }
    }
}

impl Values {
    /// Reads one field beside the prompt.
    fn read(&mut self, route: Route, name: &str, s: &mut Scanner<'_>) -> Result<(), json::Error> {
        match (route, name) {
            (_, "stream") => {
                self.stream_type = match s.kind()? {
                    Kind::Bool | Kind::Null => Value::Fine,
                    _ => Value::Odd,
                };
                self.stream = is_truthy(s)?;
            }
            (_, "stream_options") => {
                let kind = s.kind()?;
                self.stream_options = kind != Kind::Null;
                self.stream_options_type = match kind {
                    Kind::Object | Kind::Null => Value::Fine,
                    _ => Value::Odd,
                };
                s.skip()?;
            }
            (Route::Completions, "prompt") => self.prompts = prompts(s)?,
            (Route::ChatCompletions, "messages") => self.chats = is_list_of_lists(s)?,
            (Route::Completions, "prompt_embeds") => self.embeddings = is_there(s)?,
            (Route::Completions, "echo") => self.echo = is_truthy(s)?,
            (Route::Completions, "logprobs") => self.logprobs = is_there(s)?,
            (Route::ChatCompletions | Route::Completions, "prompt_logprobs") => {
                self.prompt_logprobs = is_there(s)?;
            }
            (Route::ChatCompletions | Route::Completions, "use_beam_search") => {
                self.beams = is_truthy(s)?;
            }
            (Route::Responses, "previous_response_id") => self.stored |= is_there(s)?,
            (Route::Responses, "background") => self.stored |= is_truthy(s)?,
            (Route::Responses, "store") => self.store = boolean(s)?,
            (_, name) if route != Route::Generate && limits_prefill(route, name) => {
                self.limit(name, s)?;
            }
            _ => {
                s.skip()?;
            }
        }
        Ok(())
    }

    /// Forgets an earlier `sampling_params`.
    fn forget_sampling(&mut self) {
        self.sampling_params = SamplingParams::Object;
        self.limits = Default::default();
        self.samples = Samples::One;
        self.prompt_logprobs = false;
    }

    /// Reads one field of `sampling_params`.
    fn read_sampling(&mut self, name: &str, s: &mut Scanner<'_>) -> Result<(), json::Error> {
        match name {
            "prompt_logprobs" => self.prompt_logprobs = is_there(s)?,
            name if limits_prefill(Route::Generate, name) => self.limit(name, s)?,
            _ => {
                s.skip()?;
            }
        }
        Ok(())
    }

    fn limit(&mut self, name: &str, s: &mut Scanner<'_>) -> Result<(), json::Error> {
        let kind = s.kind()?;
        let value = s.skip()?;
        let number = s.slice(value).parse::<u32>();
        if name == "max_tokens" {
            self.max_tokens = kind != Kind::Null;
        }
        if name == "n" {
            self.samples = match (kind, number) {
                (Kind::Null, _) | (_, Ok(1)) => Samples::One,
                _ => Samples::Several,
            };
            return Ok(());
        }
        // A minimum may be 0.
        let least = u32::from(name != "min_tokens");
        let fine = kind == Kind::Null || number.is_ok_and(|number| number >= least);
        if let Some(index) = LIMITS.iter().position(|limit| *limit == name) {
            self.limits[index] = if fine { Value::Fine } else { Value::Odd };
        }
        Ok(())
    }

    fn batch(&self) -> Batch {
        self.prompts.map_or(Batch::Single, Batch::Of)
    }

    /// Whether the request goes to decode as it is.
    fn is_for_decode(&self, route: Route) -> bool {
        let odd = [self.stream_type, self.stream_options_type, self.store].contains(&Value::Odd)
            || self.stream_options && !self.stream
            || self.limits.contains(&Value::Odd)
            || route == Route::Messages && !self.max_tokens;
        odd || self.samples == Samples::Several
            || self.prompts.is_some_and(|prompts| prompts != 1)
            || self.embeddings
            || self.chats
            || self.prompt_logprobs
            || self.echo && self.logprobs
            || self.beams
            || self.stored
            || route == Route::Generate && self.sampling_params == SamplingParams::Absent
    }
}

/// Whether there is a value, even a false one.
fn is_there(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    let kind = s.kind()?;
    s.skip()?;
    Ok(kind != Kind::Null)
}

/// Whether the value is a list that begins with a list.
fn is_list_of_lists(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    if s.kind()? != Kind::Array {
        return s.skip().map(|_| false);
    }
    let mut nested = false;
    s.array(|s, element| {
        nested |= element == 0 && s.kind()? == Kind::Array;
        s.skip().map(drop)
    })?;
    Ok(nested)
}

fn boolean(s: &mut Scanner<'_>) -> Result<Value, json::Error> {
    let kind = s.kind()?;
    s.skip()?;
    Ok(match kind {
        Kind::Bool | Kind::Null => Value::Fine,
        _ => Value::Odd,
    })
}

/// The prompts in the value of `prompt`, where it is a list of prompts. One of token ids is one prompt.
fn prompts(s: &mut Scanner<'_>) -> Result<Option<usize>, json::Error> {
    if s.kind()? != Kind::Array || s.is_array_of_numbers() {
        return s.skip().map(|_| None);
    }
    let mut prompts = 0;
    s.array(|s, _| {
        prompts += 1;
        s.skip().map(drop)
    })?;
    Ok(Some(prompts))
}

#[cfg(test)]
mod tests;
