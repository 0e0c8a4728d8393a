//! The load that a request puts on a worker, and what the policy learns from its end.
//!
//! What lives here: [`Load`], which counts for as long as a leg lasts, and [`Forecast`]. What may not: the counters, which are
//! the worker's.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::policy::{Ended, Expected};
use super::ranks::{RankShare, Spread};
use super::{Fleet, Worker};
use crate::pd::{Prefix, Usage};

/// What a policy expected of the prefill worker that it has chosen, and what came.
#[derive(Debug)]
pub struct Forecast {
    expected: Expected,
    /// Set once the worker has computed the prompt, with what it reports.
    served: OnceLock<Option<Usage>>,
}

impl Forecast {
    /// A forecast of a prompt that is not computed yet.
    pub fn new(expected: Expected) -> Self {
        Self {
            expected,
            served: OnceLock::new(),
        }
    }

    /// What was expected when the worker was chosen.
    pub fn expected(&self) -> Expected {
        self.expected
    }

    /// What the worker reports of the prompt; `None` before its response, and where it reports nothing.
    pub fn usage(&self) -> Option<Usage> {
        self.served.get().copied().flatten()
    }

    /// Notes that the worker has computed the prompt, and what it reports of it.
    pub fn serve(&self, usage: Option<Usage>) {
        let _ = self.served.set(usage);
    }
}

/// What a request adds to the counters of a worker.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    /// The length of its body.
    pub(super) body_bytes: usize,
    /// The tokens that it may generate; 0 for prefill, and where no policy asks for it.
    pub(super) to_come: usize,
    /// The ranks that its prompts are on; `None` where no rank was chosen.
    pub(super) spread: Option<Spread>,
}

/// One request's share of a worker's load. It ends when this is dropped, which is when the leg ends.
pub struct Load {
    worker: Arc<Worker>,
    share: Share,
    /// The same on the ranks of the worker, where it has several.
    on_ranks: Option<Box<RankShare>>,
    /// The fleet whose waiting requests are served when the load ends; `None` without a queue.
    pub(super) serves: Option<Arc<Fleet>>,
    /// The lesson for the policy that has chosen the worker; `None` where it does not learn.
    teaches: Option<Box<Lesson>>,
}

/// What a policy learns from the end of a leg.
struct Lesson {
    fleet: Arc<Fleet>,
    prefix: Arc<Prefix>,
    forecast: Arc<Forecast>,
}

impl Load {
    /// The load of a request that the worker has counted.
    pub(super) fn of(worker: Arc<Worker>, share: Share, serves: Option<Arc<Fleet>>) -> Self {
        let spread = share.spread.filter(|spread| spread.rank().is_some());
        let on_ranks = spread.and_then(|spread| worker.ranks().share(spread, share.body_bytes));
        let on_ranks = on_ranks.map(Box::new);
        Self {
            worker,
            share,
            on_ranks,
            serves,
            teaches: None,
        }
    }

    /// Tells the policy of this fleet how the leg ends.
    pub(super) fn teach(
        &mut self,
        fleet: Arc<Fleet>,
        prefix: Arc<Prefix>,
        forecast: Arc<Forecast>,
    ) {
        self.teaches = Some(Box::new(Lesson {
            fleet,
            prefix,
            forecast,
        }));
    }

    /// The ranks that the prompts are to be on; `None` where none was chosen.
    pub fn spread(&self) -> Option<Spread> {
        self.share.spread
    }

    /// Whether [`Self::served`] is of use.
    pub fn teaches(&self) -> bool {
        self.teaches.is_some()
    }

    /// Notes that the worker has computed the prompt, and what it reports of it.
    pub fn served(&self, usage: Option<Usage>) {
        if let Some(lesson) = &self.teaches {
            lesson.forecast.serve(usage);
        }
    }
}

impl Deref for Load {
    type Target = Arc<Worker>;

    fn deref(&self) -> &Arc<Worker> {
        &self.worker
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Before the queue is served, so that the next choice knows of it.
        if let Some(lesson) = self.teaches.take() {
            let served = lesson.forecast.served.get();
            lesson.fleet.note_ended(&Ended {
                worker: self.worker.id(),
                spread: self.share.spread.unwrap_or_default(),
                prefix: &lesson.prefix,
                served: served.is_some(),
                usage: served.copied().flatten(),
                now: Instant::now(),
            });
        }
        drop(self.on_ranks.take());
        match self.serves.take() {
            None => self.worker.release(self.share),
            Some(fleet) => fleet.release(&self.worker, self.share),
        }
    }
}
