//! Values of options that no worker may get: numbers out of range, lists that do not fit the prompts, negative token ids.
//!
//! What lives here: the table of the fields that are checked, one line each, and the check. What may not: values that a
//! worker refuses by itself and without harm (`temperature`, `top_p`, the penalties, a wrong type), because the worker's
//! own words say more, and values that it takes.
//!
//! The fields are read on the one pass over the body ([`super::request`]); a field without a row costs the search for its
//! name. Token ids have no upper bound here: neither `/model_info` nor `/server_info` tells the size of the vocabulary.
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`GenerateReqInput`), `srt/sampling/sampling_params.py` (`verify`),
//! `srt/sampling/sampling_batch_info.py` (the types of the tensors), `srt/entrypoints/openai/protocol.py`,
//! `srt/entrypoints/anthropic/protocol.py`, `srt/entrypoints/http_server.py` (`model_info`, `server_info`).

use std::fmt;

use memchr::memchr_iter;

use super::super::Route;
use super::super::json::Scanner;
use super::request::{Batch, Facts, lax_integer, whole};

/// The places of a field, as bits.
#[derive(Clone, Copy)]
struct Places(u8);

const GENERATE: Places = Places(1);
/// Within `sampling_params` of `/generate`.
const SAMPLING: Places = Places(1 << 1);
const CHAT: Places = Places(1 << 2);
const COMPLETIONS: Places = Places(1 << 3);
const RESPONSES: Places = Places(1 << 4);
const MESSAGES: Places = Places(1 << 5);
const TEXT: Places = CHAT.and(COMPLETIONS);

impl Places {
    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn of(route: Route) -> Self {
        match route {
            Route::Generate => GENERATE,
            Route::ChatCompletions => CHAT,
            Route::Completions => COMPLETIONS,
            Route::Responses => RESPONSES,
            Route::Messages => MESSAGES,
        }
    }

    const fn has(self, place: Self) -> bool {
        self.0 & place.0 != 0
    }
}

/// What the value of a field must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// An integer from the first to the second.
    Integer(i64, i64),
    /// The same, or a list with one for each prompt.
    Integers(i64, i64),
    /// Anything, or a list with one for each prompt.
    List,
    /// Token ids, in one list or in lists of lists.
    Tokens,
    /// The same; a list of lists has one for each prompt.
    TokensOfEach,
    /// Numbers by token: as large as the worker's 32-bit floats hold.
    Bias,
}

/// One field.
struct Row {
    field: &'static str,
    /// The field with its path, for messages.
    path: &'static str,
    places: Places,
    form: Form,
}

impl Row {
    /// Whether the field says how many alternatives per token are wanted.
    fn is_top_logprobs(&self) -> bool {
        matches!(self.field, "top_logprobs_num" | "top_logprobs" | "logprobs")
    }
}

const fn row(field: &'static str, places: Places, form: Form) -> Row {
    Row {
        field,
        path: field,
        places,
        form,
    }
}

/// A row within `sampling_params`.
const fn sampling(field: &'static str, path: &'static str, form: Form) -> Row {
    Row {
        field,
        path,
        places: SAMPLING,
        form,
    }
}

const NONE: i64 = i64::MIN;
const ALL: i64 = i64::MAX;
/// The integers of sampling are tensors of 32 bits.
const INT32: i64 = i32::MAX as i64;

/// The fields that are checked.
#[rustfmt::skip] // one line for each row
const TABLE: &[Row] = &[
    // How many alternatives per token. The bounds are the proxy's own: see `limit_top_logprobs`.
    row("top_logprobs_num", GENERATE, Form::Integers(NONE, ALL)),
    row("top_logprobs", CHAT.and(RESPONSES), Form::Integer(NONE, ALL)),
    row("logprobs", COMPLETIONS, Form::Integer(NONE, ALL)),
    // -1 is no position of the prompt. Without `return_logprob` the field has no effect.
    row(LOGPROB_START_LEN, GENERATE, Form::Integers(-1, ALL)),
    row("return_logprob", GENERATE, Form::List),
    row("return_sampling_mask", GENERATE, Form::List),
    row("sampling_logprobs_mode", GENERATE, Form::List),
    row("custom_logit_processor", GENERATE, Form::List),
    row("sampling_params", GENERATE, Form::List),
    row("rid", GENERATE.and(TEXT), Form::List),
    row("token_ids_logprob", GENERATE, Form::TokensOfEach),
    row("input_ids", GENERATE.and(CHAT), Form::Tokens),
    row("prompt", COMPLETIONS, Form::Tokens),
    row("stop_token_ids", TEXT, Form::Tokens),
    sampling("stop_token_ids", "sampling_params.stop_token_ids", Form::Tokens),
    row("top_k", TEXT.and(RESPONSES).and(MESSAGES), Form::Integer(NONE, INT32)),
    sampling("top_k", "sampling_params.top_k", Form::Integer(NONE, INT32)),
    row("min_tokens", TEXT, Form::Integer(NONE, INT32)),
    sampling("min_new_tokens", "sampling_params.min_new_tokens", Form::Integer(NONE, INT32)),
    row("logit_bias", TEXT, Form::Bias),
    sampling("logit_bias", "sampling_params.logit_bias", Form::Bias),
];

