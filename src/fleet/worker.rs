//! One worker: its role, its address, and how much it has to do.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::HeaderValue;
use pingora_core::upstreams::peer::HttpPeer;

use super::Fleet;
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
    /// `None` as long as nobody knows where it is.
    peer: RwLock<Option<Arc<HttpPeer>>>,
    bootstrap: Option<Bootstrap>,
    authorization: Option<HeaderValue>,
    admin_authorization: Option<HeaderValue>,
    in_flight: AtomicUsize,
    /// Whether the breaker has anything to say, or there is no address: a worker without trouble accepts_share no lock.
    unhealthy: AtomicBool,
    breaker: Mutex<Breaker>,
    /// Whether the last question without legs had no answer.
    unanswered: AtomicBool,
}

impl Worker {
    /// A worker that has nothing to do yet.
    ///
    /// `url` is its name in logs and answers, `host` the value of the `Host` header that it gets, `peer`
    /// how it is dialled (address and timeouts) if that is known, `bootstrap` where decode workers find a prefill worker's
    /// registry, `authorization` what replaces the client's header of that name.
    pub fn new(
        id: WorkerId,
        role: Role,
        url: String,
        host: HeaderValue,
        peer: Option<HttpPeer>,
        bootstrap: Option<Bootstrap>,
        authorization: Option<HeaderValue>,
    ) -> Self {
        let unhealthy = AtomicBool::new(peer.is_none());
        Self {
            id,
            role,
            url,
            host,
            peer: RwLock::new(peer.map(Arc::new)),
            bootstrap,
            authorization,
            admin_authorization: None,
            in_flight: AtomicUsize::new(0),
            unhealthy,
            breaker: Mutex::default(),
            unanswered: AtomicBool::new(false),
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
        !self.unhealthy.load(Ordering::Relaxed)
            || (self.has_address() && self.breaker().admits(now))
    }

    /// Whether it has an address.
    pub fn has_address(&self) -> bool {
        self.peer().is_some()
    }

    /// Whether it accepts_share a pick that has fallen on it: always, but for a while after it came back.
    pub(super) fn accepts_share(
        &self,
        draw: impl FnOnce() -> u64,
        now: Instant,
        slow_start: Duration,
    ) -> bool {
        if !self.unhealthy.load(Ordering::Relaxed) {
            return true;
        }
        let part = self.breaker().part(now, slow_start);
        part >= 1.0 || (draw() as f64) < part * u64::MAX as f64
    }

    /// What a leg or a probe says about it, and what that changes.
    pub(super) fn note(&self, evidence: Evidence, now: Instant, limits: &Limits) -> Option<Change> {
        let unhealthy = self.unhealthy.load(Ordering::Relaxed);
        if !unhealthy && !matches!(evidence, Evidence::Absent | Evidence::Bad) {
            return None;
        }
        let mut breaker = self.breaker();
        let changed = breaker.note(evidence, now, limits);
        let unhealthy = breaker.is_unhealthy() || !self.has_address();
        self.unhealthy.store(unhealthy, Ordering::Relaxed);
        changed
    }

    /// Notes whether a question without legs was answered. True when that is news: who polls a dead worker fills
    /// no log.
    pub fn note_answered(&self, answered: bool) -> bool {
        self.unanswered.swap(!answered, Ordering::Relaxed) == answered
    }

    /// Marks a pick of a worker that is being tried again.
    pub(super) fn picked(&self, now: Instant) {
        if self.unhealthy.load(Ordering::Relaxed) {
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

    /// How the worker is dialled; `None` as long as it has no address.
    pub fn peer(&self) -> Option<Arc<HttpPeer>> {
        let peer = self.peer.read().unwrap_or_else(PoisonError::into_inner);
        peer.clone()
    }

    /// It is dialled like this from now on.
    pub fn set_address(&self, peer: HttpPeer) {
        // In this order, so that a note that comes between does not find the old state.
        let breaker = self.breaker();
        *self.peer.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(peer));
        self.unhealthy
            .store(breaker.is_unhealthy(), Ordering::Relaxed);
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
        self.load_of(None)
    }

    /// Likewise; the fleet is told when it ends.
    pub(super) fn load_of(self: &Arc<Self>, told: Option<Arc<Fleet>>) -> Load {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Load {
            worker: self.clone(),
            told,
        }
    }

    /// Takes one request off.
    pub(super) fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn for_tests(role: Role, port: u16) -> Self {
        let authority = format!("127.0.0.1:{port}");
        Self::new(
            WorkerId(port.into()),
            role,
            format!("http://{authority}"),
            HeaderValue::from_static("worker"),
            Some(HttpPeer::new(authority, false, String::new())),
            None,
            None,
        )
    }
}

/// One request's share of a worker's load. It ends when this is dropped: with the leg, not with the choice.
pub struct Load {
    worker: Arc<Worker>,
    /// Who has others waiting for the room that this leaves.
    pub(super) told: Option<Arc<Fleet>>,
}

impl Deref for Load {
    type Target = Arc<Worker>;

    fn deref(&self) -> &Arc<Worker> {
        &self.worker
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        match self.told.take() {
            None => self.worker.release(),
            Some(fleet) => fleet.release(&self.worker),
        }
    }
}
