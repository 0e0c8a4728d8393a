//! `pd::RequestState` with random sequences of events. The properties are in `support::properties::request_state`.

use std::collections::HashSet;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use support::properties::request_state::{Ended, check};

#[test]
fn every_sequence_of_events_ends_once_with_every_leg_ended_and_no_room_used_twice() {
    let mut random = SmallRng::seed_from_u64(7);
    let (mut retried, mut endings) = (0, HashSet::new());
    for _ in 0..200_000 {
        let mut events = [0; 200];
        let events = &mut events[..random.random_range(0..200)];
        random.fill_bytes(events);
        let outcome = check(events);
        retried += u32::from(outcome.attempts > 1);
        endings.insert(outcome.ended);
    }
    assert!(
        retried > 1000 && endings.len() == 4,
        "the events reach what they are there for: {retried} {endings:?}"
    );
    assert!(endings.contains(&Ended::Answered));
}
