//! Watches the client of one request, which may leave before its response is complete.

use std::sync::Arc;

use tokio::sync::watch;

use super::DisconnectNotice;
use super::chaos::ItemFault;
use super::engine::{Abort, Engine, Phase};
use super::journal::Event;
use super::wire::OnFinish;

/// Belongs to the body of a response. Dropped before the body is complete, it aborts the request's items.
pub(crate) struct ClientGuard {
    engine: Arc<Engine>,
    /// The request's number in the journal.
    pub(crate) request: u64,
    /// Whether the connection has a request under way: the keep-alive time runs when it has none.
    busy: watch::Sender<bool>,
    pub(crate) aborts: Vec<Arc<Abort>>,
    pub(crate) stream: bool,
    finished: bool,
    pub(crate) fault: ItemFault,
    /// A scripted fault: the worker does not notice that the client left.
    pub(crate) zombie: bool,
}

impl ClientGuard {
    pub(crate) fn new(engine: Arc<Engine>, request: u64, busy: watch::Sender<bool>) -> ClientGuard {
        busy.send_replace(true);
        ClientGuard {
            engine,
            request,
            busy,
            aborts: Vec::new(),
            stream: false,
            finished: false,
            fault: ItemFault::None,
            zombie: false,
        }
    }

    fn abort(&self) {
        // A worker that is down or stopped has cut the connection itself, and its items end with it.
        if self.zombie || self.engine.phase() != Phase::Serving {
            return;
        }
        let request = self.request;
        self.engine
            .journal
            .push(|| Event::AbortByDisconnect { request });
        // Source: SGLang 0.5.23, `managers/tokenizer_manager.py`: the background task of a stream, and the poll.
        let seconds = if self.stream { 2.0 } else { 4.0 };
        match self.engine.options.disconnect {
            DisconnectNotice::AtOnce => self.aborts.iter().for_each(|abort| abort.request()),
            DisconnectNotice::AsSglang => {
                let (aborts, notice) = (self.aborts.clone(), self.engine.options.timer(seconds));
                self.engine.spawn(async move {
                    tokio::time::sleep(notice).await;
                    aborts.iter().for_each(|abort| abort.request());
                });
            }
        }
    }
}

impl OnFinish for ClientGuard {
    fn finished(&mut self) {
        self.finished = true;
        let request = self.request;
        self.engine
            .journal
            .push(|| Event::ResponseFinished { request });
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        if !self.finished {
            self.abort();
        }
        self.busy.send_replace(false);
    }
}
