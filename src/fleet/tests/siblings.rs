//! Requests that belong together: one prefill worker, and decode workers spread over.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use super::*;
use crate::fleet::{Candidate, Policy, Queue, Refusal, RolePolicy, Siblings, Turn};

/// Chooses the last candidate.
struct Last;

impl Policy for Last {
    fn choose(&mut self, _: &RoutingKey, candidates: &[Candidate], _: u64) -> Option<usize> {
        candidates.len().checked_sub(1)
    }
}

fn policies() -> [Policies; 2] {
    let last = || RolePolicy::stateful(Last);
    [
        Policies::random(),
        Policies {
            prefill: last(),
            decode: last(),
        },
    ]
}

fn belonging<'a>(siblings: &'a Arc<Siblings>, avoid: &'a [WorkerId]) -> Selection<'a> {
    Selection {
        siblings: Some(siblings),
        ..wanted(Instant::now(), avoid)
    }
}

#[test]
fn with_every_policy_they_have_one_prefill_worker_and_their_decode_workers_in_turn() {
    for policies in policies() {
        let fleet = populated(empty(policies), 3, 3);
        let siblings = Arc::default();
        let mut draw = unrelated_draws();
        let mut leases = Vec::new();
        for _ in 0..6 {
            leases.push(fleet.select(belonging(&siblings, &[]), &mut draw).unwrap());
        }
        let prefills: HashSet<_> = leases.iter().map(|lease| lease.prefill.id()).collect();
        assert_eq!(prefills.len(), 1);
        for three in leases.chunks(3) {
            let decodes: HashSet<_> = three.iter().map(|lease| lease.decode.id()).collect();
            assert_eq!(decodes.len(), 3);
        }
    }
}

#[test]
fn after_a_failure_those_that_follow_go_where_the_prompt_was_computed_again() {
    let fleet = fleet(3, 1);
    let siblings = Arc::default();
    let mut draw = unrelated_draws();
    let first = fleet.select(belonging(&siblings, &[]), &mut draw).unwrap();
    let failed = [first.prefill.id()];
    let again = fleet
        .select(belonging(&siblings, &failed), &mut draw)
        .unwrap();
    assert_ne!(again.prefill.id(), first.prefill.id());
    for _ in 0..10 {
        let next = fleet.select(belonging(&siblings, &[]), &mut draw).unwrap();
        assert_eq!(next.prefill.id(), again.prefill.id());
    }
}

#[test]
fn a_full_prefill_worker_is_not_waited_for() {
    let queue = Queue::new(NonZeroUsize::MIN, 0, Instant::now, || 0);
    let fleet = populated(empty(Policies::random()).limited(queue), 2, 2);
    let siblings = Arc::default();
    let mut prefills = HashSet::new();
    let mut leases = Vec::new();
    for _ in 0..2 {
        let Ok(Turn::Now(lease)) = fleet.admit(belonging(&siblings, &[]), draws()) else {
            panic!("there is a free pair");
        };
        prefills.insert(lease.prefill.id());
        leases.push(lease);
    }
    assert_eq!(prefills.len(), 2);
}

#[test]
fn they_are_let_into_the_queue_or_refused_together() {
    let queue = Queue::new(NonZeroUsize::MIN, 1, Instant::now, || 0);
    let fleet = populated(empty(Policies::random()).limited(queue), 1, 1);
    let admit = |siblings| fleet.admit(belonging(siblings, &[]), draws());
    let (first, second) = (Arc::default(), Arc::default());
    let running = admit(&first);
    assert!(matches!(running, Ok(Turn::Now(_))));
    let waiting = [admit(&first), admit(&first), admit(&first)];
    assert!(
        waiting
            .iter()
            .all(|turn| matches!(turn, Ok(Turn::Later(_))))
    );
    assert!(matches!(admit(&second), Err(Refusal::QueueFull)));
    drop(waiting);
    assert!(matches!(admit(&second), Ok(Turn::Later(_))));
}
