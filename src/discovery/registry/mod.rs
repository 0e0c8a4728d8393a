//! The list of all workers, from whatever source, and which of them are members of the fleet.
//!
//! After the start nothing else calls `Fleet::replace`. A source declares its whole list ([`Registry::set`]), or adds and
//! removes one ([`Registry::add`], [`Registry::remove`]); a worker that several sources list is one worker, which
//! leaves with the last of them. Nothing of this is on the way of a request: it knows the members of the fleet alone.
//!
//! A worker is *pending* while it is probed, then it *serves*; while it *drains* it gets no new request, stays a member so
//! that it is seen, and serves again or is removed when its last request has ended.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`Registry`], and the task that waits for workers |
//! | `listing.rs` | a worker as a source wants it |
//! | `entry.rs` | a worker that is listed, and its life |
//! | `state.rs` | all changes, without a wait |
//! | `task.rs`, `ends.rs` | a wait for a worker, what it ends with, and what follows from that |
//! | `keep.rs` | the file with the workers of the API |
//! | `examine.rs` | what a worker is asked before its first request |

mod ends;
mod entry;
mod examine;
mod keep;
mod listing;
mod state;
mod task;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use crate::fleet::{Fleet, Role, Worker};
use entry::{Entry, Seq, key_of};
pub(crate) use entry::{Life, Shown};
pub(crate) use examine::Examiner;
pub(crate) use keep::Keeper;
pub(crate) use listing::{Conflict, Describe, Description, Details, First, Leave, Listed, Source};
use state::State;
use task::{Complaint, Task, TaskId, Told, Until};

/// How long a worker that a source no longer lists is shown while its requests end. They are not cut off after that.
pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(3600);

/// Between two probes of a worker that is not ready.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// All workers that are listed.
pub(crate) struct Registry {
    describe: Describe,
    state: Mutex<State>,
    /// Taken by [`Registry::run`].
    tasks: Mutex<Option<mpsc::UnboundedReceiver<Task>>>,
    /// Sends after each change, for those that wait for one.
    changed: watch::Sender<()>,
}

impl Registry {
    /// A registry without workers, for a fleet without members. `describe` makes the parts of a worker.
    pub(crate) fn new(fleet: Arc<Fleet>, describe: Describe) -> Self {
        // Bounded by the workers: each has at most one task that is not in vain.
        let (sender, tasks) = mpsc::unbounded_channel();
        Self {
            describe,
            state: Mutex::new(State::new(fleet, sender)),
            tasks: Mutex::new(Some(tasks)),
            changed: watch::Sender::new(()),
        }
    }

    /// A worker of this description, for a list.
    ///
    /// # Errors
    /// A sentence: the URL, a host, a key or the weight is not one.
    pub(crate) fn listed(
        &self,
        role: Role,
        description: &Description,
        first: First,
    ) -> Result<Listed, String> {
        Ok(Listed {
            parts: (self.describe)(role, description)?,
            first,
            details: Details {
                described: Some(description.clone()),
                ..Details::default()
            },
        })
    }

    /// Declares the whole list of a source. New workers are probed where they ask for it, and serve then; those that
    /// the source does not list any more drain and are forgotten, unless another source lists them. A worker that the
    /// list has in the other role than an earlier source keeps its role, which is logged and in [`Registry::conflicts`].
    pub(crate) fn set(&self, source: &Source, listed: Vec<Listed>) {
        self.change(|state| state.set(source, listed, Leave::Within(DRAIN_TIME)));
    }

    /// Adds one worker to the list of the API, and returns its id. One that leaves, or that was refused, may be added again.
    ///
    /// # Errors
    /// The worker that is listed with this address already, in whatever role.
    pub(crate) fn add(&self, listed: Listed) -> Result<String, Box<Shown>> {
        self.change(|state| {
            let present = state
                .at(&key_of(&listed.parts))
                .and_then(|seq| state.get(seq));
            if let Some(entry) = present
                && !matches!(entry.life, Life::Leaving | Life::Failed)
            {
                return Err(Box::new(entry.shown()));
            }
            // No conflict: what was there is gone.
            let added = state.list(&Source::Api, listed).ok();
            let entry = added.and_then(|seq| state.get(seq));
            Ok(entry.map(|entry| entry.id.clone()).unwrap_or_default())
        })
    }

    /// Changes what is wished of a worker, until its source declares it anew. `None` where there is none.
    pub(crate) fn amend(&self, name: &str, amend: impl FnOnce(&mut Listed)) -> Option<Shown> {
        self.at(name, |state, seq| state.amend(seq, amend))
    }

    /// Takes a worker out of all lists. A source that goes on listing it does not bring it back. Its state before it is
    /// forgotten; `None` where there is none.
    pub(crate) fn remove(&self, name: &str, leave: Leave) -> Option<Shown> {
        self.at(name, |state, seq| state.remove(seq, leave))
    }

