//! Claims about losses, trials and refusals, one rule each.

use std::time::Duration;

use super::*;
use crate::pd::Route;

const LIMITS: SuspectLimits = SuspectLimits {
    window: Duration::from_secs(300),
    capacity: 3,
};

/// Prefill workers have odd numbers, decode workers even ones.
fn worker(number: u64) -> Lost {
    Lost {
        id: WorkerId(number),
        role: [Role::Decode, Role::Prefill][(number % 2) as usize],
        url: format!("http://w{number}"),
    }
}

fn digest(body: &str) -> Digest {
    Digest::of(Route::Generate, [body.as_bytes()])
}

struct Watched {
    book: Book,
    now: Instant,
    /// Whether all have waited long.
    overdue: bool,
    /// Whether the last loss was of a shared worker.
    shared: bool,
}

impl Watched {
    fn new() -> Self {
        Self {
            book: Book::default(),
            now: Instant::now(),
            overdue: false,
            shared: false,
        }
    }

    fn after(&mut self, secs: u64) -> &mut Self {
        self.now += Duration::from_secs(secs);
        self.book.tidy(self.now);
        self
    }

    /// A request that was sent a moment ago is lost with these workers.
    fn lost(&mut self, body: &str, trial: Option<TrialId>, workers: &[u64]) -> Standing {
        self.lost_at(body, trial, workers, false, self.now)
    }

    fn lost_at(
        &mut self,
        body: &str,
        trial: Option<TrialId>,
        workers: &[u64],
        begun: bool,
        sent: Instant,
    ) -> Standing {
        let workers: Vec<_> = workers.iter().map(|number| worker(*number)).collect();
        let loss = Loss {
            workers: &workers,
            sent,
            begun,
        };
        // The loss is noted after the request was sent.
        self.now += Duration::from_millis(1);
        let lost = self
            .book
            .lost(&digest(body), trial, &loss, LIMITS, self.now);
        self.shared = lost.1;
        lost.0
    }

    fn seat(&mut self, body: &str, prefill: u64, decode: u64) -> Seating {
        let pair = [WorkerId(prefill), WorkerId(decode)];
        self.book.seat(&digest(body), pair, self.overdue, self.now)
    }

    fn place(&self, body: &str, worker: u64) -> Place {
        let worker = WorkerId(worker);
        self.book
            .place(&digest(body), worker, self.overdue, self.now)
    }

    fn served(&mut self, body: &str, trial: TrialId) {
        self.book.ended(trial);
        self.book.served(&digest(body), self.now);
    }

