//! From a batch's items to one response: in one piece, or as events in the order in which the items proceed.
//!
//! The items run on a separate task, so that they go on until the worker notices that the client left. The shape of a
//! response is a [`Render`]'s.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::engine::{Engine, Run, Step, Times};
use super::errors::{Failure, Family};
use super::render;
use super::wire::{self, SimResponse};

/// Events that are buffered for a slow reader. When the buffer is full the items wait.
const EVENTS_AHEAD: usize = 64;

/// Builds the response of one endpoint.
pub(crate) trait Render: Send + 'static {
    /// The shape of errors.
    const FAMILY: Family;

    /// Whether a stream is cut when an item has failed, because its handler has no event for it.
    const CUTS: bool = false;

    /// Adds the next step of item `index`.
    fn absorb(&mut self, index: usize, step: &Step);

    /// Appends the events of the step that was just added.
    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>);

    /// Appends the events of an item that failed after the head was sent. True when the stream goes on.
    fn failed(&mut self, item: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        out.push(render::data(&item.failure.event(Self::FAMILY)));
        false
    }

    /// Appends the events after the end of all items.
    fn end(&mut self, out: &mut Vec<Bytes>);

    /// The response in one piece.
    fn whole(&mut self) -> String;
}

/// An item that failed after the head was sent.
pub(crate) struct FailedItem<'a> {
    pub(crate) index: usize,
    pub(crate) failure: &'a Failure,
    pub(crate) times: Times,
}

/// When the head of a stream is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// Immediately.
    AtOnce,
    /// With the first event.
    WithFirstEvent,
}

/// The response in one piece, when all items have ended. The first failure is the response for all.
pub(crate) async fn whole<R: Render>(
    engine: &Engine,
    runs: Vec<Run>,
    mut render: R,
) -> SimResponse {
    let (sender, receiver) = oneshot::channel();
    engine.spawn(async move {
        let mut steps = together(runs);
        let mut failure = None;
        while let Some((index, outcome, _)) = steps.next().await {
            match outcome {
                Ok(step) => render.absorb(index, &step),
                Err(first) => {
                    failure = Some(first);
                    break;
                }
            }
        }
        drop(steps); // what still runs of a failed batch ends here
        let response = match failure {
            Some(failure) => refusal(&failure, R::FAMILY),
            None => wire::json(200, render.whole()),
        };
        // An error means that the client left.
        let _ = sender.send(response);
    });
    // An error means that the worker stopped.
    receiver.await.unwrap_or_else(|_| wire::cut())
}

/// The response as a stream of events.
pub(crate) async fn streamed<R: Render>(
    engine: &Engine,
    runs: Vec<Run>,
    render: R,
    preface: Vec<Bytes>,
    head: Head,
) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
    let (started, start) = oneshot::channel::<()>();
    engine.spawn(drive(together(runs), render, preface, sender, started));
    if head == Head::WithFirstEvent {
        // An error means that the stream ended before its first event, as the worker stopped.
        let _ = start.await;
    }
    receiver
}

/// A failure as a response.
pub(crate) fn refusal(failure: &Failure, family: Family) -> SimResponse {
    match failure.body(family) {
        Some(body) => wire::json(failure.status(), body.to_string()),
        None => wire::internal_error(),
    }
}

/// A failure as the only event of a stream.
pub(crate) fn refusal_event(failure: &Failure, family: Family) -> SimResponse {
    let (sender, receiver) = mpsc::channel(2);
    // Cannot fail: the channel has room for two.
    let _ = sender.try_send(render::data(&failure.event(family)));
    let _ = sender.try_send(render::data("[DONE]"));
    wire::events(receiver)
}

async fn drive<R: Render>(
    mut steps: SelectAll<Steps>,
    mut render: R,
    preface: Vec<Bytes>,
    sender: mpsc::Sender<Bytes>,
    started: oneshot::Sender<()>,
) {
    let mut started = Some(started);
    let mut out = preface;
    loop {
        let next = steps.next().await;
        let last = match &next {
            Some((index, Ok(step), _)) => {
                render.absorb(*index, step);
                render.events(*index, step, &mut out);
                false
            }
            Some((index, Err(failure), times)) => {
                let item = FailedItem {
                    index: *index,
                    failure,
                    times: *times,
                };
                !render.failed(&item, &mut out)
            }
            None => true,
        };
        if last {
            render.end(&mut out);
            if R::CUTS && matches!(next, Some((_, Err(_), _))) {
                out.push(wire::CUT);
            }
        }
        if let Some(started) = started.take_if(|_| !out.is_empty()) {
            // An error means that the head was sent immediately.
            let _ = started.send(());
        }
        for event in out.drain(..) {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if last {
            return;
        }
    }
}

type Steps = Pin<Box<dyn Stream<Item = (usize, Result<Step, Failure>, Times)> + Send>>;

fn together(runs: Vec<Run>) -> SelectAll<Steps> {
    stream::select_all(runs.into_iter().enumerate().map(|(index, run)| -> Steps {
        Box::pin(stream::unfold(run, move |mut run| async move {
            let outcome = run.advance().await?;
            let times = run.times();
            Some(((index, outcome, times), run))
        }))
    }))
}
