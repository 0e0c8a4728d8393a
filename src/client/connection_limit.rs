//! How many clients may be connected, in all and from one address.
//!
//! A connection beyond the limit is closed before a byte of it is read. The first few beyond the limit of all are
//! let in for one answer: whether the process lives can still be asked, everything else is told to come again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Connections beyond the limit that get one answer.
const OVERFLOW: usize = 16;

/// Refusals are told of once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Who is connected to a listener.
pub(crate) struct ConnectionLimit {
    most: usize,
    /// `None` is no limit, and nobody is counted.
    most_of_one: Option<usize>,
    live: AtomicUsize,
    of: Mutex<HashMap<IpAddr, usize>>,
    refused: Mutex<Refused>,
}

/// One connection. Counted until it is dropped.
pub(crate) struct Permit {
    crowd: Arc<ConnectionLimit>,
    counted: Option<IpAddr>,
    spare: bool,
}

/// Connections that were closed, and when that was last told.
#[derive(Default)]
struct Refused {
    untold: usize,
    told: Option<Instant>,
}

impl ConnectionLimit {
    /// At most so many in all, and of one address.
    pub(crate) fn new(most: usize, most_of_one: Option<usize>) -> Self {
        Self {
            most,
            most_of_one,
            live: AtomicUsize::new(0),
            of: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// A place for one more, if there is one. Its address is asked for only where it is counted.
    pub(crate) fn enter(
        self: &Arc<Self>,
        address: impl FnOnce() -> Option<IpAddr>,
        now: Instant,
    ) -> Option<Permit> {
        let before = self.live.fetch_add(1, Ordering::Relaxed);
        let mut place = Permit {
            crowd: self.clone(),
            counted: None,
            spare: before >= self.most,
        };
        if before >= self.most.saturating_add(OVERFLOW) {
            self.note_refusal("max_connections", now);
            return None;
        }
        if let Some(most) = self.most_of_one
            && let Some(address) = address()
        {
            let address = address.to_canonical();
            let mut of = lock(&self.of);
            let live = of.entry(address).or_default();
            *live += 1;
            let fits = *live <= most;
            drop(of);
            place.counted = Some(address);
            if !fits {
                self.note_refusal("max_connections_per_ip", now);
                return None;
            }
        }
        Some(place)
    }

    fn note_refusal(&self, because: &str, now: Instant) {
        let mut refused = lock(&self.refused);
        refused.untold += 1;
        let is_told = |told: Instant| now.saturating_duration_since(told) < LOG_INTERVAL;
        if refused.told.is_some_and(is_told) {
            return;
        }
        log::warn!(
            "connections refused because={because} refused={} connections={}",
            refused.untold,
            self.live.load(Ordering::Relaxed).saturating_sub(1)
        );
        *refused = Refused {
            untold: 0,
            told: Some(now),
        };
    }
}

impl Permit {
    /// Whether it is one beyond the limit, for one answer.
    pub(crate) fn is_overflow(&self) -> bool {
        self.spare
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.crowd.live.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.counted {
            let mut of = lock(&self.crowd.of);
            if let Some(live) = of.get_mut(&address) {
                *live -= 1;
                if *live == 0 {
                    of.remove(&address);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held.
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
    fn beyond_the_limit_a_few_get_one_answer_and_the_rest_nothing() {
        let crowd = Arc::new(ConnectionLimit::new(2, None));
        let now = Instant::now();
        let enter = || crowd.enter(|| panic!("nobody counts addresses"), now);
        let mut inside: Vec<_> = (0..2 + OVERFLOW).map(|_| enter().unwrap()).collect();
        let spare: Vec<_> = inside.iter().map(Permit::is_overflow).collect();
        assert_eq!(spare[..3], [false, false, true]);
        assert_eq!(spare.iter().filter(|spare| **spare).count(), OVERFLOW);
        assert!(enter().is_none());
        assert!(enter().is_none(), "who is refused takes no place");
        inside.truncate(1);
        assert!(!enter().unwrap().is_overflow());
    }

    #[test]
    fn one_address_has_its_own_limit_and_leaves_nothing_behind() {
        let crowd = Arc::new(ConnectionLimit::new(100, Some(1)));
        let now = Instant::now();
        let first = crowd.enter(from(1), now).unwrap();
        assert!(crowd.enter(from(1), now).is_none());
        let mapped = || Some("::ffff:10.0.0.1".parse().unwrap());
        assert!(crowd.enter(mapped, now).is_none(), "the same over IPv6");
        let other = crowd.enter(from(2), now).unwrap();
        drop(first);
        assert!(crowd.enter(from(1), now).is_some());
        drop(other);
        assert!(lock(&crowd.of).is_empty());
        assert_eq!(crowd.live.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_burst_of_refusals_is_told_once() {
        let crowd = Arc::new(ConnectionLimit::new(100, Some(1)));
        let now = Instant::now();
        let _inside = crowd.enter(from(1), now).unwrap();
        for _ in 0..100 {
            assert!(crowd.enter(from(1), now).is_none());
        }
        assert_eq!(lock(&crowd.refused).untold, 99);
        assert!(crowd.enter(from(1), now + LOG_INTERVAL).is_none());
        assert_eq!(lock(&crowd.refused).untold, 0);
    }
}