const LOGPROB_START_LEN: &str = "logprob_start_len";

/// Why the value of an option is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// The field with its path.
    pub field: &'static str,
    /// What is wrong with it.
    pub fault: OptionFault,
}

/// What is wrong with the value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionFault {
    /// It is outside of this range.
    Range {
        /// The smallest value that is allowed.
        min: i64,
        /// The largest.
        max: i64,
        /// The value.
        got: i64,
    },
    /// A token id is negative.
    Token(i64),
    /// A number is larger than a float of 32 bits.
    Float,
    /// A list for one prompt.
    ListForOne,
    /// A list of `values` for more `prompts`.
    TooShort {
        /// How many the list has.
        values: usize,
        /// How many prompts the request has.
        prompts: usize,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field;
        match self.fault {
            OptionFault::Range { min, max: ALL, got } => {
                write!(f, "{field} must be at least {min}, got {got}.")
            }
            OptionFault::Range {
                min: NONE,
                max,
                got,
            } => {
                write!(f, "{field} must be at most {max}, got {got}.")
            }
            OptionFault::Range { min, max, got } => {
                write!(f, "{field} must be in [{min}, {max}], got {got}.")
            }
            OptionFault::Token(got) => {
                write!(f, "{field} must have token ids of at least 0, got {got}.")
            }
            OptionFault::Float => {
                write!(f, "{field} must have values of at most {:e}.", f32::MAX)
            }
            // The engine's own words.
            OptionFault::ListForOne if field == "token_ids_logprob" => {
                write!(f, "{field} must be a flat list of integers.")
            }
            OptionFault::ListForOne => write!(f, "{field} must not be a list for one prompt."),
            OptionFault::TooShort { values, prompts } => write!(
                f,
                "{field} has {values} values for {prompts} prompts: a list must have one for each."
            ),
        }
    }
}

impl std::error::Error for OptionError {}

/// The smallest and the largest number of alternatives per token that a request asks for, and 0.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pd) struct TopLogprobs {
    least: i64,
    most: i64,
}

/// The options of one request, as far as they are checked. A field that is there again replaces the earlier one.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// Faults by row of the table, and by element where `sampling_params` is a list.
    faults: Vec<(usize, usize, OptionFault)>,
    /// Lengths of the lists that have one value for each prompt, by row.
    lists: Vec<(usize, usize)>,
    top_logprobs: TopLogprobs,
}

impl Options {
    /// Notes a field of the body.
    pub(super) fn note(&mut self, route: Route, name: &str, value: &str) {
        if let Some(row) = find(Places::of(route), name) {
            self.lists.retain(|(noted, _)| *noted != row);
            let lax = route != Route::Generate;
            self.read(row, 0, value.trim_ascii(), lax);
        }
    }

    /// Notes a field of the n-th object in `sampling_params`.
    pub(super) fn note_sampling(&mut self, element: usize, name: &str, value: &str) {
        if let Some(row) = find(SAMPLING, name) {
            self.read(row, element, value.trim_ascii(), false);
        }
    }

    /// Forgets what was noted of `sampling_params`: the field is there again.
    pub(super) fn forget_sampling(&mut self) {
        self.faults
            .retain(|(row, ..)| !TABLE[*row].places.has(SAMPLING));
    }

    /// The numbers of alternatives per token that are asked for.
    pub(super) fn top_logprobs(&self) -> TopLogprobs {
        self.top_logprobs
    }

    /// Checks what was noted against the rest of the request. Lists are checked where there is a `batch` that they must
    /// fit.
    ///
    /// # Errors
    /// The first fault in the order of the table, or the first list that does not fit.
    pub(super) fn check(
        &self,
        batch: Option<Batch>,
        return_logprob: bool,
    ) -> Result<(), OptionError> {
        let matters = |row: usize| return_logprob || TABLE[row].field != LOGPROB_START_LEN;
        let faults = self.faults.iter().filter(|(row, ..)| matters(*row));
        if let Some((row, _, fault)) = faults.min_by_key(|(row, ..)| row) {
            return Err(error(*row, fault.clone()));
        }
        let Some(batch) = batch else {
            return Ok(());
        };
        for (row, values) in &self.lists {
            let fault = match batch {
                Batch::Single => OptionFault::ListForOne,
                Batch::Of(prompts) if *values < prompts => OptionFault::TooShort {
                    values: *values,
                    prompts,
                },
                Batch::Of(_) => continue,
            };
            // The worker has its own words for ids that are no match for a batch.
            if TABLE[*row].field != "rid" || fault == OptionFault::ListForOne {
                return Err(error(*row, fault));
            }
        }
        Ok(())
    }

