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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn facts(route: Route, body: &str) -> Facts {
        parse(route, body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e}"))
    }

    #[test]
    fn stream_is_true_as_the_worker_reads_it() {
        for (value, strict, lax) in [
            ("true", true, true),
            ("false", false, false),
            ("null", false, false),
            ("1", false, true),
            ("1.0", false, true),
            ("2", false, false),
            ("\"TRUE\"", false, true),
            ("\"yes\"", false, true),
            ("\" true\"", false, false),
            ("[true]", false, false),
        ] {
            let body = format!("{{\"stream\":{value}}}");
            assert_eq!(facts(Route::Generate, &body).stream, strict, "{body}");
            for route in Route::ALL
                .into_iter()
                .filter(|route| *route != Route::Generate)
            {
                assert_eq!(facts(route, &body).stream, lax, "{body}");
            }
        }
        assert!(!facts(Route::Generate, "{}").stream);
    }

    #[test]
    fn the_last_of_repeated_keys_counts_in_any_spelling() {
        let stream = |body| facts(Route::ChatCompletions, body).stream;
        assert!(stream(r#"{"stream":false,"stream":true}"#));
        assert!(!stream(r#"{"stream":true,"str\u0065am":false}"#));
        let body = r#"{"text":["a","b"],"t\u0065xt":"a","sampling_params":{"n":3,"n":2}}"#;
        assert_eq!(facts(Route::Generate, body).batch, Batch::Single);
        assert_eq!(facts(Route::Generate, body).n, 2);
        assert_eq!(
            facts(Route::Generate, r#"{"rid":"a","rid":null}"#).rid,
            None
        );
    }

    #[test]
    fn generate_is_a_batch_when_the_first_given_kind_of_prompt_is_a_list() {
        for (body, batch) in [
            (r#"{}"#, Batch::Single),
            (r#"{"text":"a"}"#, Batch::Single),
            (r#"{"text":[]}"#, Batch::Of(0)),
            (r#"{"text":["a"]}"#, Batch::Of(1)),
            (r#"{"text":["a","[,]","{"]}"#, Batch::Of(3)),
            (r#"{"text":["a",1]}"#, Batch::Single),
            (r#"{"text":null,"input_ids":[[1],[2]]}"#, Batch::Of(2)),
            (r#"{"input_ids":[[1],[2]],"text":"a"}"#, Batch::Single),
            (r#"{"input_ids":[1,2]}"#, Batch::Single),
            (r#"{"input_ids":[]}"#, Batch::Single),
            (r#"{"input_ids":[[]]}"#, Batch::Of(1)),
            (r#"{"input_ids":[[1],2]}"#, Batch::Single),
            (r#"{"input_embeds":[[0.5,1],[2,3]]}"#, Batch::Single),
            (r#"{"input_embeds":[[[0.5,1]],[[2,3]]]}"#, Batch::Of(2)),
            (r#"{"input_embeds":[]}"#, Batch::Single),
            (r#"{"prompt":["a","b"]}"#, Batch::Single),
        ] {
            assert_eq!(facts(Route::Generate, body).batch, batch, "{body}");
        }
    }

    #[test]
    fn completions_is_a_batch_when_the_prompt_is_a_list_of_strings_or_of_lists() {
        for (body, batch) in [
            (r#"{"prompt":"a"}"#, Batch::Single),
            (r#"{"prompt":[1,2]}"#, Batch::Single),
            (r#"{"prompt":["a"]}"#, Batch::Of(1)),
            (r#"{"prompt":["1","2"]}"#, Batch::Of(2)),
            (r#"{"prompt":[[1],[2],[]]}"#, Batch::Of(3)),
            (r#"{"prompt":["1",2]}"#, Batch::Single),
            (r#"{"prompt":["1",[2]]}"#, Batch::Single),
            (r#"{"prompt":[]}"#, Batch::Single),
            (r#"{"text":["a","b"]}"#, Batch::Single),
        ] {
            assert_eq!(facts(Route::Completions, body).batch, batch, "{body}");
            assert_eq!(
                facts(Route::ChatCompletions, body).batch,
                Batch::Single,
                "{body}"
            );
        }
    }

    #[test]
    fn n_is_what_the_worker_would_sample() {
        for (value, strict, lax) in [
            ("2", 2, 2),
            ("1", 1, 1),
            ("0", 1, 1),
            ("-2", 1, 1),
            ("null", 1, 1),
            ("2.0", 1, 2),
            ("2.5", 1, 1),
            ("\"2\"", 1, 2),
            ("\" 1_0 \"", 1, 10),
            ("[2]", 1, 1),
            ("9223372036854775807", i64::MAX as u64, i64::MAX as u64),
            ("1000000000000000000000", 1, i64::MAX as u64),
        ] {
            let body =
                format!("{{\"n\":{value},\"sampling_params\":{{\"n\":{value}}},\"best_of\":9}}");
            assert_eq!(facts(Route::Generate, &body).n, strict, "{body}");
            assert_eq!(facts(Route::Completions, &body).n, lax, "{body}");
            assert_eq!(facts(Route::ChatCompletions, &body).n, lax, "{body}");
            assert_eq!(facts(Route::Messages, &body).n, 1, "{body}");
        }
        let list = r#"{"sampling_params":[{"n":2},{},{"n":4},null,{"n":3}]}"#;
        assert_eq!(facts(Route::Generate, list).n, 4);
    }

    #[test]
    fn prompt_logprobs_are_merged_only_when_prefill_has_some() {
        for (fields, merge) in [
            (r#""logprob_start_len":0"#, Merge::None),
            (r#""return_logprob":true"#, Merge::None),
            (r#""return_logprob":true,"top_logprobs_num":2"#, Merge::None),
            (
                r#""return_logprob":true,"logprob_start_len":-1"#,
                Merge::None,
            ),
            (
                r#""return_logprob":true,"logprob_start_len":[-1,-1]"#,
                Merge::None,
            ),
            (
                r#""return_logprob":true,"logprob_start_len":null,"token_ids_logprob":[]"#,
                Merge::None,
            ),
            (
                r#""return_logprob":true,"token_ids_logprob":null"#,
                Merge::None,
            ),
            (
                r#""return_logprob":[false],"logprob_start_len":0"#,
                Merge::None,
            ),
            (r#""return_logprob":1,"logprob_start_len":0"#, Merge::None),
            (
                r#""return_logprob":true,"logprob_start_len":0"#,
                Merge::InputLogprobs,
            ),
            (
                r#""return_logprob":[false,true],"logprob_start_len":[-1,7]"#,
                Merge::InputLogprobs,
            ),
            (
                r#""return_logprob":true,"token_ids_logprob":[3]"#,
                Merge::InputLogprobs,
            ),
            (
                r#""return_logprob":true,"token_ids_logprob":[[3],[4]]"#,
                Merge::InputLogprobs,
            ),
            (r#""echo":true,"logprobs":1"#, Merge::None),
        ] {
            assert_eq!(
                facts(Route::Generate, &format!("{{{fields}}}")).merge,
                merge,
                "{fields}"
            );
        }
    }

    #[test]
    fn an_echoed_prompt_is_merged_when_logprobs_is_a_number_other_than_zero() {
        for (fields, merge) in [
            (r#""echo":true"#, Merge::None),
            (r#""logprobs":1"#, Merge::None),
            (r#""echo":true,"logprobs":null"#, Merge::None),
            (r#""echo":true,"logprobs":0"#, Merge::None),
            (r#""echo":true,"logprobs":false"#, Merge::None),
            (r#""echo":false,"logprobs":1"#, Merge::None),
            (r#""echo":true,"logprobs":1"#, Merge::Echo),
            (r#""echo":1,"logprobs":true"#, Merge::Echo),
            (r#""echo":true,"logprobs":"2""#, Merge::Echo),
            (r#""echo":true,"logprobs":-1"#, Merge::Echo),
        ] {
            let body = format!("{{{fields}}}");
            assert_eq!(facts(Route::Completions, &body).merge, merge, "{fields}");
            assert_eq!(
                facts(Route::ChatCompletions, &body).merge,
                Merge::None,
                "{fields}"
            );
        }
    }

    #[test]
    fn the_clients_own_request_id_is_found() {
        for (value, rid) in [
            (r#""a\u0062""#, Some(Rid::One("ab".to_owned()))),
            (r#"["a","b"]"#, Some(Rid::Many(2))),
            ("null", None),
            ("7", None),
        ] {
            assert_eq!(
                facts(Route::Generate, &format!("{{\"rid\":{value}}}")).rid,
                rid,
                "{value}"
            );
        }
    }

    #[test]
    fn what_is_no_object_is_invalid_with_a_clear_word() {
        let deep = "[".repeat(200);
        for (body, message) in [
            (
                "",
                "the body is not valid JSON: the text ends too early at byte 0",
            ),
            (
                "{\"a\":}",
                "the body is not valid JSON: a value was expected at byte 5",
            ),
            (
                "{} x",
                "the body is not valid JSON: text after the end of the value at byte 3",
            ),
            ("[1]", "the body must be a JSON object"),
            (
                "[1",
                "the body is not valid JSON: the text ends too early at byte 2",
            ),
            (
                &deep,
                "the body is nested more than 128 levels deep at byte 128",
            ),
        ] {
            for route in Route::ALL {
                let invalid = parse(route, body.as_bytes()).unwrap_err();
                assert_eq!(invalid.to_string(), message, "{body}");
            }
        }
    }
}
