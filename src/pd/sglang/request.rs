//! PARSE: what the proxy must know of a request before it can send it to a pair, and send it again.
//!
//! What lives here: one pass over the body that finds the facts below and the places where [`super::bootstrap`] cuts
//! and writes. What may not: judging a request. A value that the worker will refuse is read as the default, and the
//! worker says what is wrong with it. The exception are values that no worker may get, which [`super::options`] checks.
//!
//! A repeated key counts as in Python: the last one wins.

use std::fmt;

use super::super::Route;
pub use super::super::facts::{Batch, Facts, Merge, Rid};
use super::super::json::{self, Cuts, Kind, Scanner};
use super::options::{OptionError, Options};
use super::prompts::{Prompt, completions_prompt, is_kind, is_list_of_lists, prompt};
use super::samples::{self, Refusal, samples};

/// The fields that only the proxy may set: a client's are cut out. With a `bootstrap_host` a client could make decode
/// connect to any address, and with a rank that is not the room's it would wait for minutes.
const PROXY_FIELDS: [&str; 4] = [
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "disagg_prefill_dp_rank",
];

/// Why a body cannot be sent to a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The body is not JSON.
    NotJson {
        /// The first byte that is wrong, from the start of the body.
        offset: usize,
        /// The mistake there.
        what: &'static str,
    },
    /// The body is JSON, but not an object.
    NotAnObject,
    /// The body nests deeper than [`json::MAX_DEPTH`].
    TooDeep {
        /// The first bracket beyond the limit, in bytes from the start of the body.
        offset: usize,
    },
    /// An option has a value that no worker may get.
    Option(OptionError),
    /// An ordinary server refuses the request because of its `n`, by this response.
    Samples(Refusal),
    /// Some prompt asks for a beam search (`beam_width` above 1), whatever its `n`: there `n` is the number of beams that
    /// are returned. A pair transfers the KV cache of one sequence for each prompt.
    ///
    /// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`_handle_beam_search_parallel_sampling`).
    BeamSearch,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { offset, what } => {
                write!(f, "the body is not valid JSON: {what} at byte {offset}")
            }
            Self::NotAnObject => write!(f, "the body must be a JSON object"),
            Self::TooDeep { offset } => {
                let limit = json::MAX_DEPTH;
                write!(
                    f,
                    "the body is nested more than {limit} levels deep at byte {offset}"
                )
            }
            Self::Option(error) => error.fmt(f),
            Self::Samples(refusal) => f.write_str(&refusal.message),
            Self::BeamSearch => f.write_str(
                "beam_width above 1 asks for a beam search, which a prefill and a decode worker cannot serve together; \
                 send it to a server that runs without disaggregation",
            ),
        }
    }
}

impl std::error::Error for Invalid {}

impl From<json::Error> for Invalid {
    fn from(error: json::Error) -> Self {
        match error {
            json::Error::Syntax { offset, what } => Self::NotJson { offset, what },
            json::Error::TooDeep { offset } => Self::TooDeep { offset },
        }
    }
}

/// Reads the facts of a request.
///
/// # Errors
/// The body is not a JSON object, nests too deep, has a field out of range, or asks for samples as no server gives them.
pub fn parse(route: Route, body: &[u8]) -> Result<Facts, Invalid> {
    let mut scanner = Scanner::new(body)?;
    if scanner.kind()? != Kind::Object {
        scanner.skip()?;
        scanner.end()?;
        return Err(Invalid::NotAnObject);
    }
    let mut values = FieldValues::default();
    let mut cuts = Cuts::default();
    let close = scanner.object(|s, member| {
        if PROXY_FIELDS.contains(&&*member.name) {
            let value = s.skip()?;
            cuts.cut(member.comma, member.start..value.end);
            return Ok(());
        }
        cuts.keep(member.comma);
        let at = s.at();
        match route {
            Route::Generate => values.generate(s, &member.name)?,
            _ => values.openai(route, s, &member.name)?,
        }
        values
            .options
            .note(route, &member.name, s.slice(at..s.at()));
        Ok(())
    })?;
    scanner.end()?;
    if values.beams {
        return Err(Invalid::BeamSearch);
    }
    let (batch, n) = (values.batch(), values.n.unwrap_or(1));
    if n > 1 {
        samples::check(route, body, batch, values.stream)?;
    }
    let options = &values.options;
    // Without a prompt the worker has its own words, and with samples `samples` has.
    let has_prompt = route == Route::ChatCompletions || values.prompt_kind().is_some();
    let listed = (has_prompt && n <= 1).then_some(batch);
    options
        .check(listed, values.return_logprob)
        .map_err(Invalid::Option)?;
    Ok(Facts {
        stream: values.stream,
        batch,
        n,
        merge: values.merge(),
        hidden_states: values.hidden_states,
        top_logprobs: options.top_logprobs(),
        rid: values.rid,
        cuts,
        close,
        steps: None,
    })
}

