//! Claims about what the proxy asks: the flag, where a trial may go, and the signal.

use std::time::Duration;

use super::*;
use crate::fleet::{BreakerLimits, Fleet, Policies, WorkerParts};

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
    suspects.lost(&digest(body), trial, &loss, now)
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

#[test]
fn a_trial_avoids_taken_seats_and_waits_where_there_is_no_other() {
    let (suspects, fleet) = (suspects(), fleet());
    let members = fleet.members();
    let (prefill, decode) = (members.of(Role::Prefill), members.of(Role::Decode));
    for body in ["a", "b"] {
        lose(&suspects, body, None, &prefill[0]);
    }
    let now = Instant::now();
    let avoided =
        |body, avoid: &[WorkerId], now| suspects.avoided(&digest(body), &members, avoid, now);
    assert_eq!(avoided("a", &[], now), Some(vec![prefill[0].id()]));
    let pair = [prefill[1].id(), decode[0].id()];
    let Turn::Now(trial) = suspects.turn(&digest("a"), pair, now) else {
        panic!("both seats are free");
    };
    assert_eq!(avoided("a", &[], now), None, "it is on trial");
    assert_eq!(
        avoided("b", &[], now),
        None,
        "the first was lost, the other is taken"
    );
    let later = now + Duration::from_secs(6);
    let taken = [prefill[1].id(), decode[0].id()];
    assert_eq!(avoided("b", &[], later), Some(taken.to_vec()));
    let failed = [prefill[0].id()];
    assert_eq!(
        avoided("b", &failed, later),
        None,
        "the other one failed it"
    );
    trial.progress().reached(Point::Prefilled);
    assert_eq!(avoided("b", &failed, later), Some(failed.to_vec()));
    let counts = suspects.counts();
    assert_eq!((counts.losses, counts.trials, counts.known), (2, 1, 2));
}

#[tokio::test]
async fn the_end_of_a_trial_is_signalled_and_a_served_one_is_forgotten() {
    let (suspects, fleet) = (suspects(), fleet());
    let members = fleet.members();
    let (prefill, decode) = (members.of(Role::Prefill), members.of(Role::Decode));
    lose(&suspects, "a", None, &prefill[0]);
    for served in [false, true] {
        let pair = [prefill[1].id(), decode[0].id()];
        let Turn::Now(trial) = suspects.turn(&digest("a"), pair, Instant::now()) else {
            panic!("a turn");
        };
        let changed = suspects.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        match served {
            true => trial.served(),
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
    let pair = [prefill[1].id(), decode[0].id()];
    let Turn::Now(trial) = suspects.turn(&digest("a"), pair, Instant::now()) else {
        panic!("a turn");
    };
    let standing = lose(&suspects, "a", Some(trial), &prefill[1]);
    assert!(matches!(standing, Standing::Refused(_)));
    let standing = suspects.standing(&digest("a"), Instant::now());
    assert!(matches!(standing, Standing::Refused(_)));
    assert_eq!(suspects.counts().refusals, 2);
}
