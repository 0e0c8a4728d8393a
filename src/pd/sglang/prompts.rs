//! How prompts are counted: which values of the fields that carry prompts are one prompt, and which are a batch.
//!
//! What may not live here: the names of those fields and their order of precedence, see [`super::request`].
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`_determine_batch_size`) and
//! `srt/entrypoints/openai/protocol.py` (`CompletionRequest.prompt`).

use super::super::json::{self, Kind, Scanner};

/// The value of a field that carries prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Prompt {
    /// Absent or null.
    #[default]
    Absent,
    /// One prompt, or a value that the worker will refuse.
    One,
    /// A list of this many prompts.
    List(usize),
}

impl Prompt {
    /// For a field whose single prompt is itself a list: the empty list is one prompt without tokens.
    pub(super) fn empty_is_one(self) -> Self {
        if self == Self::List(0) {
            Self::One
        } else {
            self
        }
    }
}

/// Reads prompts: a list is a batch if every element passes `is_prompt`, which must take exactly that element.
pub(super) fn prompt<F>(s: &mut Scanner<'_>, mut is_prompt: F) -> Result<Prompt, json::Error>
where
    F: FnMut(&mut Scanner<'_>) -> Result<bool, json::Error>,
{
    match s.kind()? {
        Kind::Null => s.skip().map(|_| Prompt::Absent),
        // Token ids: one prompt, whatever follows in the list. Not visited one by one, because there are thousands.
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

/// Reads the `prompt` of `/v1/completions`: a list of strings or a list of lists is a batch, a mixture is not. The worker
/// refuses the empty list.
pub(super) fn completions_prompt(s: &mut Scanner<'_>) -> Result<Prompt, json::Error> {
    let mut first = None;
    let prompt = prompt(s, |s| {
        let kind = s.kind()?;
        s.skip()?;
        Ok(matches!(kind, Kind::Text | Kind::Array) && *first.get_or_insert(kind) == kind)
    })?;
    Ok(prompt.empty_is_one())
}

/// Takes a value, and returns whether it is of this kind.
pub(super) fn is_kind(s: &mut Scanner<'_>, wanted: Kind) -> Result<bool, json::Error> {
    let kind = s.kind()?;
    s.skip()?;
    Ok(kind == wanted)
}

/// Takes a value, and returns whether it is a list that begins with a list.
pub(super) fn is_list_of_lists(s: &mut Scanner<'_>) -> Result<bool, json::Error> {
    if s.kind()? != Kind::Array {
        return is_kind(s, Kind::Array);
    }
    let mut nested = false;
    s.array(|s, element| {
        let list = is_kind(s, Kind::Array)?;
        nested |= element == 0 && list;
        Ok(())
    })?;
    Ok(nested)
}
