//! The documents of all samples become one, by bytes: numbers and the order of keys stay as the worker wrote them.
//!
//! What may not live here: streams, see [`super::stream`].

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::super::super::Route;
use super::super::super::json::{self, Scanner};
use super::super::request::Batch;
use super::super::worker_response::Edits;
use super::openai::{Choices, Joint, OpenAi, SglExt, Usage};
use super::{Gather, GatherError, GatherFault};

/// See [`Gather::document`].
pub(super) fn gather(gather: &Gather, documents: &[Bytes]) -> Result<Bytes, GatherError> {
    match gather.route {
        Route::Generate => generate(gather, documents),
        _ => openai(gather, documents),
    }
}

/// The list of all items, prompt by prompt.
fn generate(gather: &Gather, documents: &[Bytes]) -> Result<Bytes, GatherError> {
    let prompts = gather.batch.prompts();
    let mut samples = Vec::with_capacity(documents.len());
    for (sample, document) in documents.iter().enumerate() {
        let fail = |fault| GatherError { sample, fault };
        let items = items(gather.batch, document).map_err(|e| fail(GatherFault::Malformed(e)))?;
        check_count(prompts, items.len()).map_err(fail)?;
        samples.push((document, items));
    }
    let bytes: usize = documents.iter().map(|document| document.len() + 1).sum();
    let mut out = BytesMut::with_capacity(bytes + 1);
    for prompt in 0..prompts {
        for (document, items) in &samples {
            out.extend_from_slice(if out.is_empty() { b"[" } else { b"," });
            out.extend_from_slice(&document[items[prompt].clone()]);
        }
    }
    out.extend_from_slice(if out.is_empty() { b"[]" } else { b"]" });
    Ok(out.freeze())
}

/// The items of one sample's document: of a list for a list of prompts, else the document itself.
fn items(batch: Batch, document: &[u8]) -> Result<Vec<Range<usize>>, json::Error> {
    let mut s = Scanner::new(document)?;
    let mut items = Vec::new();
    let mut item = |s: &mut Scanner<'_>| {
        s.kind()?;
        let start = s.at();
        s.object(|s, _| s.skip().map(drop))?;
        items.push(start..s.at());
        Ok(())
    };
    match batch {
        Batch::Single => item(&mut s)?,
        Batch::Of(_) => {
            s.array(|s, _| item(s))?;
        }
    }
    s.end()?;
    Ok(items)
}

fn check_count(expected: usize, found: usize) -> Result<(), GatherFault> {
    if expected == found {
        Ok(())
    } else {
        Err(GatherFault::Count { expected, found })
    }
}

/// The first sample's document, with the choices of all.
fn openai(gather: &Gather, documents: &[Bytes]) -> Result<Bytes, GatherError> {
    let mut parsed = Vec::with_capacity(documents.len());
    for (sample, document) in documents.iter().enumerate() {
        let fail = |fault| GatherError { sample, fault };
        let read = OpenAi::parse(document).map_err(|e| fail(GatherFault::Malformed(e)))?;
        if read.failed {
            return Err(fail(GatherFault::Failed(document.clone())));
        }
        parsed.push(read);
    }
    let mut lists = Vec::with_capacity(parsed.len());
    for (sample, read) in parsed.iter().enumerate() {
        let fault = GatherFault::Missing("choices");
        lists.push(read.choices.as_ref().ok_or(GatherError { sample, fault })?);
    }
    let (Some(first), Some(document), Some(list)) =
        (parsed.first(), documents.first(), lists.first())
    else {
        return Ok(Bytes::new());
    };
    let mut edits = Edits::default();
    edits.rewrite(list.inside.clone(), choices(gather, &lists, documents)?);
    if let Some(usage) = &first.usage {
        let usages: Vec<(&Usage, &[u8])> =
            with_documents(&parsed, documents, |read| read.usage.as_ref());
        usage.sum(&usages, &mut edits);
    }
    if let Some(ext) = &first.sglext {
        let exts: Vec<(&SglExt, &[u8])> =
            with_documents(&parsed, documents, |read| read.sglext.as_ref());
        ext.join(&exts, &mut edits);
        if ext.spec.is_none() {
            let (at, joint) = ext.before_ids;
            // The worker writes the empty list for several samples where it writes nothing for one.
            edits.insert(
                at,
                match joint {
                    Joint::Alone => &b"\"spec_tokens_details\":[]"[..],
                    Joint::Before => b",\"spec_tokens_details\":[]",
                    Joint::After => b"\"spec_tokens_details\":[],",
                },
            );
        }
    }
    let mut out = BytesMut::new();
    edits.splice(document, &mut out);
    Ok(out.freeze())
}

/// A part of each document that has it, with the document.
pub(super) fn with_documents<'a, T>(
    parsed: &'a [OpenAi],
    documents: &'a [Bytes],
    part: fn(&OpenAi) -> Option<&T>,
) -> Vec<(&'a T, &'a [u8])> {
    let both = parsed.iter().zip(documents);
    both.filter_map(|(read, document)| part(read).map(|part| (part, &document[..])))
        .collect()
}

/// The choices of all samples, in the order of the flat index, which becomes theirs.
fn choices(
    gather: &Gather,
    lists: &[&Choices],
    documents: &[Bytes],
) -> Result<Vec<u8>, GatherError> {
    let prompts = gather.batch.prompts();
    let mut places = vec![None; prompts.saturating_mul(lists.len())];
    for (sample, choices) in lists.iter().enumerate() {
        let fail = |fault| GatherError { sample, fault };
        check_count(prompts, choices.list.len()).map_err(fail)?;
        for choice in &choices.list {
            let missing = fail(GatherFault::Missing("index"));
            let (prompt, span) = choice.index.as_ref().ok_or(missing)?;
            if *prompt >= prompts {
                return Err(fail(GatherFault::Index(*prompt)));
            }
            let document = &documents[sample];
            places[prompt * lists.len() + sample] = Some((
                &document[choice.span.start..span.start],
                &document[span.end..choice.span.end],
            ));
        }
    }
    let bytes: usize = documents.iter().map(Bytes::len).sum();
    let mut joined = Vec::with_capacity(bytes);
    for (flat, place) in places.iter().enumerate() {
        let missing = GatherError {
            sample: flat % lists.len(),
            fault: GatherFault::Missing("index"),
        };
        let (before, after) = place.ok_or(missing)?;
        if flat > 0 {
            joined.push(b',');
        }
        joined.extend_from_slice(before);
        joined.extend_from_slice(flat.to_string().as_bytes());
        joined.extend_from_slice(after);
    }
    Ok(joined)
}
