//! The ends of waits: a worker is idle, or a probe has a result.

use super::entry::{Entry, Life, Seq};
use super::listing::Source;
use super::state::State;
use super::task::{Complaint, TaskId, Told};
use crate::fleet::Role;

/// The most workers that were refused and are remembered.
const MAX_FAILED: usize = 100;

impl State {
    /// The worker has no request any more, or its time is over.
    pub(super) fn note_idle(&mut self, id: TaskId) {
        if self
            .current(id)
            .is_some_and(|entry| entry.life == Life::Leaving)
        {
            self.forget(id.0);
        }
    }

    /// The entry of a task that is still its own.
    fn current(&mut self, id: TaskId) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&id.0)?;
        let is_its_own = entry.task.as_ref().is_some_and(|(task, _)| *task == id);
        is_its_own.then_some(entry)
    }

    /// The result of a probe. True where another one is needed.
    pub(super) fn note_probe(&mut self, id: TaskId, told: Result<Told, Complaint>) -> bool {
        let seq = id.0;
        let Some(entry) = self.current(id) else {
            return false;
        };
        let complaint = match told {
            Ok(told) => {
                self.learn(seq, &told);
                self.serve(seq);
                return false;
            }
            Err(complaint) => complaint,
        };
        let (role, url) = (entry.role_name(), entry.worker.url());
        let is_of_api = entry.listings.iter().all(|(by, _)| *by == Source::Api);
        let (Complaint::ForNow(why) | Complaint::Contradicts(why)) = &complaint;
        if entry.problem.as_ref() != Some(why) {
            log::warn!("worker is not ready role={role} worker={url} why=\"{why}\"");
        }
        let why = Some(why.clone());
        let refused = matches!(complaint, Complaint::Contradicts(_));
        if refused && is_of_api && !entry.is_member() {
            entry.turn(Life::Failed);
            entry.problem = why;
            self.forget_old_failures();
            return false;
        }
        entry.problem = why;
        true
    }

    fn learn(&mut self, seq: Seq, told: &Told) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return;
        };
        entry.learned.role = told.role.or(entry.learned.role);
        entry.learned.bootstrap_port = told.bootstrap_port.or(entry.learned.bootstrap_port);
        self.apply(seq);
        // By now it is the worker with the role and the address that it has told.
        if let (Some(entry), Some(layout)) = (self.entries.get(&seq), told.layout)
            && entry.worker.role() == Role::Prefill
        {
            self.fleet.note_layout(&entry.worker, layout);
        }
    }

    fn forget_old_failures(&mut self) {
        let failed = self.entries.iter();
        let failed: Vec<_> = failed
            .filter(|(_, entry)| entry.life == Life::Failed)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in failed.iter().rev().skip(MAX_FAILED) {
            self.forget(*seq);
        }
    }
}
