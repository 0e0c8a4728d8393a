//! The retry budget: a share of the recent requests may be tried again, so that retries cannot multiply the load of an
//! outage. The time is an argument.

use std::time::Instant;

/// The seconds that count as recent. Each has a slot.
const SLOTS: usize = 10;

/// The retries that a hundred recent requests allow.
const PERCENT: u64 = 20;

/// The retries that each second allows in any case, so that a quiet proxy can retry at all.
const FLOOR_PER_SECOND: u64 = 3;

/// The requests and retries of the last ten seconds.
#[derive(Debug)]
pub struct RetryBudget {
    begun: Instant,
    slots: [Slot; SLOTS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// The second that the slot counts, since the budget was made.
    second: u64,
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    /// A budget without requests.
    pub fn new(now: Instant) -> Self {
        Self {
            begun: now,
            slots: [Slot::default(); SLOTS],
        }
    }

    /// Notes a request.
    pub fn note_request(&mut self, now: Instant) {
        self.slot(now).requests += 1;
    }

    /// Takes one retry out of the budget. False when there is none left.
    pub fn take(&mut self, now: Instant) -> bool {
        let second = self.second(now);
        let recent = self
            .slots
            .iter()
            .filter(|slot| slot.second + SLOTS as u64 > second);
        let (requests, retries) = recent.fold((0, 0), |(requests, retries), slot| {
            (requests + slot.requests, retries + slot.retries)
        });
        let this_second = self.slot(now);
        let allowed =
            (retries + 1) * 100 <= requests * PERCENT || this_second.retries < FLOOR_PER_SECOND;
        if allowed {
            this_second.retries += 1;
        }
        allowed
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs()
    }

    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = self.second(now);
        let slot = &mut self.slots[(second % SLOTS as u64) as usize];
        if slot.second != second {
            *slot = Slot {
                second,
                ..Slot::default()
            };
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(budget: &mut RetryBudget, now: Instant) -> usize {
        (0..1000).take_while(|_| budget.take(now)).count()
    }

    #[test]
    fn a_fifth_of_the_recent_requests_may_be_tried_again_and_a_few_in_any_case() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(now);
        assert_eq!(taken(&mut budget, now), 3);
        for _ in 0..500 {
            budget.note_request(now);
        }
        assert_eq!(taken(&mut budget, now), 97, "a hundred in all");
        let later = now + Duration::from_secs(9);
        assert_eq!(taken(&mut budget, later), 3, "the floor of that second");
        let much_later = now + Duration::from_secs(25);
        assert_eq!(taken(&mut budget, much_later), 3, "nothing recent");
        for _ in 0..100 {
            budget.note_request(much_later);
        }
        assert_eq!(taken(&mut budget, much_later + Duration::from_secs(1)), 17);
    }
}
