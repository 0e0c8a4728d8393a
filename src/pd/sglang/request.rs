//! PARSE: what the proxy must know of a request before it can send it twice.
//!
//! What lives here: one pass over the body that finds the few facts below and the places where
//! [`super::bootstrap`] cuts and writes. What may not: judging a request. A value that the worker will
//! refuse gets the harmless reading, and the worker says what is wrong with it.
//!
//! A repeated key counts as Python counts it: the last one wins.

use std::fmt;

use super::super::Route;
use super::super::json::{self, Cuts, Kind, Scanner};

/// The fields that belong to the proxy; whatever a client puts there is cut out. A client's
/// `bootstrap_host` would make decode open connections to a place of the client's choice.
const OWNED: [&str; 3] = ["bootstrap_host", "bootstrap_port", "bootstrap_room"];

/// What was read from one request.
#[derive(Debug)]
pub struct Facts {
    /// Whether the worker will answer with events.
    pub stream: bool,
    /// How many prompts the request has, and whether as a list.
    pub batch: Batch,
    /// Samples per prompt, at least 1.
    pub n: u64,
    /// What of prefill's answer must get into decode's.
    pub merge: Merge,
    /// The request id that the client chose; `None` when there is none or it is null.
    pub rid: Option<Rid>,
    /// What to leave out of the body.
    pub(super) cuts: Cuts,
    /// Where the closing brace stands.
    pub(super) close: usize,
}

/// The number of prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// One prompt; the answer is one object.
    Single,
    /// A list of prompts; the answer is a list, even of one.
    Of(usize),
}

impl Batch {
    /// How many prompts there are, which is how many rooms the request needs.
    pub const fn prompts(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Of(prompts) => prompts,
        }
    }
}

/// What decode's answer lacks and prefill's has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Nothing; prefill's answer need not be read.
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
    /// A list of that many ids, for a batch.
    Many(usize),
}

