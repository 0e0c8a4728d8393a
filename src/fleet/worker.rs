//! One worker: its address, its health and its load.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use sha2::{Digest, Sha256};

use super::breaker::{Breaker, BreakerLimits, Change, Condition, Evidence};
use super::drain::Drain;
use super::engine::Mismatch;
use super::kv::KnownEngines;
use super::load::Share;
use super::parts::{Origin, WorkerParts};
use super::policy::Candidate;
use super::ranks::{RankLoad, Ranks};
use super::{Fleet, Load, Loads, Tally};
use crate::addresses::Addresses;
use crate::pd::{Bootstrap, Role};

/// The id of a worker, which no other worker of the process has or gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub(super) u64);

/// A worker and its counters.
pub struct Worker {
    id: WorkerId,
    parts: WorkerParts,
    /// The URL of the parts, for what outlives the worker.
    shared_url: Arc<str>,
    /// None until the name of the host has been looked up.
    addresses: Arc<Addresses>,
    in_flight: AtomicUsize,
    /// The lengths of the bodies of these requests together, in bytes.
    body_bytes: AtomicUsize,
    /// The tokens that they may still generate together, where a policy asks for it.
    to_come: AtomicUsize,
    ranks: Ranks,
    /// A digest of the URL.
    digest: u64,
    /// Whether the breaker remembers anything, or the worker is not usable. As long as it is false no lock is taken.
    unhealthy: AtomicBool,
    /// Its [`Mismatch`], as a number.
    mismatch: AtomicU8,
    pub(super) drain: Drain,
    /// That of the parts, until another one is set.
    weight: AtomicU32,
    /// Whether it computes nothing until it is told to continue.
    paused: AtomicBool,
    breaker: Mutex<Breaker>,
    /// Whether the last request without legs got no response.
    unanswered: AtomicBool,
    tally: Tally,
    /// `None` where the worker is not asked, or does not tell.
    loads: Mutex<Option<Loads>>,
    pub(super) kv_engines: KnownEngines,
}

impl Worker {
    /// A worker without load. Its address is known if its host is written as one.
    pub(super) fn new(id: WorkerId, parts: WorkerParts) -> Self {
        let address = parts.origin.literal();
        let digest = digest(parts.url.as_bytes());
        let addresses = match parts.origin.http2 {
            true => Addresses::of_http2(address),
            false => Addresses::new(address),
        };
        Self {
            id,
            shared_url: parts.url.as_str().into(),
            weight: AtomicU32::new(parts.weight),
            parts,
            addresses: Arc::new(addresses),
            in_flight: AtomicUsize::new(0),
            body_bytes: AtomicUsize::new(0),
            to_come: AtomicUsize::new(0),
            ranks: Ranks::default(),
            digest,
            unhealthy: AtomicBool::new(address.is_none()),
            mismatch: AtomicU8::new(Mismatch::None.number()),
            drain: Drain::default(),
            paused: AtomicBool::new(false),
            breaker: Mutex::default(),
            unanswered: AtomicBool::new(false),
            tally: Tally::default(),
            loads: Mutex::default(),
            kv_engines: KnownEngines::default(),
        }
    }

    /// The id, which no other worker has or gets.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// Whether the worker may be chosen now: it is usable and not set aside.
    pub fn admits(&self, now: Instant) -> bool {
        !self.unhealthy.load(Ordering::Relaxed) || (self.is_usable() && self.breaker().admits(now))
    }

    /// Whether it can get a request at all: it has an address, is what it is listed as, and is neither paused nor being
    /// drained.
    pub fn is_usable(&self) -> bool {
        let may = self.mismatch() == Mismatch::None && !self.is_draining() && !self.is_paused();
        self.address().is_some() && may
    }

    /// Whether it was paused, and has not been continued since.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// In what it is not what it is listed as.
    pub fn mismatch(&self) -> Mismatch {
        Mismatch::of(self.mismatch.load(Ordering::Relaxed))
    }

    /// Whether its last probe was not answered, so that another worker is to be chosen where there is one.
    pub fn is_silent(&self) -> bool {
        self.unhealthy.load(Ordering::Relaxed) && self.breaker().is_silent()
    }

    /// Whether it has answered no probe from the one time to the other. Only the last silence is remembered.
    pub fn was_silent(&self, from: Instant, until: Instant) -> bool {
        self.breaker().was_silent(from, until)
    }

