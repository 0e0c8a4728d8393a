//! Counts the requests of one connection of HTTP/2, and those that got no response.
//!
//! A client that resets its streams pays for a head alone, where the balancer pays for a request: with as many resets as it
//! likes it has more of them than its concurrent streams. One that does so on purpose differs from one whose users leave by
//! the share of such requests. Source: CVE-2023-44487 ("rapid reset").

use std::sync::atomic::{AtomicU64, Ordering};

/// So many requests without a response are nothing unusual: those of a proxy whose own clients have all left at once.
const TOLERATED: u64 = 500;

/// The requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Tally {
    accepted: AtomicU64,
    unanswered: AtomicU64,
}

impl Tally {
    /// Counts a request.
    pub(super) fn note_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that ends without a response, because its client has left.
    pub(super) fn note_unanswered(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the connection must be closed: more than half of its requests ended without a response.
    pub(super) fn is_abusive(&self) -> bool {
        let unanswered = self.unanswered.load(Ordering::Relaxed);
        unanswered > TOLERATED && unanswered > self.accepted.load(Ordering::Relaxed) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_without_a_response_are_abuse_where_they_are_many_and_most() {
        for (accepted, unanswered, is_abusive) in [
            (TOLERATED, TOLERATED, false),
            (TOLERATED + 1, TOLERATED + 1, true),
            (4 * TOLERATED, TOLERATED + 1, false),
            (4 * TOLERATED, 2 * TOLERATED + 1, true),
        ] {
            let tally = Tally {
                accepted: accepted.into(),
                unanswered: unanswered.into(),
            };
            assert_eq!(tally.is_abusive(), is_abusive, "{tally:?}");
        }
    }
}
