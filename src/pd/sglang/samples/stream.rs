//! The streams of all samples become one: whole events, in the order in which they arrive.
//!
//! What may not live here: the change of one event, see [`super::event`].
//!
//! Only what an ordinary server sends at the end waits for the other samples: in a chat stream the chunks with a
//! `finish_reason` and what follows them; in any stream the extensions, the usage and the end marker.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/openai/serving_chat.py` (`_generate_chat_stream`) and
//! `serving_completions.py` (`_generate_completion_stream`).

use std::mem::take;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::super::super::{Route, sse};
use super::super::worker_response::object_payload;
use super::event::{self, Chunk, Common};
use super::openai::OpenAi;
use super::quick::{self, Head, Quick};
use super::{Gather, GatherError, GatherFault};

const END: &[u8] = b"data: [DONE]\n\n";

/// The streams of the samples of one request.
#[derive(Debug)]
pub struct GatherStream {
    gather: Gather,
    max_event_bytes: usize,
    samples: Vec<Sample>,
    /// Samples whose stream has no end marker yet.
    running: usize,
    quick: Quick,
    /// The `created` of all chunks: that of the first one.
    created: Option<Bytes>,
    /// The sample of the first, and of the last chunk that had a choice.
    first: Option<usize>,
    last: usize,
    /// Chat: the chunks with a `finish_reason`, in the order in which the samples finished.
    finishes: Vec<(usize, Bytes)>,
}

/// The stream of one sample.
#[derive(Debug)]
struct Sample {
    splitter: sse::Splitter,
    /// Of its last chunk that was scanned.
    head: Option<Head>,
    done: bool,
    /// Chat: whether it has a `finish_reason`.
    finished: bool,
    /// Chat: the chunks with a choice after that: hidden states.
    late: Vec<Bytes>,
    extensions: Vec<Bytes>,
    usage: Option<Bytes>,
    /// Bytes of this sample that wait for the others.
    held: usize,
}

impl GatherStream {
    pub(super) fn new(gather: Gather, max_event_bytes: usize) -> Self {
        let sample = || Sample {
            splitter: sse::Splitter::new(max_event_bytes),
            head: None,
            done: false,
            finished: false,
            late: Vec::new(),
            extensions: Vec::new(),
            usage: None,
            held: 0,
        };
        Self {
            gather,
            max_event_bytes,
            samples: (0..gather.samples).map(|_| sample()).collect(),
            running: gather.samples,
            quick: Quick::new(),
            created: None,
            first: None,
            last: 0,
            finishes: Vec::new(),
        }
    }

    /// Takes the next bytes of one sample's stream, cut anywhere, and adds the client's whole events to `out`. With the last
    /// byte of the last sample come the events that waited for it, and the end marker.
    ///
    /// # Errors
    /// The sample reports an error, or its stream is not what the route gives. `out` has whole events only, and the sample
    /// must get no more bytes.
    ///
    /// # Panics
    /// There is no such sample: a defect of the caller.
    pub fn push(
        &mut self,
        sample: usize,
        chunk: Bytes,
        out: &mut BytesMut,
    ) -> Result<(), GatherError> {
        self.samples[sample].splitter.push(chunk);
        loop {
            let next = self.samples[sample].splitter.next_event();
            let too_long = |e: sse::EventTooLong| GatherFault::TooLong(e.limit);
            let event = next
                .map_err(too_long)
                .map_err(|fault| GatherError { sample, fault })?;
            let Some(event) = event else {
                return Ok(());
            };
            // Nothing belongs behind the end marker.
            if !self.samples[sample].done {
                self.event(sample, event, out)?;
            }
        }
    }

    /// One sample's stream has ended.
    ///
    /// # Errors
    /// It has no end marker, so that the sample is not complete.
    ///
    /// # Panics
    /// As [`Self::push`].
    pub fn end(&self, sample: usize) -> Result<(), GatherError> {
        if self.samples[sample].done {
            Ok(())
        } else {
            let fault = GatherFault::Unfinished;
            Err(GatherError { sample, fault })
        }
    }

    /// Whether all samples have ended, and the end marker was given.
    pub fn is_complete(&self) -> bool {
        self.running == 0
    }

    /// Ends the client's stream with the event of a sample that has failed: the event unchanged, the samples that have
    /// finished, and the end marker, as an ordinary server does it.
    pub fn abandon(&mut self, event: &[u8], out: &mut BytesMut) {
        self.running = 0;
        out.extend_from_slice(event);
        self.complete(out);
    }

    /// Handles one whole event.
    fn event(
        &mut self,
        sample: usize,
        event: Bytes,
        out: &mut BytesMut,
    ) -> Result<(), GatherError> {
        if self.is_quick(sample, &event, out) {
            return Ok(());
        }
        let Some(payload) = object_payload(&event) else {
            if sse::is_done(&event) {
                self.samples[sample].done = true;
                self.running -= 1;
                if self.running == 0 {
                    self.complete(out);
                }
            } else {
                out.extend_from_slice(&event);
            }
            return Ok(());
        };
        let handled = match self.gather.route {
            Route::Generate => event::generate(&self.gather, sample, &event, payload, out),
            _ => self.chunk(sample, &event, payload, out),
        };
        handled.map_err(|fault| GatherError { sample, fault })
    }