    fn trial(&mut self, body: &str, prefill: u64, decode: u64) -> TrialId {
        match self.seat(body, prefill, decode) {
            Seating::Trial(id) => id,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn is_refused(&self, body: &str) -> bool {
        let standing = self.book.standing(&digest(body), self.now);
        matches!(standing, Standing::Refused(_))
    }
}

#[test]
fn a_second_loss_refuses_until_the_window_is_over_and_names_the_last_worker() {
    let mut test = Watched::new();
    assert_eq!(test.seat("a", 1, 2), Seating::Clear);
    assert_eq!(test.lost("a", None, &[1]), Standing::Suspect);
    let trial = test.trial("a", 3, 2);
    let Standing::Refused(refusal) = test.lost("a", Some(trial), &[3]) else {
        panic!("a second worker was lost");
    };
    assert_eq!((refusal.lost, refusal.times), (Some(worker(3)), None));
    assert_eq!(refusal.left, LIMITS.window);
    assert!(matches!(test.seat("a", 5, 2), Seating::Refused(_)));
    test.after(299);
    assert!(test.is_refused("a") && test.book.may_know(1));
    test.after(1);
    assert_eq!(test.seat("a", 5, 2), Seating::Clear);
    assert!(!test.book.may_know(1) && test.book.is_empty());
}

#[test]
fn a_suspect_whose_response_was_complete_is_forgotten() {
    let mut test = Watched::new();
    test.lost("a", None, &[1]);
    let trial = test.trial("a", 3, 2);
    test.served("a", trial);
    assert_eq!(test.book.standing(&digest("a"), test.now), Standing::Clear);
    assert!(test.book.is_empty());
}

#[test]
fn an_equal_request_that_is_served_without_a_trial_acquits_it_even_when_it_is_refused() {
    let mut test = Watched::new();
    for refused in [false, true] {
        test.after(1).lost("a", None, &[1]);
        if refused {
            let trial = test.trial("a", 3, 2);
            test.lost("a", Some(trial), &[3]);
        }
        assert_eq!(test.is_refused("a"), refused);
        test.book.served(&digest("a"), test.now);
        assert_eq!(test.seat("a", 3, 2), Seating::Clear);
    }
    // What happens to a trial that still runs is its first loss.
    test.lost("a", None, &[1]);
    let trial = test.after(1).trial("a", 3, 2);
    test.book.served(&digest("a"), test.now);
    assert_eq!(test.lost("a", Some(trial), &[3]), Standing::Suspect);
}

#[test]
fn one_worker_that_is_lost_again_is_no_second_worker_and_refuses_the_third_time() {
    let mut test = Watched::new();
    test.lost("a", None, &[1]);
    let trial = test.after(1).trial("a", 1, 2);
    assert_eq!(test.lost("a", Some(trial), &[1]), Standing::Suspect);
    let trial = test.after(1).trial("a", 1, 2);
    let Standing::Refused(refusal) = test.lost("a", Some(trial), &[1]) else {
        panic!("a third loss");
    };
    assert_eq!((refusal.lost, refusal.times), (Some(worker(1)), Some(3)));
}

#[test]
fn after_a_trial_has_passed_its_point_equal_requests_need_none_until_the_next_loss() {
    let mut test = Watched::new();
    test.lost("a", None, &[1]);
    let trial = test.trial("a", 3, 2);
    assert_eq!(test.seat("a", 5, 4), Seating::Wait);
    test.book.reached(trial, Point::Prefilled);
    assert_eq!(test.seat("a", 5, 4), Seating::Clear);
    test.lost("a", None, &[5]);
    test.trial("a", 7, 4);
}

#[test]
fn a_trial_that_ends_without_a_verdict_may_be_repeated() {
    let mut test = Watched::new();
    test.lost("a", None, &[1]);
    let trial = test.trial("a", 3, 2);
    test.book.ended(trial);
    test.trial("a", 3, 2);
}

#[test]
fn no_two_suspects_share_a_worker_of_the_role_that_was_lost_and_none_is_tried_twice_at_a_time() {
    let mut test = Watched::new();
    for body in ["a", "b", "c"] {
        test.lost(body, None, &[1]);
    }
    let trial = test.trial("a", 3, 2);
    assert_eq!(test.seat("a", 5, 4), Seating::Wait);
    assert_eq!(test.seat("b", 3, 4), Seating::Wait);
    assert_eq!(test.place("b", 3), Place::Taken);
    // Decode was not lost.
    assert_eq!(test.place("b", 2), Place::Free);
    test.trial("b", 5, 2);
    assert!(test.book.reached(trial, Point::Prefilled));
    test.trial("c", 3, 2);
}

#[test]
fn a_trial_keeps_the_seat_of_a_role_that_was_lost_until_it_is_past_the_point_of_the_loss() {
    for (workers, begun, points) in [
        // Whether prefill's seat is free, and decode's: at first, and after each point.
        (&[1][..], false, [[false, true], [true, true], [true, true]]),
        (&[2], false, [[true, false], [true, false], [true, true]]),
        (
            &[1, 2],
            false,
            [[false, false], [true, false], [true, true]],
        ),
        (&[2], true, [[true, false]; 3]),
    ] {
        let mut test = Watched::new();
        test.lost_at("a", None, workers, begun, test.now);
        let trial = test.trial("a", 3, 4);
        let reached = [None, Some(Point::Prefilled), Some(Point::FirstByte)];
        for (point, free) in reached.into_iter().zip(points) {
            if let Some(point) = point {
                test.book.reached(trial, point);
            }
            let is_free = |id| test.place("a", id) == Place::Free;
            assert_eq!(
                [is_free(3), is_free(4)],
                free,
                "{workers:?} {begun} {point:?}"
            );
        }
        test.served("a", trial);
        assert!(test.book.is_empty());
    }
}

#[test]
fn a_loss_blames_the_trial_in_the_seat_alone_whatever_the_order_of_the_reports() {
    for guilty_first in [true, false] {
        let mut test = Watched::new();
        for body in ["g", "i"] {
            test.lost(body, None, &[1]);
        }
        // The innocent one is past its point, and its response runs on at the same worker.
        let innocent = test.trial("i", 3, 2);
        test.book.reached(innocent, Point::Prefilled);
        let guilty = test.trial("g", 3, 4);
        let sent = test.now;
        let mut reports = [("g", Some(guilty)), ("i", Some(innocent)), ("other", None)];
        if !guilty_first {
            reports.reverse();
        }
        for (body, trial) in reports {
            test.lost_at(body, trial, &[3], false, sent);
        }
        let refused = ["g", "i", "other"].map(|body| test.is_refused(body));
        assert_eq!(refused, [true, false, false], "{guilty_first}");
        // The innocent ones get another trial.
        test.trial("i", 5, 2);
        test.trial("other", 7, 4);
    }
}

#[test]
fn a_trial_without_a_seat_is_blamed_only_where_it_is_the_only_one() {
    let mut test = Watched::new();
    test.lost("a", None, &[1]);
    let trial = test.trial("a", 3, 2);
    let sent = test.now;
    test.book.reached(trial, Point::FirstByte);
    test.lost_at("a", Some(trial), &[2], true, sent);
    assert!(test.is_refused("a"));

    let mut test = Watched::new();
    for body in ["a", "b"] {
        test.lost(body, None, &[1]);
    }
    let sent = test.now;
    let trials = ["a", "b"].map(|body| {
        let trial = test.trial(body, 3, 2);
        test.book.reached(trial, Point::FirstByte);
        trial
    });
    for (body, trial) in ["a", "b"].into_iter().zip(trials) {
        test.lost_at(body, Some(trial), &[2], true, sent);
    }
    assert!(!test.is_refused("a") && !test.is_refused("b"));
    // Lost in mid-stream, so that they have their workers for themselves to the end.
    let trial = test.trial("a", 3, 4);
    test.book.reached(trial, Point::FirstByte);
    assert_eq!(test.seat("b", 5, 4), Seating::Wait);
    test.lost("a", Some(trial), &[4]);
    assert!(test.is_refused("a"));
}

#[test]
fn equal_requests_that_die_with_two_workers_at_once_are_one_suspect_that_is_tried() {
    let mut test = Watched::new();
    for _ in 0..4 {
        assert_eq!(test.lost("a", None, &[1]), Standing::Suspect);
    }
    // Nothing says that another one was not the reason.
    assert_eq!(test.lost("a", None, &[3]), Standing::Suspect);
    assert_eq!(test.book.len(), 1);
    let trial = test.after(1).trial("a", 1, 2);
    test.lost("a", Some(trial), &[1]);
    assert!(test.is_refused("a"), "two workers, and on trial");
}

#[test]
fn suspects_that_have_waited_long_share_a_seat_and_after_a_loss_are_tried_alone() {
    let mut test = Watched::new();
    let bodies = ["a", "b", "c"];
    for body in bodies {
        test.lost(body, None, &[1]);
    }
    test.overdue = true;
    let sent = test.now;
    let [a, b] = ["a", "b"].map(|body| test.trial(body, 3, 2));
    // Of three left, two share a seat.
    assert_eq!(test.seat("c", 3, 2), Seating::Wait);
    for (body, trial) in [("a", a), ("b", b)] {
        let standing = test.lost_at(body, Some(trial), &[3], false, sent);
        assert_eq!((standing, test.shared), (Standing::Suspect, true), "{body}");
    }
    let a = test.trial("a", 5, 2);
    assert_eq!(test.seat("b", 5, 2), Seating::Wait);
    assert_eq!(test.seat("c", 5, 2), Seating::Wait, "it would not be alone");
    test.lost("a", Some(a), &[5]);
    assert!(test.is_refused("a") && !test.shared);
    assert!(!test.is_refused("b"));
    test.trial("b", 7, 2);
}

#[test]
fn a_group_is_closed_when_its_first_member_has_passed() {
    let mut test = Watched::new();
    let bodies: Vec<_> = (0..16).map(|number| number.to_string()).collect();
    let limits = SuspectLimits {
        capacity: 16,
        ..LIMITS
    };
    for body in &bodies {
        let loss = Loss {
            workers: &[worker(1)],
            sent: test.now,
            begun: false,
        };
        test.book.lost(&digest(body), None, &loss, limits, test.now);
    }
    test.overdue = true;
    let first = test.trial("0", 3, 2);
    assert_eq!(test.place("1", 3), Place::Shared);
    let second = test.trial("1", 3, 2);
    test.book.reached(first, Point::Prefilled);
    assert_eq!(test.place("2", 3), Place::Taken);
    // Nor does one that has just come join a group.
    test.book.reached(second, Point::Prefilled);
    test.trial("2", 3, 2);
    test.overdue = false;
    assert_eq!(test.place("3", 3), Place::Taken);
    test.overdue = true;
    for body in ["3", "4"] {
        test.trial(body, 3, 2);
    }
    assert_eq!(
        test.place("5", 3),
        Place::Taken,
        "three of fourteen are a group"
    );
}

#[test]
fn a_seat_is_shared_after_its_limit_and_the_loss_blames_neither() {
    let mut test = Watched::new();
    for body in ["a", "b"] {
        test.lost(body, None, &[1]);
    }
    let overdue = test.trial("a", 3, 2);
    test.after(SEAT_LIMIT.as_secs());
    let trial = test.trial("b", 3, 2);
    let sent = test.now;
    test.lost_at("b", Some(trial), &[3], false, sent);
    test.lost_at("a", Some(overdue), &[3], false, sent);
    assert!(!test.is_refused("b") && !test.is_refused("a"));
    // A third loss is too much, whatever else is there.
    let overdue = test.trial("a", 5, 2);
    test.after(SEAT_LIMIT.as_secs());
    test.lost("c", None, &[1]);
    let sent = test.now;
    let trial = test.trial("c", 5, 2);
    test.lost_at("c", Some(trial), &[5], false, sent);
    test.lost_at("a", Some(overdue), &[5], false, sent);
    assert!(test.is_refused("a") && !test.is_refused("c"));
}

#[test]
fn a_worker_that_was_lost_a_moment_ago_is_avoided_until_it_has_served_a_trial() {
    let mut test = Watched::new();
    test.lost("a", None, &[1, 2]);
    let places = |test: &Watched| [1, 2].map(|id| test.place("a", id));
    assert_eq!(places(&test), [Place::Dying; 2]);
    assert_eq!(test.seat("a", 1, 2), Seating::Wait);
    test.after(1);
    assert_eq!(places(&test), [Place::Lost; 2]);
    let trial = test.trial("a", 1, 2);
    test.book.reached(trial, Point::FirstByte);
    assert_eq!(places(&test), [Place::Free; 2]);
    test.lost("b", None, &[1, 2]);
    // What it says of the time before is late.
    test.book.reached(trial, Point::FirstByte);
    assert_eq!(places(&test), [Place::Dying; 2]);
    test.after(5);
    assert_eq!(places(&test), [Place::Free; 2]);
}

#[test]
fn beyond_the_capacity_those_that_are_not_refused_are_forgotten_first() {
    let mut test = Watched::new();
    test.lost("refused", None, &[1]);
    let trial = test.trial("refused", 3, 2);
    test.lost("refused", Some(trial), &[3]);
    for body in ["a", "b", "c", "d"] {
        test.after(1).lost(body, None, &[5]);
    }
    assert_eq!(test.book.len(), LIMITS.capacity);
    assert!(test.is_refused("refused"));
    let standing = |body| test.book.standing(&digest(body), test.now);
    assert_eq!(standing("b"), Standing::Clear);
    assert_eq!(
        (standing("c"), standing("d")),
        (Standing::Suspect, Standing::Suspect)
    );
}
