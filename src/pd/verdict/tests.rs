//! The verdict as tables.

use super::*;

const FREE: RetryRules = RetryRules {
    attempts: 2,
    own_rid: false,
    order: Order::Together,
};

const PREFILL_FIRST: RetryRules = RetryRules {
    order: Order::PrefillFirst { alone: true },
    ..FREE
};

fn state(prefill: Leg, decode: Leg) -> RequestState {
    let mut state = RequestState::default();
    state.prefill(prefill);
    state.decode(decode);
    state
}

#[test]
fn the_table_before_the_first_byte() {
    use Leg::{Aborted, Failed, Lost, Rejected, Running, Served, Stale, Unsent};
    use Role::{Decode, Prefill};
    use Verdict::{Again, Fail, Respond, Retry, Wait};
    for (prefill, decode, verdict) in [
        (Running, Running, Wait),
        (Served, Running, Wait),
        (Running, Served, Respond),
        (Served, Served, Respond),
        // The request is at fault: no retry, and a 4xx explains more than any other failure.
        (Rejected(400), Running, Fail(Prefill)),
        (Running, Rejected(422), Fail(Decode)),
        (Rejected(400), Rejected(400), Fail(Prefill)),
        (Rejected(500), Rejected(400), Fail(Decode)),
        (Lost, Rejected(413), Fail(Decode)),
        (Rejected(400), Lost, Fail(Prefill)),
        // A failed computation is not repeated.
        (Rejected(500), Running, Fail(Prefill)),
        (Running, Rejected(500), Fail(Decode)),
        (Rejected(500), Rejected(500), Fail(Prefill)),
        (Rejected(500), Served, Fail(Prefill)),
        (Failed, Running, Fail(Prefill)),
        (Running, Failed, Fail(Decode)),
        // Prefill's words about an abort are no cause. They wait for decode's leg, and never decide against it.
        (Aborted(500), Running, Wait),
        (Aborted(500), Served, Wait),
        (Aborted(500), Lost, Retry(Decode)),
        (Aborted(500), Unsent, Retry(Decode)),
        (Aborted(500), Failed, Fail(Decode)),
        (Aborted(500), Rejected(400), Fail(Decode)),
        (Aborted(500), Rejected(500), Fail(Decode)),
        // Another pair may do better.
        (Unsent, Running, Retry(Prefill)),
        (Running, Unsent, Retry(Decode)),
        (Lost, Running, Retry(Prefill)),
        (Lost, Served, Retry(Prefill)),
        (Running, Lost, Retry(Decode)),
        (Lost, Lost, Retry(Prefill)),
        (Rejected(503), Running, Retry(Prefill)),
        (Running, Rejected(429), Retry(Decode)),
        (Rejected(502), Rejected(500), Retry(Prefill)),
        // The same pair may do, over new connections.
        (Stale, Running, Again(Prefill)),
        (Stale, Served, Again(Prefill)),
        (Stale, Stale, Again(Prefill)),
        (Served, Stale, Again(Decode)),
        (Stale, Rejected(400), Fail(Decode)),
        (Rejected(503), Stale, Retry(Prefill)),
    ] {
        let state = state(prefill, decode);
        assert_eq!(state.verdict(FREE), verdict, "{prefill:?} {decode:?}");
    }
}

#[test]
fn the_table_where_prefill_is_first() {
    use Leg::{Failed, Lost, Rejected, Running, Served, Stale, Unsent};
    use Role::{Decode, Prefill};
    use Verdict::{Again, Alone, Fail, Respond, Retry, Wait};
    for (prefill, decode, verdict) in [
        (Running, Running, Wait),
        (Served, Running, Wait),
        (Served, Served, Respond),
        // The request is at fault.
        (Rejected(400), Running, Fail(Prefill)),
        (Served, Rejected(404), Fail(Decode)),
        // Another prefill worker may do better, whatever has become of the first one.
        (Rejected(500), Running, Retry(Prefill)),
        (Rejected(429), Running, Retry(Prefill)),
        (Failed, Running, Retry(Prefill)),
        (Lost, Running, Retry(Prefill)),
        (Unsent, Running, Retry(Prefill)),
        (Stale, Running, Again(Prefill)),
        (Served, Lost, Retry(Decode)),
        (Served, Unsent, Retry(Decode)),
        (Served, Rejected(503), Retry(Decode)),
        // The blocks may have been gone.
        (Served, Rejected(500), Alone),
        (Served, Failed, Fail(Decode)),
    ] {
        let state = state(prefill, decode);
        assert_eq!(
            state.verdict(PREFILL_FIRST),
            verdict,
            "{prefill:?} {decode:?}"
        );
    }
}

