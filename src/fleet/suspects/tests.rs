//! Claims about what the proxy asks: the flag, where a trial may go, and the signal.

use std::time::Duration;

use super::*;
use crate::fleet::{BreakerLimits, Evidence, Fleet, Policies, WorkerParts};

fn suspects() -> Arc<Suspects> {
    Arc::new(Suspects::new(Some(SuspectLimits {
        window: Duration::from_secs(60),
        capacity: 10,
    })))
}

/// Two workers of each role.
fn fleet() -> Arc<Fleet> {
    let fleet = Arc::new(Fleet::new(Policies::random(), BreakerLimits::default()));
    let roles = [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode];
    let workers = roles.into_iter().zip(1..);
    let workers: Vec<_> = workers
        .map(|(role, port)| fleet.new_worker(WorkerParts::for_tests(role, port)))
        .collect();
    fleet.replace(Members::new(workers));
    fleet
}

fn digest(body: &str) -> Digest {
    Digest::of(Route::Generate, [body.as_bytes()])
}

fn lose(suspects: &Suspects, body: &str, trial: Option<Trial>, worker: &Worker) -> Standing {
    let now = Instant::now();
    let loss = Loss {
        workers: &[worker.into()],
        sent: now,
        begun: false,
    };
    suspects.lost(&digest(body), trial, &loss, now).standing
}

#[test]
fn a_digest_is_of_the_route_and_of_all_pieces() {
    assert_eq!(digest("ab"), Digest::of(Route::Generate, [&b"a"[..], b"b"]));
    assert_ne!(digest("ab"), Digest::of(Route::Messages, [&b"ab"[..]]));
    assert_ne!(digest("ab"), digest("ac"));
    assert_eq!(digest("").to_string().len(), 8);
}

#[test]
fn nothing_is_asked_until_a_worker_was_lost_and_again_when_all_is_forgotten() {
    let (suspects, fleet) = (suspects(), fleet());
    assert!(!suspects.is_watching());
    lose(&suspects, "ab", None, &fleet.members().of(Role::Prefill)[0]);
    let now = Instant::now();
    assert!(suspects.is_watching());
    assert!(suspects.may_know(2, now) && !suspects.may_know(3, now));
    assert!(!suspects.may_know(2, now + Duration::from_secs(60)));
    assert!(!suspects.is_watching());
}

#[test]
fn nothing_is_remembered_where_suspects_are_off() {
    let (off, fleet) = (Suspects::new(None), fleet());
    for _ in 0..2 {
        let standing = lose(&off, "a", None, &fleet.members().of(Role::Decode)[0]);
        assert_eq!(standing, Standing::Clear);
    }
    assert!(!off.is_on() && !off.is_watching());
    assert_eq!(off.counts(), SuspectCounts::default());
}

fn turn(suspects: &Arc<Suspects>, body: &str, pair: [&Worker; 2]) -> Trial {
    let pair = pair.map(Worker::id);
    match suspects.turn(&digest(body), pair, false, Instant::now()) {
        Turn::Now(trial) => trial,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_trial_avoids_taken_seats_and_waits_where_there_is_no_other() {
    let (suspects, fleet) = (suspects(), fleet());
    let members = fleet.members();
    let (prefill, decode) = (members.of(Role::Prefill), members.of(Role::Decode));
    for body in ["a", "b"] {
        lose(&suspects, body, None, &prefill[0]);
    }
    let now = Instant::now();
    let avoided = |body, avoid: &[WorkerId], overdue, now| {
        suspects.avoided(&digest(body), &members, avoid, overdue, now)
    };
    assert_eq!(avoided("a", &[], false, now), Ok(vec![prefill[0].id()]));
    let trial = turn(&suspects, "a", [&prefill[1], &decode[0]]);
    let waits = Err(Wait::Turn);
    let equal = Err(Wait::Equal);
    assert_eq!(avoided("a", &[], false, now), equal, "it is on trial");
    let both = "the first was lost, the other is taken";
    assert_eq!(avoided("b", &[], false, now), waits, "{both}");
    let later = now + Duration::from_secs(6);
    // Decode was not lost.
    assert_eq!(avoided("b", &[], false, later), Ok(vec![prefill[1].id()]));
    let failed = [prefill[0].id()];
    assert_eq!(
        avoided("b", &failed, false, later),
        waits,
        "the other failed it"
    );
    trial.progress().reached(Point::Prefilled);
    let others = [failed[0]; 2];
    assert_eq!(avoided("b", &failed, false, later), Ok(others.to_vec()));
    let counts = suspects.counts();
    assert_eq!((counts.losses, counts.trials, counts.known), (2, 1, 2));
}

#[test]
fn a_suspect_waits_for_a_worker_that_is_well_and_was_not_lost_with_it() {
    for role in [Role::Prefill, Role::Decode] {
        let (suspects, fleet) = (suspects(), fleet());
        let members = fleet.members();
        let [lost, other] = members.of(role) else {
            panic!("two workers");
        };
        lose(&suspects, "a", None, lost);
        let now = Instant::now();
        fleet.note(other, Evidence::Absent, now);
        let avoid = [lost.id()];
        let avoided = |now| suspects.avoided(&digest("a"), &members, &avoid, false, now);
        assert_eq!(avoided(now), Err(Wait::Worker(role)));
        fleet.note(other, Evidence::Present, now);
        assert!(avoided(now).is_ok_and(|avoided| !avoided.contains(&other.id())));
        // One that was lost is tried where no other may be well, but not at once.
        let later = now + Duration::from_secs(1);
        fleet.note(other, Evidence::Absent, later);
        let avoided = |now| suspects.avoided(&digest("a"), &members, &[], false, now);
        assert_eq!(avoided(now), Err(Wait::Worker(role)));
        assert!(avoided(later).is_ok_and(|avoided| !avoided.contains(&lost.id())));
    }
}

#[tokio::test]
async fn the_end_of_a_trial_is_signalled_and_one_that_was_served_is_forgotten() {
    let (suspects, fleet) = (suspects(), fleet());
    let members = fleet.members();
    let (prefill, decode) = (members.of(Role::Prefill), members.of(Role::Decode));
    lose(&suspects, "a", None, &prefill[0]);
    for served in [false, true] {
        let trial = turn(&suspects, "a", [&prefill[1], &decode[0]]);
        let changed = suspects.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        match served {
            true => suspects.served(&digest("a"), Instant::now()),
            false => drop(trial),
        }
        changed.await;
        let standing = suspects.standing(&digest("a"), Instant::now());
        assert_eq!(standing == Standing::Clear, served);
    }
}

#[test]
fn a_second_loss_is_counted_as_a_refusal_each_time_it_is_asked_for() {
    let (suspects, fleet) = (suspects(), fleet());
    let members = fleet.members();
    let (prefill, decode) = (members.of(Role::Prefill), members.of(Role::Decode));
    lose(&suspects, "a", None, &prefill[0]);
    let trial = turn(&suspects, "a", [&prefill[1], &decode[0]]);
    let standing = lose(&suspects, "a", Some(trial), &prefill[1]);
    assert!(matches!(standing, Standing::Refused(_)));
    let standing = suspects.standing(&digest("a"), Instant::now());
    assert!(matches!(standing, Standing::Refused(_)));
    assert_eq!(suspects.counts().refusals, 2);
}