    /// Handles an event of a running stream. Whether it was one.
    fn is_quick(&mut self, sample: usize, event: &[u8], out: &mut BytesMut) -> bool {
        if self.gather.route == Route::Generate {
            return quick::generate(&self.gather, sample, event, out);
        }
        let state = &self.samples[sample];
        let (Some(head), false) = (&state.head, state.finished) else {
            return false;
        };
        let quick = self.quick.chunk(&self.gather, sample, head, event, out);
        if quick {
            self.last = sample;
        }
        quick
    }

    /// Handles a chunk of chat or completions.
    fn chunk(
        &mut self,
        sample: usize,
        event: &Bytes,
        payload: Range<usize>,
        out: &mut BytesMut,
    ) -> Result<(), GatherFault> {
        let json = &event[payload.clone()];
        let read = OpenAi::parse(json).map_err(GatherFault::Malformed)?;
        if read.failed {
            return Err(GatherFault::Failed(event.clone()));
        }
        for choice in read.choices.iter().flat_map(|choices| &choices.list) {
            let index = choice.index.as_ref();
            let (prompt, _) = index.ok_or(GatherFault::Missing("index"))?;
            self.gather.check(*prompt)?;
        }
        if self.waits(sample, event, &read)? {
            return Ok(());
        }
        if let Some(own) = &read.created {
            let own = &json[own.clone()];
            let created = self
                .created
                .get_or_insert_with(|| Bytes::copy_from_slice(own));
            self.samples[sample].head = Head::new(event, payload.start, &read, created);
        }
        let common = Common {
            id: None,
            created: self.created.as_deref(),
        };
        let chunk = Chunk {
            event,
            payload,
            read: &read,
        };
        chunk.write(&self.gather, sample, common, out);
        Ok(())
    }

    /// Keeps a chunk that waits for the other samples. Whether it is one.
    fn waits(&mut self, sample: usize, event: &Bytes, read: &OpenAi) -> Result<bool, GatherFault> {
        let choices = read.choices.as_ref().map(|choices| &choices.list[..]);
        let choices = choices.unwrap_or_default();
        let state = &mut self.samples[sample];
        if !choices.is_empty() {
            self.first.get_or_insert(sample);
            self.last = sample;
            let finishes = choices.iter().any(|choice| choice.finished);
            if self.gather.route != Route::ChatCompletions || !state.finished && !finishes {
                return Ok(false);
            }
            let kept = state.keep(event, self.max_event_bytes)?;
            if state.finished {
                state.late.push(kept);
            } else {
                state.finished = true;
                self.finishes.push((sample, kept));
            }
        } else if read.sglext.is_some() {
            let kept = state.keep(event, self.max_event_bytes)?;
            state.extensions.push(kept);
        } else if read.usage.is_some() {
            state.usage = Some(state.keep(event, self.max_event_bytes)?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Adds what waited for the last sample, and the end marker.
    fn complete(&mut self, out: &mut BytesMut) {
        let finishes = take(&mut self.finishes);
        let last = &self.samples[self.last];
        let id_of = |event: &Bytes| event::id(event);
        let id = finishes
            .last()
            .map(|(_, event)| event)
            .or(last.extensions.first())
            .or(last.usage.as_ref())
            .and_then(id_of);
        let late = finishes.iter().flat_map(|(sample, _)| {
            self.samples[*sample]
                .late
                .iter()
                .map(|event| (*sample, event))
        });
        let held = finishes.iter().map(|(sample, event)| (*sample, event));
        let common = Common {
            id: id.as_deref(),
            created: self.created.as_deref(),
        };
        for (sample, event) in held.chain(late) {
            event::held(&self.gather, sample, event, common, out);
        }
        let all = || self.samples.iter();
        let most = all().map(|sample| sample.extensions.len()).max();
        let first = &self.samples[self.first.unwrap_or_default()];
        for place in 0..most.unwrap_or_default() {
            let events = all().filter_map(|sample| sample.extensions.get(place));
            let events: Vec<&Bytes> = events.collect();
            let base = first.extensions.get(place).or(events.first().copied());
            event::joined(base, &events, common, out);
        }
        let usages: Vec<&Bytes> = all().filter_map(|sample| sample.usage.as_ref()).collect();
        let base = last.usage.as_ref().or(usages.first().copied());
        event::joined(base, &usages, common, out);
        out.extend_from_slice(END);
    }
}

impl Sample {
    /// A copy of an event that waits for the other samples, because a slice would keep the chunk of the network that it
    /// came in. All of one sample together may have `limit` bytes.
    fn keep(&mut self, event: &[u8], limit: usize) -> Result<Bytes, GatherFault> {
        self.held += event.len();
        if self.held > limit {
            return Err(GatherFault::TooLong(limit));
        }
        Ok(Bytes::copy_from_slice(event))
    }
}
