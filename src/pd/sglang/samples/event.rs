//! The change of one event of a sample's stream into the client's.
//!
//! What may not live here: which event waits for the other samples, see [`super::stream`].

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::super::super::json::{Kind, Scanner};
use super::super::worker_response::{Edits, object_payload};
use super::openai::{OpenAi, SglExt, Usage};
use super::{Gather, GatherFault};

/// The values that chunks of all samples share, where they do. An ordinary server writes one `created` into every chunk,
/// and one `id` into all that come after the last sample has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Common<'a> {
    /// With its quotes.
    pub(super) id: Option<&'a [u8]>,
    pub(super) created: Option<&'a [u8]>,
}

/// A chunk of chat or completions.
pub(super) struct Chunk<'a> {
    pub(super) event: &'a [u8],
    /// The span of its JSON, to which the offsets in `read` belong.
    pub(super) payload: Range<usize>,
    pub(super) read: &'a OpenAi,
}

impl Chunk<'_> {
    /// Adds the chunk with the flat index of its choices, which must be prompts of the request.
    pub(super) fn write(
        &self,
        gather: &Gather,
        sample: usize,
        common: Common<'_>,
        out: &mut BytesMut,
    ) {
        let mut edits = Edits::default();
        let choices = self.read.choices.iter().flat_map(|choices| &choices.list);
        for (prompt, span) in choices.filter_map(|choice| choice.index.clone()) {
            edits.rewrite(span, gather.flat(prompt, sample).to_string());
        }
        self.splice(common, edits, out);
    }

    /// Adds the chunk with these changes, and those that every chunk gets.
    fn splice<'e>(&self, common: Common<'e>, mut edits: Edits<'e>, out: &mut BytesMut) {
        let json = &self.event[self.payload.clone()];
        if let (Some(id), Some(own)) = (common.id, &self.read.id) {
            edits.replace(own.clone(), id);
        }
        if let (Some(created), Some(own)) = (common.created, &self.read.created) {
            edits.replace(own.clone(), created);
        }
        out.extend_from_slice(&self.event[..self.payload.start]);
        edits.splice(json, out);
        out.extend_from_slice(&self.event[self.payload.end..]);
    }
}

/// The id of a chunk, with its quotes.
pub(super) fn id(event: &Bytes) -> Option<Bytes> {
    let (payload, read) = parse(event)?;
    let id = read.id?;
    Some(event.slice(payload.start + id.start..payload.start + id.end))
}

/// Adds a chunk that has waited, and was read before.
pub(super) fn held(
    gather: &Gather,
    sample: usize,
    event: &[u8],
    common: Common<'_>,
    out: &mut BytesMut,
) {
    if let Some((payload, read)) = parse(event) {
        let chunk = Chunk {
            event,
            payload,
            read: &read,
        };
        chunk.write(gather, sample, common, out);
    }
}

/// Adds one chunk without choices, `base`, for those of all samples: with the sum of their usage, or with their extensions.
pub(super) fn joined(base: Option<&Bytes>, all: &[&Bytes], common: Common<'_>, out: &mut BytesMut) {
    let Some(event) = base else {
        return;
    };
    let Some((payload, read)) = parse(event) else {
        return;
    };
    let parsed: Vec<(OpenAi, &[u8])> = all
        .iter()
        .filter_map(|event| parse(event).map(|(payload, read)| (read, &event[payload])))
        .collect();
    let mut edits = Edits::default();
    if let Some(usage) = &read.usage {
        let all = parsed
            .iter()
            .filter_map(|(read, json)| Some((read.usage.as_ref()?, *json)));
        usage.sum(&all.collect::<Vec<(&Usage, &[u8])>>(), &mut edits);
    }
    if let Some(ext) = &read.sglext {
        let all = parsed
            .iter()
            .filter_map(|(read, json)| Some((read.sglext.as_ref()?, *json)));
        ext.join(&all.collect::<Vec<(&SglExt, &[u8])>>(), &mut edits);
    }
    let chunk = Chunk {
        event,
        payload,
        read: &read,
    };
    chunk.splice(common, edits, out);
}

fn parse(event: &[u8]) -> Option<(Range<usize>, OpenAi)> {
    let payload = object_payload(event)?;
    let read = OpenAi::parse(&event[payload.clone()]).ok()?;
    Some((payload, read))
}

/// Adds an event of `/generate` with the flat index as its last member.
pub(super) fn generate(
    gather: &Gather,
    sample: usize,
    event: &Bytes,
    payload: Range<usize>,
    out: &mut BytesMut,
) -> Result<(), GatherFault> {
    let json = &event[payload.clone()];
    let (mut failed, mut index) = (false, None);
    let read = |mut s: Scanner<'_>| {
        let close = s.object(|s, member| {
            let kind = s.kind()?;
            let value = s.skip()?;
            match &*member.name {
                "error" => failed |= kind != Kind::Null,
                "index" => index = Some((s.slice(value.clone()).parse().ok(), value)),
                _ => {}
            }
            Ok(())
        })?;
        s.end()?;
        Ok(close)
    };
    let close = Scanner::new(json)
        .and_then(read)
        .map_err(GatherFault::Malformed)?;
    if failed {
        return Err(GatherFault::Failed(event.clone()));
    }
    let mut edits = Edits::default();
    match index {
        Some((Some(prompt), span)) => {
            gather.check(prompt)?;
            edits.rewrite(span, gather.flat(prompt, sample).to_string());
        }
        None if gather.batch.prompts() == 1 => {
            let flat = gather.flat(0, sample);
            edits.rewrite(close..close, format!(",\"index\":{flat}"));
        }
        _ => return Err(GatherFault::Missing("index")),
    }
    out.extend_from_slice(&event[..payload.start]);
    edits.splice(json, out);
    out.extend_from_slice(&event[payload.end..]);
    Ok(())
}