    /// The worker gets no new request until [`Registry::serve`] or [`Registry::probe`]. `None` where there is none.
    pub(crate) fn drain(&self, name: &str) -> Option<Shown> {
        self.at(name, |state, seq| {
            if state
                .get(seq)
                .is_some_and(|entry| entry.life != Life::Leaving)
            {
                state.drain(seq, Life::Draining, None);
            }
        })
    }

    /// The worker serves at once. `None` where there is none.
    pub(crate) fn serve(&self, name: &str) -> Option<Shown> {
        self.at(name, |state, seq| {
            if state
                .get(seq)
                .is_some_and(|entry| entry.life != Life::Leaving)
            {
                state.serve(seq);
            }
        })
    }

    /// The worker serves once a probe says that it is well. `None` where there is none.
    pub(crate) fn probe(&self, name: &str) -> Option<Shown> {
        self.at(name, |state, seq| {
            let life = state.get(seq).map(|entry| entry.life);
            if !matches!(life, Some(Life::Leaving | Life::Serving)) {
                state.probe(seq, First::Probe);
            }
        })
    }

    /// The worker has this role from now on, and is probed before it serves. `None` where there is none.
    pub(crate) fn switch(
        &self,
        name: &str,
        role: Role,
        bootstrap_port: Option<u16>,
    ) -> Option<Shown> {
        self.at(name, |state, seq| state.switch(seq, role, bootstrap_port))
    }

    /// All workers, in the order in which they were listed first.
    pub(crate) fn workers(&self) -> Vec<Shown> {
        self.state().entries().map(Entry::shown).collect()
    }

    /// The worker with this id or this URL.
    pub(crate) fn find(&self, name: &str) -> Option<Shown> {
        let state = self.state();
        let seq = self.seq(&state, name)?;
        state.get(seq).map(Entry::shown)
    }

    /// What the sources' last lists contradict each other in, with the source that came later.
    pub(crate) fn conflicts(&self) -> Vec<(Source, Conflict)> {
        let state = self.state();
        let all = state.conflicts.iter();
        all.map(|((source, _), conflict)| (source.clone(), conflict.clone()))
            .collect()
    }

    /// Signals with each part of the life of the worker with this id, and ends when it is forgotten. Those that wait for one
    /// worker are not woken by the others. `None` where there is none.
    pub(crate) fn turns(&self, id: &str) -> Option<watch::Receiver<()>> {
        let state = self.state();
        let entry = state.with_id(id).and_then(|seq| state.get(seq));
        entry.map(|entry| entry.turns.subscribe())
    }

    /// Signals after each change of a worker's state.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn seq(&self, state: &State, name: &str) -> Option<Seq> {
        state.with_id(name).or_else(|| {
            let description = Description {
                url: name.to_owned(),
                ..Description::default()
            };
            let parts = (self.describe)(Role::Decode, &description).ok()?;
            state.at(&key_of(&parts))
        })
    }

    /// A change of one worker, and its state after the change, or before it where it is forgotten.
    fn at(&self, name: &str, change: impl FnOnce(&mut State, Seq)) -> Option<Shown> {
        self.change(|state| {
            let seq = self.seq(state, name)?;
            let before = state.get(seq)?.shown();
            change(state, seq);
            Some(state.get(seq).map_or(before, Entry::shown))
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        state.commit();
        drop(state);
        self.changed.send_replace(());
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for workers that are probed or that drain, for ever.
    pub(crate) async fn run(&self, examiner: &Examiner) {
        self.run_by(|worker, first| examiner.examine(worker, first))
            .await;
    }

    async fn run_by<F>(&self, examine: impl Fn(Arc<Worker>, First) -> F)
    where
        F: Future<Output = Result<Told, Complaint>>,
    {
        let tasks = self
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut tasks) = tasks else {
            return std::future::pending().await;
        };
        let mut waits = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(task) = tasks.recv() => waits.push(self.wait(task, &examine)),
                Some(()) = waits.next() => {}
                else => return std::future::pending().await,
            }
        }
    }

    async fn wait<F>(&self, task: Task, examine: &impl Fn(Arc<Worker>, First) -> F)
    where
        F: Future<Output = Result<Told, Complaint>>,
    {
        let Task {
            id,
            worker,
            vain,
            until,
        } = task;
        let waiting = async {
            let Until::Well(first) = until else {
                return self.wait_until_idle(id, &worker, until).await;
            };
            loop {
                let told = examine(worker.clone(), first).await;
                if !self.change(|state| state.note_probe(id, told)) {
                    return;
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            _ = vain => {}
            () = waiting => {}
        }
    }

    async fn wait_until_idle(&self, id: TaskId, worker: &Worker, until: Until) {
        if let Until::Idle(Some(time)) = until {
            let _ = tokio::time::timeout_at(time.into(), worker.drained()).await;
        } else {
            worker.drained().await;
        }
        self.change(|state| state.note_idle(id));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod random_events;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
