//! A wait for a worker, and what it ends with.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::entry::Seq;
use super::listing::First;
use crate::fleet::{Layout, Role, Worker};

/// A wait for a worker.
pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) worker: Arc<Worker>,
    /// Resolves when the wait is in vain.
    pub(super) vain: oneshot::Receiver<()>,
    pub(super) until: Until,
}

/// The entry that a task is for, and the number of the task. The result of one that is no longer the entry's says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TaskId(pub(super) Seq, pub(super) u64);

#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// It has been probed as this asks.
    Well(First),
    /// It has no request, or this time has come.
    Idle(Option<Instant>),
}

/// What a probe has learnt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Where it was asked.
    pub(super) role: Option<Role>,
    pub(super) bootstrap_port: Option<u16>,
    /// Of a prefill worker that has said it.
    pub(super) layout: Option<Layout>,
}

/// Why a worker does not serve yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Complaint {
    /// Another probe may end better.
    ForNow(String),
    /// It is not what its description says.
    Contradicts(String),
}
