//! Requests in the line of a worker, and on its data parallel ranks.

use super::*;

/// A fleet with the policies of `expected_ttft`, and a request with a prompt of a hundred blocks.
fn expecting(prefills: u16, decodes: u16) -> (Arc<Fleet>, RoutingKey) {
    let policies = Policies {
        prefill: RolePolicy::expected_ttft(),
        decode: RolePolicy::least_to_come(),
    };
    let long = RoutingKey {
        prefix: Some(Arc::new(Prefix::for_tests(0..100, 100 * BLOCK_BYTES))),
        to_come: 300,
        ..request(60_000)
    };
    (populated(empty(policies), prefills, decodes), long)
}

#[test]
fn a_request_that_begins_again_with_its_own_pair_is_in_the_line_of_its_worker() {
    let (fleet, long) = expecting(1, 1);
    let now = Instant::now();
    let wait = || {
        let report = fleet.report(now).unwrap();
        let (_, worker) = report.workers[0];
        worker.wait_seconds
    };
    let lease = select(&fleet, &long, &[], now);
    let first = wait();
    assert!(first > 1.0, "{first}");
    let (prefill, decode) = (lease.prefill.clone(), lease.decode.clone());
    let again = fleet.lease_again(&prefill, lease.prefill.spread(), &decode, &long);
    drop(lease);
    assert!(wait() > 0.0 && again.forecast.is_some());
    assert_eq!(decode.candidate().to_come, 300);
    drop(again);
    assert_eq!((wait(), decode.candidate().to_come), (0.0, 0));
}

#[test]
fn a_pair_that_failed_together_is_not_chosen_for_the_time_to_the_first_token() {
    let (fleet, long) = expecting(2, 2);
    let now = Instant::now();
    let first = select(&fleet, &long, &[], now);
    let pair = (first.prefill.clone(), first.decode.clone());
    drop(first);
    (0..3).for_each(|_| fleet.note_pair_bad(&pair.0, &pair.1, now));
    for _ in 0..20 {
        let next = select(&fleet, &long, &[], now);
        assert_eq!(next.prefill.id(), pair.0.id(), "its cache has the prompt");
        assert_ne!(next.decode.id(), pair.1.id());
    }
}

#[test]
fn a_worker_with_ranks_is_as_many_candidates_with_a_load_of_their_own() {
    let watched = Watched::unlimited(2, 1);
    let fleet = &watched.fleet;
    let [one, other] = [0, 1].map(|index| fleet.member(Role::Prefill, index));
    assert!(fleet.wants_layout(&one) && !fleet.wants_layout(&fleet.member(Role::Decode, 0)));
    let layout = Layout {
        ranks: 3,
        are_replicas: false,
        cache_tokens: Some(500),
    };
    fleet.note_layout(&one, layout);
    assert!(!fleet.wants_layout(&one) && fleet.wants_layout(&other));
    let batch = RoutingKey {
        prompts: 2,
        ..request(600)
    };
    let lease = select(fleet, &batch, &[], watched.now);
    let spread = lease.prefill.spread().unwrap();
    assert_eq!(
        (lease.prefill.id(), spread),
        (one.id(), Spread::new(0, 3, 2))
    );
    drop(select(fleet, &request(1), &[], watched.now));
    let (_, seen) = last(&watched.prefill);
    let seen: Vec<_> = seen
        .iter()
        .map(|seen| (seen.rank, seen.ranks, seen.in_flight, seen.body_bytes))
        .collect();
    assert_eq!(
        seen,
        [(0, 3, 1, 300), (1, 3, 1, 300), (2, 3, 0, 0), (0, 1, 0, 0)]
    );
    drop(lease);
    fleet.note(&one, Evidence::Absent, watched.now);
    fleet.note(&one, Evidence::Present, watched.now);
    assert!(fleet.wants_layout(&one), "it may have been started again");
}

#[test]
fn a_replica_has_all_prompts_of_a_request() {
    let watched = Watched::unlimited(1, 1);
    let layout = Layout {
        ranks: 2,
        are_replicas: true,
        cache_tokens: None,
    };
    let worker = watched.fleet.member(Role::Prefill, 0);
    watched.fleet.note_layout(&worker, layout);
    let batch = RoutingKey {
        prompts: 2,
        ..request(600)
    };
    let lease = select(&watched.fleet, &batch, &[], watched.now);
    assert_eq!(lease.prefill.spread(), Some(Spread::on_replica(0, 2)));
}

#[test]
fn random_choices_draw_a_rank_where_there_are_several_and_are_not_counted() {
    let fleet = populated(empty(Policies::random()), 1, 1);
    let now = Instant::now();
    let lease = select(&fleet, &request(1), &[], now);
    assert!(lease.prefill.spread().is_none() && lease.forecast.is_none());
    assert!(fleet.wants_layout(&lease.prefill) && fleet.report(now).is_none());
    let layout = Layout {
        ranks: 4,
        are_replicas: true,
        cache_tokens: None,
    };
    fleet.note_layout(&lease.prefill, layout);
    let rank_of = |request: &RoutingKey, draw| {
        let wanted = Selection {
            request,
            avoid: &[],
            siblings: None,
            targets: Targets::default(),
            now,
        };
        let lease = fleet.select(wanted, || draw).unwrap();
        lease.prefill.spread().and_then(Spread::named).unwrap()
    };
    let step = u64::MAX / 4;
    let drawn = [0, 1, 2, 3].map(|quarter| rank_of(&request(1), quarter * step + step / 2));
    assert_eq!(drawn, [0, 1, 2, 3]);
    let named = RoutingKey {
        rank: Some(2),
        ..request(1)
    };
    assert_eq!([0, u64::MAX].map(|draw| rank_of(&named, draw)), [2, 2]);
    assert!(fleet.choices().is_empty());
    let watched = Watched::unlimited(1, 1);
    drop(watched.select());
    let choices = watched.fleet.choices();
    let expected = [Role::Prefill, Role::Decode].map(|role| (role, "other", 1));
    assert_eq!(choices, expected);
}
