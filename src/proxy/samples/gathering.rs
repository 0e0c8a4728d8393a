//! The responses of the samples on their way to the client: taken piece by piece from the channels of the subrequests,
//! gathered by `pd`, and handed out as what the client gets next.
//!
//! The pieces of a stream go out as they come, several in one write where several are ready. Where the client reads
//! slowly, [`OUT_LIMIT`] bytes wait here for all samples together; the rest waits in the channels, of four pieces each,
//! and in the connections to the workers. Documents are held until all are whole.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::subrequest::server::SubrequestHandle;

use super::held::Body;
use crate::endpoint::end_to_end;
use crate::error::{Fault, ProxyError};
use crate::fleet::Role;
use crate::legs::{Rejection, is_event_stream};
use crate::pd::{Engine, Gather, GatherError, GatherFault, GatherStream, Route};

/// No further piece is taken from any sample while so many bytes wait for the client.
const OUT_LIMIT: usize = 64 << 10;

/// The first capacity for what waits, in bytes: several events. What has been written is used again, so that most events
/// need no memory of their own.
const OUT_CAPACITY: usize = 4 << 10;

/// What the client gets next.
pub(super) enum Output {
    /// Bytes of the body; with the head, where they are the first ones. `end` says that none follow.
    Pieces {
        head: Option<Box<ResponseHeader>>,
        bytes: Bytes,
        end: bool,
    },
    /// One of the samples has failed.
    Failed(Box<Fault>),
}

/// The gathering of one request.
pub(super) struct Gathering {
    state: Mutex<State>,
    /// Wakes [`Gathering::output`].
    client: AtomicWaker,
    /// Wakes the future of each sample: there is space again, or the end has come.
    samples: Vec<AtomicWaker>,
}

struct State {
    bodies: Bodies,
    samples: Vec<Response>,
    /// How many responses have not ended.
    running: usize,
    /// Whether the first sample has been prefilled, or need not be before the others begin.
    prefilled: bool,
    /// The head of the client's response, until it goes out.
    head: Option<Box<ResponseHeader>>,
    begun: bool,
    fault: Option<Box<Fault>>,
    /// Whether a stream that has begun ended with the error event of a worker, as an ordinary server ends it.
    abandoned: bool,
    /// Nothing is taken from the samples any more.
    closed: bool,
    recipe: Recipe,
}

/// How the responses become one.
pub(super) struct Recipe {
    pub(super) engine: Engine,
    pub(super) route: Route,
    pub(super) gather: Gather,
    /// The longest document or event of a sample, in bytes.
    pub(super) limit: usize,
}

impl Recipe {
    /// The bodies of responses with such a head.
    fn bodies(&self, head: &ResponseHeader) -> Bodies {
        if !is_event_stream(&head.headers) {
            return Bodies::Documents;
        }
        let streams = self.gather.stream(self.limit);
        Bodies::Streams(Box::new(streams), BytesMut::with_capacity(OUT_CAPACITY))
    }
}

/// What the first successful head says that the responses are. An engine that takes another value than `true` for it
/// streams where the facts of the request do not say so.
enum Bodies {
    Unknown,
    Streams(Box<GatherStream>, BytesMut),
    /// The documents are held with the samples.
    Documents,
}

/// The response of one sample.
#[derive(Default)]
struct Response {
    /// The head, unless it went out as the client's.
    head: Option<Box<ResponseHeader>>,
    served: bool,
    /// A document, or an error of a worker.
    body: Body,
    ended: bool,
}

