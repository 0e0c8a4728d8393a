//! A body that a fault changes, event by event, before hyper frames it.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;

use super::rule::{Action, End};
use crate::sim::render;

const DONE: &[u8] = b"data: [DONE]\n\n";

/// A stream under a fault. Actions that are not about events leave it as it is.
pub(crate) struct Shaped {
    events: Receiver<Bytes>,
    action: Action,
    seen: usize,
    ready: VecDeque<Bytes>,
    then: Then,
}

/// What comes when `ready` is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    More,
    Silence,
    End,
    /// hyper is to flush what it has before it hears of the cut.
    FlushAndCut,
    Cut,
}

impl Shaped {
    pub(crate) fn new(events: Receiver<Bytes>, action: Action) -> Shaped {
        let mut shaped = Shaped {
            events,
            action,
            seen: 0,
            ready: VecDeque::new(),
            then: Then::More,
        };
        shaped.turn();
        shaped
    }

    /// A body that is cut before its first byte, when the head has gone out.
    pub(crate) fn cut() -> Shaped {
        let (_, events) = tokio::sync::mpsc::channel(1);
        let end = End::default();
        Shaped::new(events, Action::CutAfterEvent { events: 0, end })
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match self.then {
                Then::More => match self.events.poll_recv(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Ready(Some(event)) => self.take(event),
                },
                // The client, or the end of the worker, ends the connection.
                Then::Silence => return Poll::Pending,
                Then::End => return Poll::Ready(None),
                Then::FlushAndCut => {
                    self.then = Then::Cut;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Then::Cut => return Poll::Ready(Some(Err(io::Error::other("cut on purpose")))),
            }
        }
    }

    fn take(&mut self, event: Bytes) {
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
        self.turn();
    }

    /// What follows the events so far.
    fn turn(&mut self) {
        match &self.action {
            Action::CutAfterEvent { events, .. } if self.seen == *events => {
                self.then = Then::FlushAndCut;
            }
            Action::StallAfterEvent { events } if self.seen == *events => self.then = Then::Silence,
            Action::ErrorEvent { events, message } if self.seen == *events => {
                let message = message.as_deref().unwrap_or("scripted fault");
                self.ready.push_back(error_event(message));
                self.ready.push_back(Bytes::from_static(DONE));
                self.then = Then::End;
            }
            _ => {}
        }
    }
}

/// In the shape of `/generate`. Source: SGLang 0.5.23, `entrypoints/http_server.py`.
fn error_event(message: &str) -> Bytes {
    let error = serde_json::json!({"error":{
        "message":message,"type":"InternalServerError","code":500,"retryable":false}});
    render::data(&error.to_string())
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

/// Blanks before the last brace change the size and not the meaning.
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