/// The values of the fields, from which the facts follow once all are known.
#[derive(Debug, Default)]
struct FieldValues {
    stream: bool,
    n: Option<u64>,
    /// Some `beam_width` is above 1.
    beams: bool,
    hidden_states: bool,
    rid: Option<Rid>,
    prompt: Prompt,
    text: Prompt,
    input_ids: Prompt,
    input_embeds: Prompt,
    return_logprob: bool,
    /// Some `logprob_start_len` is a position of the prompt.
    starts_in_prompt: bool,
    token_ids_logprob: bool,
    echo: bool,
    logprobs: bool,
    options: Options,
}

impl FieldValues {
    /// Reads a field of `/generate`. Types are strict: only `true` is true, and 1.0 is no integer.
    ///
    /// Source: SGLang 0.5.23, `api/v1/api_types.py` (`_expect_bool`, `_expect_int`).
    fn generate(&mut self, s: &mut Scanner<'_>, name: &str) -> Result<(), json::Error> {
        match name {
            "stream" => self.stream = is_true(s)?,
            "rid" => self.rid = rid(s)?,
            "text" => self.text = prompt(s, |s| is_kind(s, Kind::Text))?,
            "input_ids" => self.input_ids = prompt(s, |s| is_kind(s, Kind::Array))?.empty_is_one(),
            "input_embeds" => self.input_embeds = prompt(s, is_list_of_lists)?.empty_is_one(),
            "sampling_params" => {
                let options = &mut self.options;
                options.forget_sampling();
                self.n = samples(s, &mut self.beams, |element, name, value| {
                    options.note_sampling(element, name, value);
                })?;
            }
            "return_hidden_states" => self.hidden_states = asks_for_hidden_states(s)?,
            "return_logprob" => self.return_logprob = any(s, is_true)?,
            "logprob_start_len" => {
                self.starts_in_prompt = false;
                any(s, |s| {
                    let start = integer(s)?;
                    self.starts_in_prompt |= start.is_some_and(|start| start != -1);
                    Ok(false)
                })?;
            }
            "token_ids_logprob" => self.token_ids_logprob = is_filled_list(s)?,
            _ => {
                s.skip()?;
            }
        }
        Ok(())
    }

    /// Reads a field of another route. Types are lax: 1 and "yes" are true, "2" is an integer.
    ///
    /// Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py`; Pydantic 2, "Conversion table".
    fn openai(&mut self, route: Route, s: &mut Scanner<'_>, name: &str) -> Result<(), json::Error> {
        match (route, name) {
            (_, "stream") => self.stream = is_truthy(s)?,
            (_, "rid") => self.rid = rid(s)?,
            (_, "return_hidden_states") => self.hidden_states = asks_for_hidden_states(s)?,
            (Route::ChatCompletions | Route::Completions, "n") => {
                self.n = lax_integer(s)?.and_then(positive);
            }
            (Route::Completions, "prompt") => self.prompt = completions_prompt(s)?,
            (Route::Completions, "echo") => self.echo = is_truthy(s)?,
            (Route::Completions, "logprobs") => {
                self.logprobs = lax_integer(s)?.is_some_and(|top| top != 0);
            }
            _ => {
                s.skip()?;
            }
        }
        Ok(())
    }

