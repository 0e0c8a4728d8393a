//! The stage in which each item is, and how many are in each: what `/v1/loads` tells.
//!
//! Source: SGLang 0.5.23, `disaggregation/prefill.py` and `decode.py` (the queues of each role).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where an item is between its arrival and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Prefill: decode has not met it yet.
    Bootstrap,
    /// It waits for a forward pass.
    Queued,
    /// Its prompt is computed.
    Computing,
    /// Prefill: its KV cache is sent.
    Sending,
    /// Decode: it waits for memory.
    Preallocating,
    /// Decode: its KV cache is on its way.
    Receiving,
    /// It waits for a place among those that generate.
    Ready,
    /// It generates.
    Running,
}

/// How many items are in each stage.
#[derive(Default)]
pub(crate) struct Stages([AtomicUsize; 8]);

impl Stages {
    /// Items in this stage.
    pub(crate) fn count(&self, stage: Stage) -> usize {
        self.0[stage as usize].load(Ordering::Relaxed)
    }

    fn add(&self, stage: Stage) {
        self.0[stage as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, stage: Stage) {
        self.0[stage as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stage of one item. It is counted until this is dropped.
pub(super) struct Staged {
    stages: Arc<Stages>,
    stage: Stage,
}

impl Staged {
    pub(super) fn new(stages: &Arc<Stages>, stage: Stage) -> Staged {
        stages.add(stage);
        Staged {
            stages: stages.clone(),
            stage,
        }
    }

    /// The item goes on to this stage.
    pub(super) fn enter(&mut self, stage: Stage) {
        self.stages.add(stage);
        self.stages.remove(self.stage);
        self.stage = stage;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.stages.remove(self.stage);
    }
}