    /// Reads a value, which is JSON. `lax` is whether the worker takes integers in other spellings.
    fn read(&mut self, row: usize, element: usize, value: &str, lax: bool) {
        self.faults
            .retain(|(noted, of, _)| (*noted, *of) != (row, element));
        if TABLE[row].is_top_logprobs() {
            self.top_logprobs = TopLogprobs::default();
        }
        let fault = match TABLE[row].form {
            Form::Integer(min, max) => self.integer(row, number(value, lax), min, max),
            Form::Integers(min, max) => self.integers(row, value, min, max),
            Form::List => {
                self.lists
                    .extend(elements(value, |_| {}).map(|values| (row, values)));
                None
            }
            Form::Tokens => negative(value),
            Form::TokensOfEach => {
                let mut nested = false;
                let values = elements(value, |element| nested |= element.starts_with('['));
                self.lists
                    .extend(values.filter(|_| nested).map(|values| (row, values)));
                negative(value)
            }
            Form::Bias => is_too_large(value).then_some(OptionFault::Float),
        };
        if let Some(fault) = fault {
            self.faults.push((row, element, fault));
        }
    }

    fn integer(&mut self, row: usize, got: Option<i64>, min: i64, max: i64) -> Option<OptionFault> {
        let got = got?;
        if TABLE[row].is_top_logprobs() {
            let TopLogprobs { least, most } = &mut self.top_logprobs;
            (*least, *most) = (got.min(*least), got.max(*most));
        }
        (got < min || got > max).then_some(OptionFault::Range { min, max, got })
    }

    fn integers(&mut self, row: usize, value: &str, min: i64, max: i64) -> Option<OptionFault> {
        let mut fault = None;
        let values = elements(value, |element| {
            let found = self.integer(row, number(element, false), min, max);
            fault = fault.take().or(found);
        });
        match values {
            Some(values) => self.lists.push((row, values)),
            None => fault = self.integer(row, number(value, false), min, max),
        }
        fault
    }
}

/// Checks the numbers of alternatives per token: from 0 to `max`. One below 0 is 0 to a worker that has no other request,
/// and no worker is sure to have none.
///
/// # Errors
/// The number that is out of range.
pub fn limit_top_logprobs(route: Route, facts: &Facts, max: u32) -> Result<(), OptionError> {
    let max = i64::from(max);
    let TopLogprobs { least, most } = facts.top_logprobs;
    let Some(got) = [least, most].into_iter().find(|got| *got < 0 || *got > max) else {
        return Ok(());
    };
    let is_wanted = |row: &&Row| row.is_top_logprobs() && row.places.has(Places::of(route));
    TABLE.iter().find(is_wanted).map_or(Ok(()), |row| {
        Err(OptionError {
            field: row.path,
            fault: OptionFault::Range { min: 0, max, got },
        })
    })
}

/// The row of a field.
fn find(place: Places, name: &str) -> Option<usize> {
    TABLE
        .iter()
        .position(|row| row.field == name && row.places.has(place))
}

fn error(row: usize, fault: OptionFault) -> OptionError {
    OptionError {
        field: TABLE[row].path,
        fault,
    }
}

/// Visits the elements of a list; how many there are, or `None` where the value is no list.
fn elements(value: &str, mut visit: impl FnMut(&str)) -> Option<usize> {
    if !value.starts_with('[') {
        return None;
    }
    let mut found = 0;
    let mut scanner = Scanner::new(value.as_bytes()).ok()?;
    let read = scanner.array(|s, _| {
        let element = s.skip()?;
        visit(s.slice(element));
        found += 1;
        Ok(())
    });
    read.ok().map(|_| found)
}

/// An integer; `None` for any other value, which the worker will refuse. One that does not fit becomes the largest or the
/// smallest that does.
fn number(value: &str, lax: bool) -> Option<i64> {
    if lax {
        return lax_integer(&mut Scanner::new(value.as_bytes()).ok()?).ok()?;
    }
    let digits = value.strip_prefix('-').unwrap_or(value);
    let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_integer.then(|| whole(value))?
}

/// The first negative number in a list, or in a list of lists, of numbers.
fn negative(value: &str) -> Option<OptionFault> {
    let first = value.trim_start_matches(|c: char| c == '[' || c.is_ascii_whitespace());
    // Texts may have anything in them.
    if !value.starts_with('[') || first.starts_with('"') {
        return None;
    }
    memchr_iter(b'-', value.as_bytes()).find_map(|at| {
        if !value[..at].trim_ascii_end().ends_with(['[', ',']) {
            return None;
        }
        let rest = &value[at..];
        let end = rest.find([',', ']']).unwrap_or(rest.len());
        let number: f64 = rest[..end].trim_ascii().parse().ok()?;
        (number < 0.0).then_some(OptionFault::Token(number as i64))
    })
}

/// Whether a number in an object is larger than a float of 32 bits.
fn is_too_large(value: &str) -> bool {
    let mut found = false;
    let read = Scanner::new(value.as_bytes()).and_then(|mut scanner| {
        scanner.object(|s, _| {
            let number = s.skip()?;
            let number: Option<f64> = s.slice(number).trim_matches('"').trim().parse().ok();
            found |= number.is_some_and(|number| number.abs() > f64::from(f32::MAX));
            Ok(())
        })
    });
    read.is_ok() && found
}

#[cfg(test)]
mod tests;