impl Gathering {
    /// The gathering of `n` samples. `waits` says that the others wait for the first one.
    pub(super) fn new(n: usize, waits: bool, recipe: Recipe) -> Self {
        Self {
            state: Mutex::new(State {
                bodies: Bodies::Unknown,
                samples: (0..n).map(|_| Response::default()).collect(),
                running: n,
                prefilled: !waits,
                head: None,
                begun: false,
                fault: None,
                abandoned: false,
                closed: false,
                recipe,
            }),
            client: AtomicWaker::new(),
            samples: (0..n).map(|_| AtomicWaker::new()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_samples(&self) {
        for sample in &self.samples {
            sample.wake();
        }
    }

    /// Resolves when this sample may begin; false when it need not any more.
    pub(super) async fn turn(&self, index: usize) -> bool {
        poll_fn(|cx| {
            self.samples[index].register(cx.waker());
            let state = self.lock();
            match state.prefilled || index == 0 || state.closed {
                true => Poll::Ready(!state.closed),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// The first sample has been prefilled: the others may begin.
    pub(super) fn prefilled(&self) {
        if !std::mem::replace(&mut self.lock().prefilled, true) {
            self.wake_samples();
        }
    }

    /// Takes the response of one sample to its end. The other end of its channel is dropped then, which tells a sample
    /// that is not at its end that its client has left.
    pub(super) async fn take(&self, index: usize, mut handle: SubrequestHandle) {
        poll_fn(|cx| {
            self.samples[index].register(cx.waker());
            while self.takes() {
                match handle.rx.poll_recv(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Ready(Some(task)) => self.accept(index, task),
                }
            }
            match self.lock().closed {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Whether another piece may be taken.
    fn takes(&self) -> bool {
        let state = self.lock();
        let full = matches!(&state.bodies, Bodies::Streams(_, out) if out.len() >= OUT_LIMIT);
        !full && !state.closed && !state.abandoned
    }

    fn accept(&self, index: usize, task: HttpTask) {
        if index == 0 {
            self.prefilled();
        }
        let mut state = self.lock();
        if let Err(fault) = state.accept(index, task) {
            state.fail(fault);
        }
        if state.has_output() {
            self.client.wake();
        }
    }

    /// A sample has failed. The first failure counts.
    pub(super) fn fail(&self, fault: Fault) {
        self.lock().fail(fault);
        self.client.wake();
    }

    /// A sample is over: it has responded, or reported its fault.
    pub(super) fn ended(&self, index: usize) {
        let mut state = self.lock();
        if !state.samples[index].ended && !state.closed {
            let error = ProxyError::Internal("a sample ended without a response".into());
            state.fail(Fault::Own(error));
            self.client.wake();
        }
    }

    /// Ends all samples that have not ended.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake_samples();
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether the stream has ended with the error event of a worker.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    /// What the client gets next. May be dropped and called again.
    pub(super) async fn output(&self) -> Output {
        poll_fn(|cx: &mut Context<'_>| {
            self.client.register(cx.waker());
            let (output, was_full) = self.lock().output();
            if was_full {
                self.wake_samples();
            }
            match output {
                Some(output) => Poll::Ready(output),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl State {
    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert_with(|| Box::new(fault));
    }

    fn has_output(&self) -> bool {
        let pieces = matches!(&self.bodies, Bodies::Streams(_, out) if !out.is_empty());
        pieces || self.is_complete() || self.fault.is_some()
    }

    /// Whether the client gets nothing more: all responses have ended, or all streams have their end marker, behind which
    /// nothing comes. A client may leave there, and must not end the samples.
    fn is_complete(&self) -> bool {
        self.running == 0
            || matches!(&self.bodies, Bodies::Streams(gather, _) if gather.is_complete())
    }

    /// What the client gets next, and whether the samples had to wait for it.
    fn output(&mut self) -> (Option<Output>, bool) {
        let end = self.is_complete();
        // As long as nothing was sent, a failure is still a status.
        if !self.begun && self.fault.is_some() {
            return (self.fault.take().map(Output::Failed), false);
        }
        let (bytes, full) = match &mut self.bodies {
            Bodies::Streams(_, out) => {
                let full = out.len() >= OUT_LIMIT;
                (out.split().freeze(), full)
            }
            Bodies::Documents if end => {
                let documents: Vec<_> = self.samples.iter_mut().map(|s| s.body.take()).collect();
                match self.recipe.gather.document(&documents) {
                    Ok(document) => (document, false),
                    Err(error) => {
                        return (Some(Output::Failed(Box::new(self.fault_of(error)))), false);
                    }
                }
            }
            Bodies::Documents | Bodies::Unknown => (Bytes::new(), false),
        };
        if bytes.is_empty() && !end {
            return (self.fault.take().map(Output::Failed), full);
        }
        self.begun = true;
        let head = self.head.take();
        (Some(Output::Pieces { head, bytes, end }), full)
    }

    fn accept(&mut self, index: usize, task: HttpTask) -> Result<(), Fault> {
        match task {
            HttpTask::Header(head, end) => {
                if !head.status.is_informational() {
                    let sample = &mut self.samples[index];
                    sample.served = head.status.is_success();
                    if sample.served && matches!(self.bodies, Bodies::Unknown) {
                        self.bodies = self.recipe.bodies(&head);
                    }
                    sample.head = Some(head);
                }
                self.end_if(index, end)
            }
            HttpTask::Body(piece, end) => {
                if let Some(piece) = piece.filter(|piece| !piece.is_empty()) {
                    self.piece(index, piece)?;
                }
                self.end_if(index, end)
            }
            HttpTask::Trailer(_) | HttpTask::Done => self.end_if(index, true),
            HttpTask::UpgradedBody(..) => Err(Fault::Own(ProxyError::Internal(
                "a sample was upgraded".into(),
            ))),
            HttpTask::Failed(error) => Err(Fault::Own(ProxyError::Internal(error.to_string()))),
        }
    }

    fn piece(&mut self, index: usize, piece: Bytes) -> Result<(), Fault> {
        let sample = &mut self.samples[index];
        match &mut self.bodies {
            Bodies::Streams(gather, out) if sample.served => {
                let gathered = gather.push(index, piece, out);
                if !out.is_empty() && !self.begun && self.head.is_none() {
                    self.head = sample.head.take();
                }
                gathered.or_else(|error| self.gather_failed(error))
            }
            _ if sample.body.len() + piece.len() > self.recipe.limit => {
                let fault = GatherFault::TooLong(self.recipe.limit);
                Err(self.fault_of(GatherError {
                    sample: index,
                    fault,
                }))
            }
            _ => {
                sample.body.push(piece);
                Ok(())
            }
        }
    }

    fn end_if(&mut self, index: usize, end: bool) -> Result<(), Fault> {
        let sample = &mut self.samples[index];
        if !end || std::mem::replace(&mut sample.ended, true) {
            return Ok(());
        }
        if let Some(head) = sample
            .head
            .as_ref()
            .filter(|head| !head.status.is_success())
        {
            return Err(Fault::Rejected(
                Role::Decode,
                Box::new(Rejection {
                    status: head.status,
                    headers: end_to_end(&head.headers),
                    body: sample.body.take(),
                }),
            ));
        }
        self.running -= 1;
        if !self.begun && self.head.is_none() {
            self.head = sample.head.take();
        }
        let ended = match &mut self.bodies {
            Bodies::Streams(gather, _) => gather.end(index),
            Bodies::Documents | Bodies::Unknown => Ok(()),
        };
        ended.map_err(|error| self.fault_of(error))
    }

    /// The stream of a sample cannot be gathered. A worker's error event ends a stream that has begun, and is an error
    /// of its own where nothing was sent.
    fn gather_failed(&mut self, error: GatherError) -> Result<(), Fault> {
        let event = match &error.fault {
            GatherFault::Failed(event) if self.begun => Some(event.clone()),
            _ => None,
        };
        match (&mut self.bodies, event) {
            (Bodies::Streams(gather, out), Some(event)) => {
                gather.abandon(&event, out);
                self.running = 0;
                self.abandoned = true;
                Ok(())
            }
            _ => Err(self.fault_of(error)),
        }
    }

    /// A worker's own error passes; everything else is one of the gathering.
    fn fault_of(&self, error: GatherError) -> Fault {
        let sample = error.sample;
        if let GatherFault::Failed(event) = &error.fault
            && let Some(error) = self.recipe.engine.stream_error(self.recipe.route, event)
        {
            let head = self.samples[sample].head.as_ref();
            let headers = head.map(|head| &head.headers);
            let rejection = Rejection::inside(headers.unwrap_or(&HeaderMap::new()), error);
            return Fault::Rejected(Role::Decode, rejection);
        }
        Fault::Own(ProxyError::Gather(error))
    }
}

#[cfg(test)]
mod tests;
