//! A stream with a fault: events are changed, dropped or cut off before hyper frames them.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;

use super::rule::{Action, End};
use crate::sim::wire::CUT;

const DONE: &[u8] = b"data: [DONE]\n\n";

/// The events of a stream with a fault. Actions that do not concern events leave them unchanged.
pub(crate) struct FaultyEvents {
    events: Receiver<Bytes>,
    action: Action,
    error: Bytes,
    /// Events so far.
    seen: usize,
    ready: VecDeque<Bytes>,
    next: Next,
}

/// What follows when `ready` is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Event,
    Silence,
    End,
    /// One pending poll first, in which hyper flushes its buffer.
    FlushAndCut,
    Cut,
}

impl FaultyEvents {
    /// `error` is the event of [`Action::ErrorEvent`].
    pub(crate) fn new(events: Receiver<Bytes>, action: Action, error: Bytes) -> FaultyEvents {
        let mut faulty = FaultyEvents {
            events,
            action,
            error,
            seen: 0,
            ready: VecDeque::new(),
            next: Next::Event,
        };
        faulty.check_count();
        faulty
    }

    /// A body that is cut after the head and before its first byte.
    pub(crate) fn cut() -> FaultyEvents {
        let (_, events) = tokio::sync::mpsc::channel(1);
        let end = End::default();
        let action = Action::CutAfterEvent { events: 0, end };
        FaultyEvents::new(events, action, Bytes::new())
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match self.next {
                Next::Event => match self.events.poll_recv(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Ready(Some(event)) => self.take(event),
                },
                // Until the client leaves or the worker stops.
                Next::Silence => return Poll::Pending,
                Next::End => return Poll::Ready(None),
                Next::FlushAndCut => {
                    self.next = Next::Cut;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Next::Cut => return Poll::Ready(Some(Err(io::Error::other("cut on purpose")))),
            }
        }
    }

    fn take(&mut self, event: Bytes) {
        if event == CUT {
            self.next = Next::FlushAndCut;
            return;
        }
        self.seen += 1;
        match &self.action {
            Action::InvalidJson if self.seen == 1 => {
                self.ready.push_back(without_last_brace(&event))
            }
            Action::GiantEvent { bytes } if self.seen == 1 => {
                self.ready.push_back(padded(&event, bytes.0));
            }
            Action::SplitEvents { bytes } => {
                let size = usize::try_from(bytes.get()).unwrap_or(usize::MAX);
                self.ready
                    .extend(event.chunks(size).map(Bytes::copy_from_slice));
            }
            Action::MissingDone if event == DONE => {}
            _ => self.ready.push_back(event),
        }
        self.check_count();
    }

    /// Starts an action that waits for a number of events, once there were so many.
    fn check_count(&mut self) {
        match &self.action {
            Action::CutAfterEvent { events, .. } if self.seen == *events => {
                self.next = Next::FlushAndCut;
            }
            Action::StallAfterEvent { events } if self.seen == *events => self.next = Next::Silence,
            Action::ErrorEvent { events, .. } if self.seen == *events => {
                self.ready.push_back(self.error.clone());
                self.ready.push_back(Bytes::from_static(DONE));
                self.next = Next::End;
            }
            _ => {}
        }
    }
}

fn last_brace(event: &[u8]) -> usize {
    event
        .iter()
        .rposition(|&byte| byte == b'}')
        .unwrap_or(event.len())
}

fn without_last_brace(event: &[u8]) -> Bytes {
    let at = last_brace(event);
    let rest = event.get(at + 1..).unwrap_or_default();
    [&event[..at], rest].concat().into()
}

/// Pads an event with blanks before its last brace, which leaves its JSON the same.
fn padded(event: &[u8], size: usize) -> Bytes {
    let at = last_brace(event);
    let mut out = Vec::with_capacity(size.max(event.len()));
    out.extend_from_slice(&event[..at]);
    out.resize(at + size.saturating_sub(event.len()), b' ');
    out.extend_from_slice(&event[at..]);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_loses_its_brace_or_grows_and_keeps_its_end() {
        let event = b"data: {\"a\":{}}\n\n";
        assert_eq!(without_last_brace(event), &b"data: {\"a\":{}\n\n"[..]);
        assert_eq!(padded(event, 20), &b"data: {\"a\":{}    }\n\n"[..]);
        assert_eq!(padded(event, 3), &event[..]);
    }
}