/// Why a body cannot be sent to a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The body is not JSON.
    NotJson {
        /// Where, in bytes from the start of the body.
        offset: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// The body is JSON, but not an object.
    NotAnObject,
    /// The body nests too deep.
    TooDeep {
        /// Where the limit is passed, in bytes from the start of the body.
        offset: usize,
    },
    /// `logprob_start_len` is out of range: the smallest value is -1, for "no prompt position".
    ///
    /// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`logprob_start_len`).
    LogprobStart,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
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
            Self::LogprobStart => write!(f, "logprob_start_len must be -1 or greater"),
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
/// When the body is not a JSON object, nests too deep, or has a field out of range.
pub fn parse(route: Route, body: &[u8]) -> Result<Facts, Invalid> {
    let mut scanner = Scanner::new(body)?;
    if scanner.kind()? != Kind::Object {
        scanner.skip()?;
        scanner.end()?;
        return Err(Invalid::NotAnObject);
    }
    let mut seen = Seen::default();
    let mut cuts = Cuts::default();
    let close = scanner.object(|s, member| {
        if OWNED.contains(&&*member.name) {
            let value = s.skip()?;
            cuts.cut(member.comma, member.start..value.end);
            return Ok(());
        }
        cuts.keep(member.comma);
        match route {
            Route::Generate => seen.generate(s, &member.name),
            _ => seen.openai(route, s, &member.name),
        }
    })?;
    scanner.end()?;
    if seen.return_logprob && seen.starts_before_all {
        return Err(Invalid::LogprobStart);
    }
    Ok(Facts {
        stream: seen.stream,
        batch: seen.batch(),
        n: seen.n.unwrap_or(1),
        merge: seen.merge(),
        rid: seen.rid,
        cuts,
        close,
    })
}

/// What the fields said, before they are weighed against each other.
#[derive(Debug, Default)]
struct Seen {
    stream: bool,
    n: Option<u64>,
    rid: Option<Rid>,
    prompt: Prompt,
    text: Prompt,
    input_ids: Prompt,
    input_embeds: Prompt,
    return_logprob: bool,
    starts_in_prompt: bool,
    starts_before_all: bool,
    token_ids: bool,
    echo: bool,
    logprobs: bool,
}

impl Seen {
    /// A field of `/generate`. Its types are strict: only `true` is true, and 1.0 is no integer.
    ///
    /// Source: SGLang 0.5.23, `api/v1/api_types.py` (`_expect_bool`, `_expect_int`).
    fn generate(&mut self, s: &mut Scanner<'_>, name: &str) -> Result<(), json::Error> {
        match name {
            "stream" => self.stream = is_true(s)?,
            "rid" => self.rid = rid(s)?,
            "text" => self.text = prompt(s, |s| is(s, Kind::Text))?,
            "input_ids" => self.input_ids = prompt(s, |s| is(s, Kind::Array))?.or_flat(),
            "input_embeds" => self.input_embeds = prompt(s, is_list_of_lists)?.or_flat(),
            "sampling_params" => self.n = samples(s)?,
            "return_logprob" => self.return_logprob = any(s, is_true)?,
            "logprob_start_len" => {
                self.starts_in_prompt = false;
                self.starts_before_all = false;
                any(s, |s| {
                    let start = integer(s)?;
                    self.starts_in_prompt |= start.is_some_and(|start| start != -1);
                    self.starts_before_all |= start.is_some_and(|start| start < -1);
                    Ok(false)
                })?;
            }
            "token_ids_logprob" => self.token_ids = is_filled_list(s)?,
            _ => {
                s.skip()?;
            }
        }
        Ok(())
    }

    /// A field of the other routes. Their types are lax: 1 and "yes" are true, "2" is an integer.
    ///
    /// Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py`; Pydantic 2, "Conversion table".
    fn openai(&mut self, route: Route, s: &mut Scanner<'_>, name: &str) -> Result<(), json::Error> {
        match (route, name) {
            (_, "stream") => self.stream = is_truthy(s)?,
            (_, "rid") => self.rid = rid(s)?,
            (Route::ChatCompletions | Route::Completions, "n") => {
                self.n = lax_integer(s)?.and_then(positive);
            }
            (Route::Completions, "prompt") => self.prompt = prompt_of_completions(s)?,
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

    /// The first of the three kinds of prompt that is given decides, as in the worker.
    ///
    /// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`_determine_batch_size`).
    fn batch(&self) -> Batch {
        let kinds = [self.prompt, self.text, self.input_ids, self.input_embeds];
        match kinds.into_iter().find(|kind| *kind != Prompt::Absent) {
            Some(Prompt::List(prompts)) => Batch::Of(prompts),
            _ => Batch::Single,
        }
    }

    /// `top_logprobs_num` alone adds nothing: without a start in the prompt both sides say `[]`.
    ///
    /// Source: SGLang 0.5.23, `srt/managers/scheduler.py` (`logprob_start_len == -1`) and
    /// `srt/entrypoints/openai/serving_completions.py` (`if request.echo and request.logprobs`).
    fn merge(&self) -> Merge {
        if self.return_logprob && (self.starts_in_prompt || self.token_ids) {
            Merge::InputLogprobs
        } else if self.echo && self.logprobs {
            Merge::Echo
        } else {
            Merge::None
        }
    }
}

/// What one of the fields that carry prompts holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Prompt {
    /// It is not there, or null.
    #[default]
    Absent,
    /// One prompt, or something that the worker will refuse.
    One,
    /// A list of prompts.
    List(usize),
}

impl Prompt {
    /// For a field whose single prompt is a list too: the empty list is one prompt without tokens.
    fn or_flat(self) -> Self {
        if self == Self::List(0) {
            Self::One
        } else {
            self
        }
    }
}

/// Reads prompts: a list of which every element passes `is_prompt` is a batch.
fn prompt<F>(s: &mut Scanner<'_>, mut is_prompt: F) -> Result<Prompt, json::Error>
where
    F: FnMut(&mut Scanner<'_>) -> Result<bool, json::Error>,
{
    match s.kind()? {
        Kind::Null => s.skip().map(|_| Prompt::Absent),
        // Token ids: one prompt, whatever else is in the list.
        Kind::Array if s.is_array_of_numbers() => s.skip().map(|_| Prompt::One),
        Kind::Array => {
            let (mut prompts, mut all) = (0, true);
            s.array(|s, _| {
                prompts += 1;
                all &= is_prompt(s)?;
                Ok(())
            })?;
            Ok(if all {
                Prompt::List(prompts)
            } else {
                Prompt::One
            })
        }
        _ => s.skip().map(|_| Prompt::One),
    }
}

/// A list of strings or a list of lists, but not a mixture, is a batch. The worker refuses the empty one.
fn prompt_of_completions(s: &mut Scanner<'_>) -> Result<Prompt, json::Error> {
    let mut first = None;
    let prompt = prompt(s, |s| {
        let kind = s.kind()?;
        s.skip()?;
        Ok(matches!(kind, Kind::Text | Kind::Array) && *first.get_or_insert(kind) == kind)
    })?;
    Ok(prompt.or_flat())
}

/// The `n` of `sampling_params`: of an object, or the largest of a list of objects.
fn samples(s: &mut Scanner<'_>) -> Result<Option<u64>, json::Error> {
    let mut most = None;
    if s.kind()? == Kind::Array {
        s.array(|s, _| {
            most = most.max(samples_of_one(s)?);
            Ok(())
        })?;
    } else {
        most = samples_of_one(s)?;
    }
    Ok(most)
}

fn samples_of_one(s: &mut Scanner<'_>) -> Result<Option<u64>, json::Error> {
    let mut n = None;
    if s.kind()? == Kind::Object {
        s.object(|s, member| {
            let value = s.skip()?;
            if member.name == "n" {
                n = s.slice(value).parse().ok().and_then(positive);
            }
            Ok(())
        })?;
    } else {
        s.skip()?;
    }
    Ok(n)
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

fn is(s: &mut Scanner<'_>, wanted: Kind) -> Result<bool, json::Error> {
    let kind = s.kind()?;
    s.skip()?;
    Ok(kind == wanted)
}

fn is_list_of_lists(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    if s.kind()? != Kind::Array {
        return is(s, Kind::Array);
    }
    let mut nested = false;
    s.array(|s, element| {
        let list = is(s, Kind::Array)?;
        nested |= element == 0 && list;
        Ok(())
    })?;
    Ok(nested)
}

fn is_filled_list(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    let list = s.kind()? == Kind::Array;
    let value = s.skip()?;
    Ok(list
        && !s
            .slice(value)
            .trim_matches(['[', ']', ' ', '\t', '\r', '\n'])
            .is_empty())
}

/// Whether a value, or any element of a list, passes.
fn any<F>(s: &mut Scanner<'_>, mut passes: F) -> Result<bool, json::Error>
where
    F: FnMut(&mut Scanner<'_>) -> Result<bool, json::Error>,
{
    if s.kind()? != Kind::Array {
        return passes(s);
    }
    let mut found = false;
    s.array(|s, _| {
        found |= passes(s)?;
        Ok(())
    })?;
    Ok(found)
}

fn is_true(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    let value = s.skip()?;
    Ok(s.slice(value) == "true")
}

/// `None` for what is no integer: the worker will say so.
fn integer(s: &mut Scanner<'_>) -> Result<Option<i64>, json::Error> {
    let value = s.skip()?;
    Ok(s.slice(value).parse().ok())
}

fn is_truthy(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    const WORDS: [&str; 6] = ["1", "true", "t", "yes", "y", "on"];
    match s.kind()? {
        Kind::Text => s
            .text()
            .map(|text| WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))),
        Kind::Bool => is_true(s),
        _ => Ok(lax_integer(s)? == Some(1)),
    }
}

/// An integer in any spelling that Pydantic takes for one; the largest and smallest stand for what does
/// not fit.
fn lax_integer(s: &mut Scanner<'_>) -> Result<Option<i64>, json::Error> {
    match s.kind()? {
        Kind::Bool => is_true(s).map(|yes| Some(i64::from(yes))),
        Kind::Text => s.text().map(|text| whole(&text.trim().replace('_', ""))),
        Kind::Number => s.skip().map(|value| whole(s.slice(value))),
        _ => s.skip().map(|_| None),
    }
}

fn whole(text: &str) -> Option<i64> {
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
