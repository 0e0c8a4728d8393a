//! Properties of the SSE splitter: any chunking gives the same events, the events are the whole stream, and an event
//! ends at a blank line.
//!
//! Input: a limit for the length of events, the number of cuts, the lengths of the chunks, the stream.

use bytes::Bytes;
use mini_lb::pd::{Boundary, Splitter, sse};

use super::decisions::Decisions;

/// The number of events, and whether one was refused for its length.
pub struct Outcome {
    pub events: usize,
    pub too_long: bool,
}

pub fn check(bytes: &[u8]) -> Outcome {
    let mut choices = Decisions::new(bytes);
    let limit = 1 + choices.below(256);
    let cuts = choices.below(32);
    let lengths: Vec<usize> = (0..cuts).map(|_| choices.below(64)).collect();
    let stream = Bytes::copy_from_slice(choices.rest());

    let whole = any_chunking_gives_the_same_events(&stream, &lengths);
    let too_long = a_limit_counts_whatever_the_chunking(&whole, &stream, &lengths, limit);
    payloads_lie_on_lines_of_their_own(&whole);
    Outcome {
        events: whole.len(),
        too_long,
    }
}

/// Returns the events; the last one is the incomplete rest of the stream.
pub fn any_chunking_gives_the_same_events(stream: &Bytes, lengths: &[usize]) -> Vec<Bytes> {
    let chunks = chunks(stream, lengths);
    let (whole, complete) = reference(stream);
    assert_eq!(whole.concat(), stream.as_ref());
    assert_eq!(events(&chunks), whole);
    assert_eq!(events(std::slice::from_ref(stream)), whole);
    let of_a_whole_stream: Vec<Bytes> = sse::events(stream.clone()).collect();
    // A CR at the very end may still be followed by its line feed, so no event ends there.
    assert!(whole[..complete].starts_with(&of_a_whole_stream));
    assert!(of_a_whole_stream.len() + 1 >= complete);

    let (mut in_chunks, mut at_once) = (Boundary::new(), Boundary::new());
    chunks.iter().for_each(|chunk| in_chunks.update(chunk));
    at_once.update(stream);
    assert_eq!(in_chunks.is_at_event_end(), at_once.is_at_event_end());
    assert_eq!(at_once.is_at_event_end(), complete == whole.len());
    whole
}

/// The events up to the first that is too long. Returns whether there is one.
fn a_limit_counts_whatever_the_chunking(
    whole: &[Bytes],
    stream: &Bytes,
    lengths: &[usize],
    limit: usize,
) -> bool {
    let fitting = whole.iter().take_while(|event| event.len() <= limit);
    let fitting: Vec<&Bytes> = fitting.collect();
    for chunks in [chunks(stream, lengths), vec![stream.clone()]] {
        let mut splitter = Splitter::new(limit);
        let (mut found, mut refused) = (Vec::new(), false);
        for chunk in chunks {
            splitter.push(chunk);
            while let (false, next) = (refused, splitter.next_event()) {
                match next {
                    Ok(Some(event)) => found.push(event),
                    Ok(None) => break,
                    Err(error) => refused = error.limit == limit,
                }
            }
        }
        if !refused {
            found.extend(splitter.finish());
        }
        assert_eq!(found.iter().collect::<Vec<_>>(), fitting);
        assert_eq!(refused, fitting.len() < whole.len());
    }
    fitting.len() < whole.len()
}

fn payloads_lie_on_lines_of_their_own(whole: &[Bytes]) {
    for event in whole {
        let lines: Vec<&[u8]> = event.split(|byte| b"\r\n".contains(byte)).collect();
        let is_data = |line: &&&[u8]| **line == b"data" || line.starts_with(b"data:");
        let data: Vec<_> = lines.iter().filter(is_data).collect();
        let payload = match data[..] {
            [line] => {
                let value = line.strip_prefix(b"data:").unwrap_or_default();
                Some(value.strip_prefix(b" ").unwrap_or(value))
            }
            _ => None,
        };
        assert_eq!(sse::data(event), payload);
        assert_eq!(sse::is_done(event), payload == Some(b"[DONE]"));
    }
}

/// The events of the stream as a parser of the whole text cuts them, and how many are complete. A
/// CR at the very end ends its line.
fn reference(stream: &Bytes) -> (Vec<Bytes>, usize) {
    let (mut events, mut start, mut at) = (Vec::new(), 0, 0);
    while at < stream.len() {
        let line = at;
        while at < stream.len() && !b"\r\n".contains(&stream[at]) {
            at += 1;
        }
        let blank = at == line && at < stream.len();
        at += match (stream.get(at), stream.get(at + 1)) {
            (Some(b'\r'), Some(b'\n')) => 2,
            (Some(_), _) => 1,
            (None, _) => 0,
        };
        if blank {
            events.push(stream.slice(start..at));
            start = at;
        }
    }
    let complete = events.len();
    if start < stream.len() {
        events.push(stream.slice(start..));
    }
    (events, complete)
}

/// The events that a splitter without a limit finds, and the rest.
pub fn events(chunks: &[Bytes]) -> Vec<Bytes> {
    let mut splitter = Splitter::new(usize::MAX);
    let mut events = Vec::new();
    for chunk in chunks {
        splitter.push(chunk.clone());
        while let Some(event) = splitter.next_event().unwrap() {
            events.push(event);
        }
    }
    events.extend(splitter.finish());
    events
}

/// The stream in chunks of these lengths; the last chunk is the rest.
pub fn chunks(stream: &Bytes, lengths: &[usize]) -> Vec<Bytes> {
    let mut rest = stream.clone();
    let mut chunks: Vec<Bytes> = lengths
        .iter()
        .map(|length| rest.split_to((*length).min(rest.len())))
        .collect();
    chunks.push(rest);
    chunks
}
