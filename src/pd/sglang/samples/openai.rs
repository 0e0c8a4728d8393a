//! A document or chunk of chat and completions, as far as gathering must read it: the spans of what changes.
//!
//! What may not live here: what it changes to, see [`super::document`] and [`super::stream`]. Offsets are in bytes from the
//! start of the document.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py` (`ChatCompletionResponse`,
//! `ChatCompletionStreamResponse`, `CompletionResponse`, `CompletionStreamResponse`, `UsageInfo`, `SglExt`).

use std::ops::Range;

use super::super::super::json::{self, Kind, Scanner};
use super::super::worker_response::Edits;

/// A document or chunk. A repeated key counts as in Python: the last one wins.
#[derive(Debug, Default)]
pub(super) struct OpenAi {
    /// The id with its quotes.
    pub(super) id: Option<Range<usize>>,
    pub(super) created: Option<Range<usize>>,
    pub(super) choices: Option<Choices>,
    pub(super) usage: Option<Usage>,
    pub(super) sglext: Option<SglExt>,
    /// Whether it reports an error.
    pub(super) failed: bool,
}

/// The list of choices.
#[derive(Debug)]
pub(super) struct Choices {
    /// What is between the brackets.
    pub(super) inside: Range<usize>,
    pub(super) list: Vec<Choice>,
}

/// One choice.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) span: Range<usize>,
    /// The index, and where it stands; `None` when it has none.
    pub(super) index: Option<(usize, Range<usize>)>,
    /// Whether it has a `finish_reason` other than null.
    pub(super) finished: bool,
}

/// The usage of tokens.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// The values of [`COUNTS`] that are numbers.
    pub(super) counts: [Option<Count>; COUNTS.len()],
    pub(super) prompt_details: Option<Range<usize>>,
    /// The value of `completion_tokens_details`, and whether it is an object.
    pub(super) completion_details: Option<(Range<usize>, bool)>,
    pub(super) close: usize,
}

/// A number of tokens, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Count {
    pub(super) tokens: u64,
    pub(super) span: Range<usize>,
}

/// SGLang's extensions.
#[derive(Debug, Default)]
pub(super) struct SglExt {
    /// The value of `spec_tokens_details`: an object for one sample.
    pub(super) spec: Option<Range<usize>>,
    /// What is between the brackets of `output_ids`, a list of one list for each sample.
    pub(super) output_ids: Option<Range<usize>>,
    /// Where a member before the token ids begins, and the comma that follows or precedes it there.
    pub(super) before_ids: (usize, Joint),
}

/// Where a new member of an object has its comma.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Joint {
    /// It is the only member.
    #[default]
    Alone,
    Before,
    After,
}

pub(super) const PROMPT: usize = 0;
pub(super) const COMPLETION: usize = 1;
pub(super) const REASONING: usize = 2;
pub(super) const TOTAL: usize = 3;

/// The counts of a usage, in the order of the constants above.
const COUNTS: [&str; 4] = [
    "prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "total_tokens",
];

impl OpenAi {
    /// Reads a whole document.
    pub(super) fn parse(document: &[u8]) -> Result<Self, json::Error> {
        let mut s = Scanner::new(document)?;
        let mut found = Self::default();
        s.object(|s, member| {
            let kind = s.kind()?;
            match &*member.name {
                "choices" if kind == Kind::Array => found.choices = Some(Choices::read(s)?),
                "usage" if kind == Kind::Object => found.usage = Some(Usage::read(s)?),
                "sglext" if kind == Kind::Object => found.sglext = Some(SglExt::read(s)?),
                name => {
                    let value = s.skip()?;
                    match name {
                        "id" if kind == Kind::Text => found.id = Some(value),
                        "created" => found.created = Some(value),
                        "error" => found.failed |= kind != Kind::Null,
                        "object" => found.failed |= s.slice(value) == "\"error\"",
                        _ => {}
                    }
                }
            }
            Ok(())
        })?;
        s.end()?;
        Ok(found)
    }
}

impl Choices {
    fn read(s: &mut Scanner<'_>) -> Result<Self, json::Error> {
        let (open, mut list) = (s.at() + 1, Vec::new());
        let close = s.array(|s, _| {
            list.push(Choice::read(s)?);
            Ok(())
        })?;
        let inside = open..close;
        Ok(Self { inside, list })
    }
}

impl Choice {
    fn read(s: &mut Scanner<'_>) -> Result<Self, json::Error> {
        s.kind()?;
        let mut choice = Self::default();
        let start = s.at();
        s.object(|s, member| {
            let value = s.skip()?;
            let text = s.slice(value.clone());
            match &*member.name {
                "index" => choice.index = text.parse().ok().map(|index| (index, value)),
                "finish_reason" => choice.finished = text != "null",
                _ => {}
            }
            Ok(())
        })?;
        choice.span = start..s.at();
        Ok(choice)
    }
}

