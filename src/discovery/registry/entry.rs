//! One worker that is listed, and its life: pending, serving, draining, removed.

use std::sync::Arc;
use std::time::Instant;

use rand::RngExt;
use tokio::sync::{oneshot, watch};

use super::listing::{Details, Listed, Source};
use super::task::TaskId;
use crate::fleet::{Role, Worker, WorkerParts};
use crate::pd::Bootstrap;

/// The name of an entry inside the registry. None is used twice.
pub(super) type Seq = u64;

/// What identifies a worker whatever its scheme: one port cannot serve both http and https, nor two roles.
pub(super) fn key_of(parts: &WorkerParts) -> (String, u16) {
    (parts.origin.host.clone(), parts.origin.port)
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It is probed, and serves once that is well. It is a member already where it has served before.
    Pending,
    /// It gets requests, as far as its health allows.
    Serving,
    /// It gets no new request until somebody says that it serves again.
    Draining,
    /// No source lists it any more. It is forgotten when its last request has ended.
    Leaving,
    /// It was refused, because it is not what its description says. Only a worker of the API: another source is asked
    /// again and again.
    Failed,
}

impl Life {
    /// The word for users.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Life::Pending => "pending",
            Life::Serving => "serving",
            Life::Draining | Life::Leaving => "draining",
            Life::Failed => "failed",
        }
    }
}

/// What a worker has said of itself, or was made to be. It stands above the lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Learned {
    /// The role that it has said where none was given, or that it was switched to.
    pub(super) role: Option<Role>,
    /// Whether it was switched to that role, so that lists with the other one mean this worker as well.
    pub(super) switched: bool,
    /// The port of its bootstrap server.
    pub(super) bootstrap_port: Option<u16>,
}

pub(super) struct Entry {
    /// The name for users: a random UUID.
    pub(super) id: String,
    /// The sources that list it, the one whose wishes count first. Empty for one that leaves.
    pub(super) listings: Vec<(Source, Listed)>,
    /// The wishes that counted last.
    pub(super) listed: Listed,
    pub(super) learned: Learned,
    pub(super) worker: Arc<Worker>,
    pub(super) life: Life,
    /// Its place in the order in which workers became members; `None` for one that is not.
    pub(super) joined: Option<u64>,
    /// Why it does not serve.
    pub(super) problem: Option<String>,
    /// Dropping it ends the task that waits for the worker.
    pub(super) task: Option<(TaskId, oneshot::Sender<()>)>,
    pub(super) since: Instant,
    /// Sends with each part of its life, and ends with the entry, for those that wait for this worker alone.
    pub(super) turns: watch::Sender<()>,
}

impl Entry {
    /// Begins another part of its life.
    pub(super) fn turn(&mut self, life: Life) {
        self.life = life;
        self.since = Instant::now();
        self.turns.send_replace(());
    }

    /// The parts that the worker must have now.
    pub(super) fn parts(&self) -> WorkerParts {
        self.learned.of(&self.listed.parts)
    }

    /// Whether the role is certain.
    pub(super) fn knows_role(&self) -> bool {
        self.learned.role.is_some() || !self.listed.first.asks_role()
    }

    /// The role for the log.
    pub(super) fn role_name(&self) -> &'static str {
        match self.knows_role() {
            true => self.worker.role().name(),
            false => "unknown",
        }
    }

    pub(super) fn is_member(&self) -> bool {
        self.joined.is_some()
    }

    pub(super) fn is_listed_by(&self, source: &Source) -> bool {
        self.listings.iter().any(|(other, _)| other == source)
    }

    pub(super) fn shown(&self) -> Shown {
        Shown {
            id: self.id.clone(),
            role: self.knows_role().then(|| self.worker.role()),
            sources: self
                .listings
                .iter()
                .map(|(source, _)| source.clone())
                .collect(),
            life: self.life,
            problem: self.problem.clone(),
            details: self.listed.details.clone(),
            worker: self.worker.clone(),
            since: self.since,
        }
    }
}

impl Learned {
    fn of(self, listed: &WorkerParts) -> WorkerParts {
        let role = self.role.unwrap_or(listed.role);
        let bootstrap = (role == Role::Prefill).then(|| {
            let given = listed.bootstrap.as_ref();
            let host = given.map_or(listed.origin.host.as_str(), Bootstrap::host);
            let port = given.and_then(Bootstrap::port);
            Bootstrap::new(host, port.or(self.bootstrap_port))
        });
        WorkerParts {
            role,
            bootstrap,
            ..listed.clone()
        }
    }
}

/// A worker of the registry as it is now, for those that show it.
#[derive(Clone)]
pub(crate) struct Shown {
    /// A UUID, which no other worker of this process has had.
    pub(crate) id: String,
    /// `None` until the worker has said it.
    pub(crate) role: Option<Role>,
    /// Empty for one that leaves.
    pub(crate) sources: Vec<Source>,
    pub(crate) life: Life,
    /// Why it does not serve.
    pub(crate) problem: Option<String>,
    pub(crate) details: Details,
    pub(crate) worker: Arc<Worker>,
    /// When its life was last changed.
    pub(crate) since: Instant,
}

/// A random UUID (RFC 9562, version 4).
pub(super) fn uuid() -> String {
    let random: u128 = rand::rng().random();
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}
