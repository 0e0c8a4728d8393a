//! The workers of the requests that belong together: the samples of one prompt, each with a pair of its own.
//!
//! They prefer one prefill worker, whose prefix cache then computes the prompt once, and decode workers that none of the
//! others has. It is a preference and no condition: it narrows the candidates that the filter has left, and never to none.
//! The policy of the role chooses among them as among any others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::select::Pair;
use super::{Candidate, Spread, Worker, WorkerId};

/// The pairs of the requests that belong together.
#[derive(Debug, Default)]
pub struct Siblings(Mutex<Chosen>);

#[derive(Debug, Default)]
struct Chosen {
    /// Whether one of them has a pair or waits for one. The others belong to what was let in with it.
    admitted: bool,
    /// The prefill worker of the one that was served last: after a failure the prompt is computed elsewhere.
    prefill: Option<WorkerId>,
    /// The rank of it that computes the prompt, where one was chosen.
    rank: Option<u32>,
    /// The decode worker of each.
    decode: Vec<WorkerId>,
}

impl Siblings {
    fn lock(&self) -> MutexGuard<'_, Chosen> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that one of them has a place in the queue, and returns whether one had it, or a pair, before.
    pub(super) fn admit(&self) -> bool {
        std::mem::replace(&mut self.lock().admitted, true)
    }

    /// Notes the pair of one of them.
    pub(super) fn note(
        &self,
        Pair {
            prefill,
            decode,
            spread,
            ..
        }: Pair<'_>,
    ) {
        let mut chosen = self.lock();
        chosen.admitted = true;
        chosen.prefill = Some(prefill.id());
        chosen.rank = spread.and_then(Spread::rank);
        chosen.decode.push(decode.id());
    }

    /// Leaves the prefill worker that the others have, where it is a candidate.
    pub(super) fn narrow_prefill(&self, candidates: &mut Vec<&Arc<Worker>>) {
        let shared = self.lock().prefill;
        if let Some(shared) = candidates
            .iter()
            .copied()
            .find(|worker| Some(worker.id()) == shared)
        {
            *candidates = vec![shared];
        }
    }

    /// Leaves the rank that the others have, where it is a candidate.
    pub(super) fn narrow_ranks(&self, candidates: &mut Vec<Candidate>) {
        let chosen = self.lock();
        let shared = candidates
            .iter()
            .copied()
            .find(|one| Some(one.id) == chosen.prefill && Some(one.rank) == chosen.rank);
        if let Some(shared) = shared {
            *candidates = vec![shared];
        }
    }

    /// Leaves the decode workers that fewest of the others have.
    pub(super) fn narrow_decode(&self, candidates: &mut Vec<&Arc<Worker>>) {
        let chosen = self.lock();
        let uses = |worker: &Worker| {
            let same = chosen.decode.iter().filter(|id| **id == worker.id());
            same.count()
        };
        if let Some(fewest) = candidates.iter().map(|worker| uses(worker)).min() {
            candidates.retain(|worker| uses(worker) == fewest);
        }
    }
}