impl Usage {
    fn read(s: &mut Scanner<'_>) -> Result<Self, json::Error> {
        let mut usage = Self::default();
        usage.close = s.object(|s, member| {
            let kind = s.kind()?;
            let span = s.skip()?;
            if let Some(count) = COUNTS.iter().position(|name| *name == member.name) {
                let tokens = s.slice(span.clone()).parse().ok();
                usage.counts[count] = tokens.map(|tokens| Count { tokens, span });
                return Ok(());
            }
            match &*member.name {
                "prompt_tokens_details" => usage.prompt_details = Some(span),
                "completion_tokens_details" => {
                    usage.completion_details = Some((span, kind == Kind::Object));
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(usage)
    }

    /// The changes that make this usage the one of all samples: the prompt as the first sample counts it, and the sum of
    /// all that was generated. `all` has one usage for each sample, with its document.
    pub(super) fn sum<'a>(&self, all: &[(&Self, &'a [u8])], edits: &mut Edits<'a>) {
        let mut change = |count: usize, tokens: u64| {
            if let Some(count) = &self.counts[count] {
                edits.rewrite(count.span.clone(), tokens.to_string());
            }
        };
        let counts = |count: usize| {
            all.iter()
                .filter_map(move |(usage, _)| usage.counts[count].as_ref())
                .map(|count| count.tokens)
        };
        let prompt = counts(PROMPT).next().unwrap_or_default();
        let sum = |count| counts(count).fold(0, u64::saturating_add);
        let (completion, reasoning) = (sum(COMPLETION), sum(REASONING));
        change(PROMPT, prompt);
        change(COMPLETION, completion);
        change(REASONING, reasoning);
        change(TOTAL, prompt.saturating_add(completion));

        if let (Some(own), Some((first, document))) = (&self.prompt_details, all.first())
            && let Some(details) = &first.prompt_details
        {
            edits.replace(own.clone(), &document[details.clone()]);
        }
        // The worker writes this object only where there are reasoning tokens, which are its only member.
        let has_details = |usage: &Self| matches!(usage.completion_details, Some((_, true)));
        if all.iter().any(|(usage, _)| has_details(usage)) {
            let details = format!("{{\"reasoning_tokens\":{reasoning}}}");
            match &self.completion_details {
                Some((span, _)) => edits.rewrite(span.clone(), details),
                None => {
                    let member = format!(",\"completion_tokens_details\":{details}");
                    edits.rewrite(self.close..self.close, member);
                }
            }
        }
    }
}

impl SglExt {
    fn read(s: &mut Scanner<'_>) -> Result<Self, json::Error> {
        let mut ext = Self::default();
        let (mut members, mut ids) = (0, None);
        let close = s.object(|s, member| {
            members += 1;
            let kind = s.kind()?;
            let value = s.skip()?;
            match &*member.name {
                "spec_tokens_details" if kind == Kind::Object => ext.spec = Some(value),
                "input_ids" => ids = ids.or(Some(member.start)),
                "output_ids" if kind == Kind::Array => {
                    ids = ids.or(Some(member.start));
                    ext.output_ids = Some(value.start + 1..value.end - 1);
                }
                _ => {}
            }
            Ok(())
        })?;
        ext.before_ids = match ids {
            Some(start) => (start, Joint::After),
            None if members == 0 => (close, Joint::Alone),
            None => (close, Joint::Before),
        };
        Ok(ext)
    }

    /// The changes that make these the extensions of all samples, whose own are in `all`, in the order of the samples, with
    /// their documents.
    pub(super) fn join<'a>(&self, all: &[(&Self, &'a [u8])], edits: &mut Edits<'a>) {
        let joined = |part: fn(&Self) -> Option<&Range<usize>>| {
            let parts = all
                .iter()
                .filter_map(|(ext, document)| part(ext).map(|span| &document[span.clone()]));
            parts.collect::<Vec<_>>().join(&b","[..])
        };
        if let Some(spec) = &self.spec {
            edits.insert(spec.start, &b"["[..]);
            edits.rewrite(spec.clone(), joined(|ext| ext.spec.as_ref()));
            edits.insert(spec.end, &b"]"[..]);
        }
        if let Some(output_ids) = &self.output_ids {
            edits.rewrite(output_ids.clone(), joined(|ext| ext.output_ids.as_ref()));
        }
    }
}
