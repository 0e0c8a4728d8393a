//! Claims about losses, trials and refusals, one rule each.

use super::*;
use crate::pd::{Role, Route};

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
}

impl Watched {
    fn new() -> Self {
        Self {
            book: Book::default(),
            now: Instant::now(),
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
        self.book
            .lost(&digest(body), trial, &loss, LIMITS, self.now)
    }

    fn seat(&mut self, body: &str, prefill: u64, decode: u64) -> Seating {
        let pair = [WorkerId(prefill), WorkerId(decode)];
        self.book.seat(&digest(body), pair, self.now)
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
    assert_eq!(
        (refusal.lost, refusal.left),
        (Some(worker(3)), LIMITS.window)
    );
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
    test.book.ended(trial, true);
    assert_eq!(test.book.standing(&digest("a"), test.now), Standing::Clear);
    assert!(test.book.is_empty());
}

#[test]
fn a_trial_that_ends_without_a_verdict_may_be_repeated() {
    let mut test = Watched::new();
    test.lost("a", None, &[1]);
    let trial = test.trial("a", 3, 2);
    test.book.ended(trial, false);
    test.trial("a", 3, 2);
}

#[test]
fn no_two_suspects_share_a_worker_and_no_suspect_is_tried_twice_at_a_time() {
    let mut test = Watched::new();
    for body in ["a", "b"] {
        test.lost(body, None, &[1]);
    }
    let trial = test.trial("a", 3, 2);
    assert_eq!(test.seat("a", 5, 4), Seating::Wait);
    assert_eq!(test.seat("b", 3, 4), Seating::Wait);
    assert_eq!(test.seat("b", 5, 2), Seating::Wait);
    assert_eq!(test.book.place(WorkerId(3), test.now), Place::Taken);
    assert!(test.book.reached(trial, Point::Prefilled));
    test.trial("b", 3, 2);
    test.trial("a", 5, 4);
}

#[test]
fn a_trial_keeps_its_seats_until_it_is_past_the_point_of_the_loss() {
    for (workers, begun, prefilled, first_byte) in [
        // Prefill's seat, and decode's, are free after the point.
        (&[1][..], false, [true, true], [true, true]),
        (&[2], false, [true, false], [true, true]),
        (&[1, 2], false, [true, false], [true, true]),
        (&[2], true, [true, false], [true, false]),
    ] {
        let mut test = Watched::new();
        test.lost_at("a", None, workers, begun, test.now);
        let trial = test.trial("a", 3, 4);
        for (point, free) in [
            (Point::Prefilled, prefilled),
            (Point::FirstByte, first_byte),
        ] {
            test.book.reached(trial, point);
            let is_free = |id| test.book.place(WorkerId(id), test.now) == Place::Free;
            assert_eq!(
                [is_free(3), is_free(4)],
                free,
                "{workers:?} {begun} {point:?}"
            );
        }
        test.book.ended(trial, true);
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
fn equal_requests_that_die_with_one_worker_are_one_suspect_with_one_loss() {
    let mut test = Watched::new();
    for _ in 0..4 {
        assert_eq!(test.lost("a", None, &[1]), Standing::Suspect);
    }
    assert_eq!(test.book.len(), 1);
    // Without a trial that explains it, the loss of another worker is the second.
    test.lost("a", None, &[3]);
    assert!(test.is_refused("a"));
}

#[test]
fn a_seat_is_shared_after_its_limit() {
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
    assert!(test.is_refused("b") && !test.is_refused("a"));
}

#[test]
fn a_worker_that_was_lost_a_moment_ago_is_avoided_for_a_while() {
    let mut test = Watched::new();
    test.lost("a", None, &[1]);
    assert_eq!(test.book.place(WorkerId(1), test.now), Place::Lost);
    test.after(5);
    assert_eq!(test.book.place(WorkerId(1), test.now), Place::Free);
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
