//! From a batch's items to one response: whole, or as events in the order in which the items proceed.
//!
//! The items run in a task of their own, so that they live on for as long as SGLang does not notice that
//! the client left. What a response looks like is a [`Render`]'s business.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::engine::{Engine, Run, Step, Times};
use super::errors::{Failure, Family};
use super::render;
use super::wire::{self, SimResponse};

/// Events that wait for a slow reader; then the items wait.
const EVENTS_AHEAD: usize = 64;

/// One endpoint's response under construction.
pub(crate) trait Render: Send + 'static {
    /// Shape of its errors.
    const FAMILY: Family;

    /// Takes the next step of item `index` in.
    fn absorb(&mut self, index: usize, step: &Step);

    /// The events of the step that was just taken in.
    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>);

    /// The events of an item that failed after the head went out. True when the stream goes on.
    fn failed(
        &mut self,
        index: usize,
        failure: &Failure,
        times: Times,
        out: &mut Vec<Bytes>,
    ) -> bool {
        let _ = (index, times);
        out.push(render::data(&failure.event(Self::FAMILY)));
        false
    }

    /// The events after the last item's last.
    fn end(&mut self, out: &mut Vec<Bytes>);

    /// The response as a whole.
    fn whole(&mut self) -> String;
}

/// When the head of a stream goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// At once, before anything is known.
    AtOnce,
    /// With the first event.
    WithFirstEvent,
}

/// The whole response, when all items have ended; the first failure is the response of all.
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
        // The receiver is gone when the client is.
        let _ = sender.send(response);
    });
    // The task dies without a response only with the worker.
    receiver.await.unwrap_or_else(|_| wire::cut())
}

/// The response as events.
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
        // An error is a start too: the stream ended with the worker.
        let _ = start.await;
    }
    receiver
}

/// A failure as a response.
pub(crate) fn refusal(failure: &Failure, family: Family) -> SimResponse {
    match failure.body(family) {
        Some(body) => wire::json(failure.status(), body.to_string()),
        None => wire::unhandled(),
    }
}

/// A failure as the only event of a stream.
pub(crate) fn refusal_event(failure: &Failure, family: Family) -> SimResponse {
    let (sender, receiver) = mpsc::channel(2);
    // There is room for both.
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
            Some((index, Err(failure), times)) => !render.failed(*index, failure, *times, &mut out),
            None => true,
        };
        if last {
            render.end(&mut out);
        }
        if let Some(started) = started.take_if(|_| !out.is_empty()) {
            // Nobody waits when the head went out at once.
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
