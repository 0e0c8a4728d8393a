//! One worker: its role, its address, and how much it has to do.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::HeaderValue;
use pingora_core::upstreams::peer::HttpPeer;

use super::breaker::{Breaker, Change, Evidence, Limits};
use crate::pd::{Bootstrap, Role};

/// Tells workers apart as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u32);

/// A worker and its counters.
pub struct Worker {
    id: WorkerId,
    role: Role,
    url: String,
    host: HeaderValue,
    peer: HttpPeer,
    bootstrap: Option<Bootstrap>,
    authorization: Option<HeaderValue>,
    admin_authorization: Option<HeaderValue>,
    in_flight: AtomicUsize,
    /// Whether the breaker has anything to say: a worker without trouble takes no lock.
    troubled: AtomicBool,
    breaker: Mutex<Breaker>,
}

impl Worker {
    /// A worker that has nothing to do yet.
    ///
    /// `url` is its name in logs and answers, `host` the value of the `Host` header that it gets, `peer`
    /// how it is dialled (address and timeouts), `bootstrap` where decode workers find a prefill worker's
    /// registry, `authorization` what replaces the client's header of that name.
    pub fn new(
        id: WorkerId,
        role: Role,
        url: String,
        host: HeaderValue,
        peer: HttpPeer,
        bootstrap: Option<Bootstrap>,
        authorization: Option<HeaderValue>,
    ) -> Self {
        Self {
            id,
            role,
            url,
            host,
            peer,
            bootstrap,
            authorization,
            admin_authorization: None,
            in_flight: AtomicUsize::new(0),
            troubled: AtomicBool::new(false),
            breaker: Mutex::default(),
        }
    }

    /// The same worker with a key for its administration, ready as a header value.
    pub fn with_admin_authorization(self, authorization: Option<HeaderValue>) -> Self {
        Self {
            admin_authorization: authorization,
            ..self
        }
    }

    /// Its own number.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// Whether it may be picked now.
    pub fn admits(&self, now: Instant) -> bool {
        !self.troubled.load(Ordering::Relaxed) || self.breaker().admits(now)
    }

    /// What a leg or a probe says about it, and what that changes.
    pub(super) fn note(&self, evidence: Evidence, now: Instant, limits: &Limits) -> Option<Change> {
        let troubled = self.troubled.load(Ordering::Relaxed);
        if !troubled && !matches!(evidence, Evidence::Absent | Evidence::Bad) {
            return None;
        }
        let mut breaker = self.breaker();
        let changed = breaker.note(evidence, now, limits);
        self.troubled
            .store(breaker.is_troubled(), Ordering::Relaxed);
        changed
    }

    /// Marks a pick of a worker that is being tried again.
    pub(super) fn picked(&self, now: Instant) {
        if self.troubled.load(Ordering::Relaxed) {
            self.breaker().picked(now);
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Nothing panics while the lock is held.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prefill or decode.
    pub fn role(&self) -> Role {
        self.role
    }

    /// `http://host:port` or `https://host:port`, without a path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The value of the `Host` header.
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// How the worker is dialled.
    pub fn peer(&self) -> &HttpPeer {
        &self.peer
    }

    /// Where decode finds this prefill worker's registry; `None` for a decode worker.
    pub fn bootstrap(&self) -> Option<&Bootstrap> {
        self.bootstrap.as_ref()
    }

    /// The key that replaces the client's `Authorization`, ready as a header value.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Likewise where the worker is administered: its own key for that, if it has one.
    pub fn admin_authorization(&self) -> Option<&HeaderValue> {
        self.admin_authorization
            .as_ref()
            .or(self.authorization.as_ref())
    }

    /// Requests whose leg on this worker has not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Puts one request on this worker.
    pub fn load(self: &Arc<Self>) -> Load {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Load {
            worker: self.clone(),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(role: Role, port: u16) -> Self {
        let authority = format!("127.0.0.1:{port}");
        Self::new(
            WorkerId(port.into()),
            role,
            format!("http://{authority}"),
            HeaderValue::from_static("worker"),
            HttpPeer::new(authority, false, String::new()),
            None,
            None,
        )
    }
}

/// One request's share of a worker's load. It ends when this is dropped: with the leg, not with the choice.
pub struct Load {
    worker: Arc<Worker>,
}

impl Deref for Load {
    type Target = Arc<Worker>;

    fn deref(&self) -> &Arc<Worker> {
        &self.worker
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.worker.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