    /// Its health now, in a word.
    pub(super) fn condition(&self, now: Instant, slow_start: Duration) -> Condition {
        if !self.unhealthy.load(Ordering::Relaxed) {
            return Condition::Serving;
        }
        if self.is_draining() {
            return Condition::Draining;
        }
        match (self.address(), self.mismatch()) {
            (None, _) => Condition::NoAddress,
            (_, Mismatch::Role) => Condition::OtherRole,
            (_, Mismatch::Engine) => Condition::OtherEngine,
            (Some(_), Mismatch::None) if self.is_paused() => Condition::Paused,
            (Some(_), Mismatch::None) => self.breaker().condition(now, slow_start),
        }
    }

    /// Notes in what the worker is not what it is listed as. True when that is new.
    pub(super) fn note_mismatch(&self, mismatch: Mismatch) -> bool {
        let breaker = self.breaker();
        let number = mismatch.number();
        let changed = self.mismatch.swap(number, Ordering::Relaxed) != number;
        self.store_health(&breaker);
        changed
    }

    /// Notes whether the worker is being drained. Called under the lock of the members.
    pub(super) fn note_draining(&self, draining: bool) {
        let breaker = self.breaker();
        self.drain.hold(draining);
        self.store_health(&breaker);
    }

    /// Notes whether the worker is paused. True when that is new.
    pub(super) fn note_paused(&self, paused: bool) -> bool {
        let breaker = self.breaker();
        let changed = self.paused.swap(paused, Ordering::Relaxed) != paused;
        self.store_health(&breaker);
        changed
    }

    /// Under the lock of the breaker, so that a note at the same time does not store the old state.
    fn store_health(&self, breaker: &Breaker) {
        let unhealthy = breaker.is_unhealthy() || !self.is_usable();
        self.unhealthy.store(unhealthy, Ordering::Relaxed);
    }

    /// Whether slow start lets the worker have a request that may go to it. Always true, except for a while after the
    /// worker has come back.
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

    /// Notes what a leg or a probe says about the worker. `Some` when that sets it aside or brings it back.
    pub(super) fn note(
        &self,
        evidence: Evidence,
        now: Instant,
        limits: &BreakerLimits,
    ) -> Option<Change> {
        let unhealthy = self.unhealthy.load(Ordering::Relaxed);
        let is_bad = matches!(
            evidence,
            Evidence::Absent | Evidence::Bad | Evidence::Silent
        );
        if !unhealthy && !is_bad {
            return None;
        }
        if is_bad {
            self.forget_kv_engines();
        }
        let mut breaker = self.breaker();
        let changed = breaker.note(evidence, now, limits);
        self.store_health(&breaker);
        changed
    }