    /// The first kind of prompt that is present decides, as in the worker.
    ///
    /// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`_determine_batch_size`).
    fn prompt_kind(&self) -> Option<Prompt> {
        let kinds = [self.prompt, self.text, self.input_ids, self.input_embeds];
        kinds.into_iter().find(|kind| *kind != Prompt::Absent)
    }

    fn batch(&self) -> Batch {
        match self.prompt_kind() {
            Some(Prompt::List(prompts)) => Batch::Of(prompts),
            _ => Batch::Single,
        }
    }

    /// `top_logprobs_num` alone adds nothing: without a start in the prompt both legs have `[]`.
    ///
    /// Source: SGLang 0.5.23, `srt/managers/scheduler.py` (`logprob_start_len == -1`) and
    /// `srt/entrypoints/openai/serving_completions.py` (`if request.echo and request.logprobs`).
    fn merge(&self) -> Merge {
        if self.return_logprob && (self.starts_in_prompt || self.token_ids_logprob) {
            Merge::InputLogprobs
        } else if self.echo && self.logprobs {
            Merge::Echo
        } else {
            Merge::None
        }
    }
}

/// Whether hidden states are asked for: by `true`, by the name of a mode, or by any of these in the list of a batch.
///
/// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`return_hidden_states`).
fn asks_for_hidden_states(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    any(s, |s| match s.kind()? {
        Kind::Text => s.text().map(|mode| mode == "last"),
        _ => is_true(s),
    })
}

fn rid(s: &mut Scanner<'_>) -> Result<Option<Rid>, json::Error> {
    match s.kind()? {
        Kind::Text => Ok(Some(Rid::One(s.text()?.into_owned()))),
        Kind::Array => {
            let mut ids = 0;
            s.array(|s, _| {
                ids += 1;
                s.skip().map(drop)
            })?;
            Ok(Some(Rid::Many(ids)))
        }
        _ => s.skip().map(|_| None),
    }
}

/// Whether the value is a list that holds anything but empty lists.
fn is_filled_list(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    let list = s.kind()? == Kind::Array;
    let value = s.skip()?;
    Ok(list
        && !s
            .slice(value)
            .trim_matches(['[', ']', ' ', '\t', '\r', '\n'])
            .is_empty())
}

/// Whether the value, or any element where it is a list, passes.
fn any<F>(s: &mut Scanner<'_>, mut passes: F) -> Result<bool, json::Error>
where
    F: FnMut(&mut Scanner<'_>) -> Result<bool, json::Error>,
{
    if s.kind()? != Kind::Array {
        return passes(s);
    }
    let mut passed = false;
    s.array(|s, _| {
        passed |= passes(s)?;
        Ok(())
    })?;
    Ok(passed)
}

fn is_true(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    let value = s.skip()?;
    Ok(s.slice(value) == "true")
}

/// An integer as JSON writes it; `None` for any other value, which the worker will refuse.
fn integer(s: &mut Scanner<'_>) -> Result<Option<i64>, json::Error> {
    let value = s.skip()?;
    Ok(s.slice(value).parse().ok())
}

pub(in crate::pd) fn is_truthy(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    const WORDS: [&str; 6] = ["1", "true", "t", "yes", "y", "on"];
    match s.kind()? {
        Kind::Text => s
            .text()
            .map(|text| WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))),
        Kind::Bool => is_true(s),
        _ => Ok(lax_integer(s)? == Some(1)),
    }
}

/// An integer in any spelling that Pydantic accepts. A number that does not fit becomes the largest or smallest that
/// does.
pub(super) fn lax_integer(s: &mut Scanner<'_>) -> Result<Option<i64>, json::Error> {
    match s.kind()? {
        Kind::Bool => is_true(s).map(|yes| Some(i64::from(yes))),
        Kind::Text => s.text().map(|text| whole(&text.trim().replace('_', ""))),
        Kind::Number => s.skip().map(|value| whole(s.slice(value))),
        _ => s.skip().map(|_| None),
    }
}

/// The number that a text writes, if it has no fraction.
pub(super) fn whole(text: &str) -> Option<i64> {
    let fraction = || {
        text.parse::<f64>()
            .ok()
            .filter(|number| number.fract() == 0.0)
    };
    text.parse()
        .ok()
        .or_else(|| fraction().map(|number| number as i64))
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests;