#[test]
fn decode_that_computes_the_prompt_is_judged_without_prefill() {
    let mut state = state(Leg::Lost, Leg::Running);
    state.go_alone();
    assert_eq!(state.verdict(PREFILL_FIRST), Verdict::Wait);
    state.decode(Leg::Served);
    assert_eq!(state.verdict(PREFILL_FIRST), Verdict::Respond);
    state.decode(Leg::Rejected(500));
    assert_eq!(
        state.verdict(PREFILL_FIRST),
        Verdict::Fail(Role::Decode),
        "there is nothing left to leave out"
    );
    state.retry();
    state.prefill(Leg::Lost);
    assert_eq!(
        state.verdict(RetryRules {
            attempts: 9,
            ..PREFILL_FIRST
        }),
        Verdict::Retry(Role::Prefill)
    );
}

#[test]
fn a_decode_that_sends_bytes_after_an_abort_of_prefill_has_not_got_the_kv_cache() {
    let mut state = state(Leg::Aborted(500), Leg::Served);
    assert_eq!(state.verdict(FREE), Verdict::Wait);
    state.begin();
    assert_eq!(state.verdict(FREE), Verdict::Fail(Role::Prefill));
    state.retry();
    state.prefill(Leg::Aborted(500));
    state.decode(Leg::Served);
    assert_eq!(state.verdict(FREE), Verdict::Wait, "of the next attempt");
}

#[test]
fn an_attempt_begins_again_once_and_not_with_an_id_of_the_clients() {
    let mut state = state(Leg::Running, Leg::Stale);
    let own_rid = RetryRules {
        own_rid: true,
        ..FREE
    };
    assert_eq!(state.verdict(own_rid), Verdict::Fail(Role::Decode));
    let one_attempt = RetryRules {
        attempts: 1,
        ..FREE
    };
    assert_eq!(state.verdict(one_attempt), Verdict::Again(Role::Decode));
    state.begin_again(Role::Decode);
    assert_eq!((state.attempt(), state.needs_new_connections()), (1, true));
    assert_eq!(state.verdict(FREE), Verdict::Wait);
    state.decode(Leg::Stale);
    assert_eq!(state.verdict(one_attempt), Verdict::Fail(Role::Decode));
    assert_eq!(state.verdict(FREE), Verdict::Retry(Role::Decode));
}

#[test]
fn a_worker_that_closes_a_connection_and_refuses_the_next_was_lost_with_the_request() {
    let mut state = state(Leg::Running, Leg::Stale);
    state.begin_again(Role::Decode);
    state.prefill(Leg::Unsent);
    assert_eq!(state.prefill, Leg::Unsent);
    state.decode(Leg::Unsent);
    assert_eq!(state.decode, Leg::Lost);
    state.retry();
    state.decode(Leg::Unsent);
    assert_eq!(state.decode, Leg::Unsent, "this is another worker");
}

#[test]
fn the_rules_can_forbid_a_retry() {
    let refused = state(Leg::Unsent, Leg::Running);
    for denied in [
        RetryRules {
            attempts: 1,
            ..FREE
        },
        RetryRules {
            own_rid: true,
            ..FREE
        },
    ] {
        assert_eq!(
            refused.verdict(denied),
            Verdict::Fail(Role::Prefill),
            "{denied:?}"
        );
    }
    let unseen = state(Leg::Unsent, Leg::Unsent);
    let own_rid = RetryRules {
        own_rid: true,
        ..FREE
    };
    assert_eq!(unseen.verdict(own_rid), Verdict::Retry(Role::Prefill));
}

#[test]
fn after_the_first_byte_only_decode_counts_and_there_is_no_retry() {
    let mut state = state(Leg::Served, Leg::Served);
    state.commit();
    state.prefill(Leg::Lost);
    assert_eq!(state.verdict(FREE), Verdict::Respond);
    state.decode(Leg::Lost);
    assert_eq!(state.verdict(FREE), Verdict::Fail(Role::Decode));
}