    /// What its legs came to.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What it has last said about its load; `None` where it is not asked, or did not tell.
    pub fn loads(&self) -> Option<Loads> {
        *self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what it says about its load, or that it does not tell.
    pub fn note_loads(&self, loads: Option<Loads>) {
        *self.loads.lock().unwrap_or_else(PoisonError::into_inner) = loads;
    }

    /// Notes whether a request without legs got a response. True when the last one did and this one did not, or the
    /// other way round, so that a client that polls a dead worker does not fill the log.
    pub fn note_answered(&self, answered: bool) -> bool {
        self.unanswered.swap(!answered, Ordering::Relaxed) == answered
    }

    /// Notes that the worker has been chosen: if it was set aside, this is its trial.
    pub(super) fn picked(&self, now: Instant) {
        if self.unhealthy.load(Ordering::Relaxed) {
            self.breaker().picked(now);
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Nothing panics while the lock is held.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The role, which a worker keeps.
    pub fn role(&self) -> Role {
        self.parts.role
    }

    /// `http://host:port` or `https://host:port`, without a path.
    pub fn url(&self) -> &str {
        &self.parts.url
    }

    /// The same, for what outlives the worker.
    pub fn shared_url(&self) -> &Arc<str> {
        &self.shared_url
    }

    /// The pieces of the URL.
    pub fn origin(&self) -> &Origin {
        &self.parts.origin
    }

    /// The value of the `Host` header that the worker gets.
    pub fn host(&self) -> &HeaderValue {
        &self.parts.host
    }

    /// Where the worker is dialled first; `None` until its name has been looked up.
    pub fn address(&self) -> Option<SocketAddr> {
        self.addresses.first()
    }

    /// Where the worker is dialled.
    pub(crate) fn addresses(&self) -> &Arc<Addresses> {
        &self.addresses
    }

    /// The name that the worker's certificate must have; `None` for a worker without TLS.
    pub fn server_name(&self) -> Option<&str> {
        let origin = &self.parts.origin;
        let name = origin.certified.as_ref().unwrap_or(&origin.host);
        origin.tls.then_some(name.as_str())
    }

    /// Sets where the worker is dialled from now on: at the address that was reached last, while it is one of these, or
    /// else in this order.
    pub fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        let breaker = self.breaker();
        self.addresses.set(addresses);
        self.store_health(&breaker);
    }

    /// Where decode workers find the bootstrap registry of a prefill worker; `None` for a decode worker.
    pub fn bootstrap(&self) -> Option<&Bootstrap> {
        self.parts.bootstrap.as_ref()
    }

    /// The key that replaces the client's `Authorization`, ready as a header value.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.parts.authorization.as_ref()
    }

    /// The same for the worker's admin endpoints.
    pub fn admin_authorization(&self) -> Option<&HeaderValue> {
        let own = self.parts.admin_authorization.as_ref();
        own.or(self.authorization())
    }

    /// Requests whose leg on this worker has not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it has a request, as seen after [`Worker::note_draining`] by all threads.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// The share of the requests, beside those of the others of the role.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Sets its share. The members must be replaced after that, because they know whether all shares are equal.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// What it was made of.
    pub fn parts(&self) -> &WorkerParts {
        &self.parts
    }

    /// Its data parallel ranks, and the load of each.
    pub(super) fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// The whole worker as a policy sees it now.
    pub fn candidate(&self) -> Candidate {
        Candidate {
            id: self.id,
            rank: 0,
            ranks: 1,
            are_replicas: false,
            in_flight: self.in_flight(),
            body_bytes: self.body_bytes.load(Ordering::Relaxed),
            to_come: self.to_come.load(Ordering::Relaxed),
            cache_tokens: self.ranks.cache_tokens(),
            weight: self.weight(),
            digest: self.digest,
        }
    }

    /// Adds each of its ranks as a policy sees it now.
    pub(super) fn add_ranks(&self, candidates: &mut Vec<Candidate>) {
        let whole = self.candidate();
        if self.ranks.count() == 1 {
            return candidates.push(whole);
        }
        let loads = self.ranks.loads();
        let (ranks, are_replicas) = (loads.len() as u32, self.ranks.are_replicas());
        let of_rank = |(rank, load): (u32, &RankLoad)| {
            let (in_flight, body_bytes) = load.now();
            Candidate {
                rank,
                ranks,
                are_replicas,
                in_flight,
                body_bytes,
                digest: self.digest.wrapping_add(rank.into()),
                ..whole
            }
        };
        candidates.extend((0..).zip(loads.iter()).map(of_rank));
    }

    /// [`Self::load_of`] an empty request without a queue.
    #[cfg(test)]
    pub(super) fn load(self: &Arc<Self>) -> Load {
        self.load_of(Share::default(), None)
    }

    /// Counts one more request on this worker, of which this is the share. The end of the load serves the queue of this
    /// fleet, if it has one.
    pub(super) fn load_of(self: &Arc<Self>, share: Share, serves: Option<Arc<Fleet>>) -> Load {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.body_bytes
            .fetch_add(share.body_bytes, Ordering::Relaxed);
        if share.to_come > 0 {
            self.to_come.fetch_add(share.to_come, Ordering::Relaxed);
        }
        Load::of(self.clone(), share, serves)
    }

    /// Counts one request less.
    pub(super) fn release(&self, share: Share) {
        self.body_bytes
            .fetch_sub(share.body_bytes, Ordering::Relaxed);
        if share.to_come > 0 {
            self.to_come.fetch_sub(share.to_come, Ordering::Relaxed);
        }
        // Ordered with `Worker::drained`, which looks at the two in the other order.
        if self.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.drain.note_idle();
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(role: Role, port: u16) -> Self {
        Self::new(WorkerId(port.into()), WorkerParts::for_tests(role, port))
    }

    #[cfg(test)]
    pub(crate) fn of_parts(parts: WorkerParts) -> Self {
        Self::new(WorkerId(0), parts)
    }
}

/// The first 64 bits of the SHA-256 of a text: the same in every process and version, however the texts are chosen.
pub(crate) fn digest(text: &[u8]) -> u64 {
    let digest = Sha256::digest(text);
    digest
        .iter()
        .take(8)
        .fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}
