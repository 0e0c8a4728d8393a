//! How many clients may be connected, in total and from one IP address.
//!
//! A connection over the limit is closed before a byte of it is read. A few connections over the total limit still
//! get one response each, so that health checks work at full load; other requests on them get 503.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections over the total limit that get one response.
const OVERFLOW: usize = 16;

/// Refused connections are logged at most once per interval, with their number.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The limits of one listener, and its open connections.
pub(crate) struct ConnectionLimit {
    max: AtomicUsize,
    /// 0 for no limit; addresses are not counted then.
    max_per_ip: AtomicUsize,
    open: AtomicUsize,
    /// Holds only addresses with open connections.
    open_per_ip: Mutex<HashMap<IpAddr, usize>>,
    refusals: Mutex<Refusals>,
}

/// One accepted connection, counted until it is dropped.
pub(crate) struct Permit {
    limit: Arc<ConnectionLimit>,
    /// The address under which the connection is counted.
    ip: Option<IpAddr>,
    overflow: bool,
}

/// Refused connections since the last log line, and when that was written.
#[derive(Default)]
struct Refusals {
    unlogged: usize,
    logged: Option<Instant>,
}

impl ConnectionLimit {
    /// At most `max` connections, and `max_per_ip` from one address.
    pub(crate) fn new(max: usize, max_per_ip: Option<usize>) -> Self {
        Self {
            max: AtomicUsize::new(max),
            max_per_ip: AtomicUsize::new(max_per_ip.unwrap_or(0)),
            open: AtomicUsize::new(0),
            open_per_ip: Mutex::default(),
            refusals: Mutex::default(),
        }
    }

    /// Other limits from now on. Open connections stay.
    pub(crate) fn set(&self, max: usize, max_per_ip: Option<usize>) {
        self.max.store(max, Ordering::Relaxed);
        self.max_per_ip
            .store(max_per_ip.unwrap_or(0), Ordering::Relaxed);
    }

    fn max_per_ip(&self) -> Option<usize> {
        let max = self.max_per_ip.load(Ordering::Relaxed);
        (max > 0).then_some(max)
    }

    /// A permit for one more connection; `None` when it must be closed.
    ///
    /// `address` is called only where connections per address are limited.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        address: impl FnOnce() -> Option<IpAddr>,
        now: Instant,
    ) -> Option<Permit> {
        // Relaxed: the number alone decides. Counted before it is compared, so that connections that arrive at the
        // same time cannot all see the last free place; the permit takes the count back when it is not returned.
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let max = self.max.load(Ordering::Relaxed);
        let mut permit = Permit {
            limit: self.clone(),
            ip: None,
            overflow: before >= max,
        };
        if before >= max.saturating_add(OVERFLOW) {
            self.note_refusal("max_connections", now);
            return None;
        }
        if let Some(max) = self.max_per_ip()
            && let Some(address) = address()
        {
            // An IPv4 client of a dual-stack socket has a mapped address, and is counted as the same client.
            let address = address.to_canonical();
            let mut open_per_ip = lock(&self.open_per_ip);
            let open = open_per_ip.entry(address).or_default();
            *open += 1;
            let fits = *open <= max;
            // Before the permit can be dropped, which takes this lock.
            drop(open_per_ip);
            permit.ip = Some(address);
            if !fits {
                self.note_refusal("max_connections_per_ip", now);
                return None;
            }
        }
        Some(permit)
    }

    fn note_refusal(&self, limit: &str, now: Instant) {
        let mut refusals = lock(&self.refusals);
        refusals.unlogged += 1;
        let is_recent = |logged: Instant| now.saturating_duration_since(logged) < LOG_INTERVAL;
        if refusals.logged.is_some_and(is_recent) {
            return;
        }
        log::warn!(
            "connections refused limit={limit} refused={} connections={}",
            refusals.unlogged,
            self.open.load(Ordering::Relaxed).saturating_sub(1)
        );
        *refusals = Refusals {
            unlogged: 0,
            logged: Some(now),
        };
    }
}

impl Permit {
    /// Whether the connection is over the total limit, and gets one response.
    pub(crate) fn is_overflow(&self) -> bool {
        self.overflow
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(ip) = self.ip {
            let mut open_per_ip = lock(&self.limit.open_per_ip);
            if let Some(open) = open_per_ip.get_mut(&ip) {
                *open -= 1;
                if *open == 0 {
                    open_per_ip.remove(&ip);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held, so that a poisoned lock holds valid data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn from(last: u8) -> impl FnOnce() -> Option<IpAddr> {
        move || Some([10, 0, 0, last].into())
    }

    #[test]
    fn over_the_limit_a_few_get_one_response_and_the_rest_nothing() {
        let limit = Arc::new(ConnectionLimit::new(2, None));
        let now = Instant::now();
        let acquire = || limit.acquire(|| panic!("addresses are not limited"), now);
        let mut permits: Vec<_> = (0..2 + OVERFLOW).map(|_| acquire().unwrap()).collect();
        let overflow: Vec<_> = permits.iter().map(Permit::is_overflow).collect();
        assert_eq!(overflow[..3], [false, false, true]);
        assert_eq!(overflow.iter().filter(|over| **over).count(), OVERFLOW);
        assert!(acquire().is_none());
        assert!(
            acquire().is_none(),
            "a refused connection is not counted as open"
        );
        permits.truncate(1);
        assert!(!acquire().unwrap().is_overflow());
    }

    #[test]
    fn each_address_has_a_limit_and_is_forgotten_with_its_last_connection() {
        let limit = Arc::new(ConnectionLimit::new(100, Some(1)));
        let now = Instant::now();
        let first = limit.acquire(from(1), now).unwrap();
        assert!(limit.acquire(from(1), now).is_none());
        let mapped = || Some("::ffff:10.0.0.1".parse().unwrap());
        assert!(
            limit.acquire(mapped, now).is_none(),
            "the same client over IPv6"
        );
        let other = limit.acquire(from(2), now).unwrap();
        drop(first);
        assert!(limit.acquire(from(1), now).is_some());
        drop(other);
        assert!(lock(&limit.open_per_ip).is_empty());
        assert_eq!(limit.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_client_without_an_address_counts_only_for_the_total() {
        let limit = Arc::new(ConnectionLimit::new(100, Some(1)));
        let now = Instant::now();
        let permits = [(); 3].map(|()| limit.acquire(|| None, now).unwrap());
        assert!(lock(&limit.open_per_ip).is_empty());
        assert_eq!(limit.open.load(Ordering::Relaxed), permits.len());
    }

    #[test]
    fn a_burst_of_refusals_is_logged_once() {
        let limit = Arc::new(ConnectionLimit::new(100, Some(1)));
        let now = Instant::now();
        let _permit = limit.acquire(from(1), now).unwrap();
        for _ in 0..100 {
            assert!(limit.acquire(from(1), now).is_none());
        }
        assert_eq!(lock(&limit.refusals).unlogged, 99);
        assert!(limit.acquire(from(1), now + LOG_INTERVAL).is_none());
        assert_eq!(lock(&limit.refusals).unlogged, 0);
    }
}
