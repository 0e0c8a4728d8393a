use super::*;

const LIMITS: BreakerLimits = BreakerLimits {
    failures: 3,
    window: Duration::from_secs(10),
    successes: 2,
    pause: Duration::from_secs(5),
    slow_start: Duration::from_secs(10),
};

struct Watched {
    breaker: Breaker,
    now: Instant,
}

impl Watched {
    fn new() -> Self {
        Self {
            breaker: Breaker::default(),
            now: Instant::now(),
        }
    }

    fn after(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    fn note(&mut self, evidence: Evidence) -> Option<Change> {
        self.breaker.note(evidence, self.now, &LIMITS)
    }

    fn admits(&self) -> bool {
        self.breaker.admits(self.now)
    }

    /// In percent.
    fn part(&self) -> u32 {
        (self.breaker.part(self.now, LIMITS.slow_start) * 100.0).round() as u32
    }

    fn pick(&mut self) {
        self.breaker.picked(self.now);
    }
}

#[test]
fn one_refused_connection_sets_aside_and_one_success_brings_back() {
    let mut worker = Watched::new();
    assert_eq!(worker.note(Evidence::Absent), Some(Change::SetAside));
    assert!(!worker.admits());
    assert!(!worker.after(499).admits());
    assert!(worker.after(1).admits());
    worker.pick();
    assert!(!worker.admits(), "one trial at a time");
    assert_eq!(worker.note(Evidence::Good), Some(Change::Back));
    assert!(worker.admits());
}

#[test]
fn an_absent_worker_is_tried_less_and_less_often_up_to_the_pause() {
    let mut worker = Watched::new();
    for pause in [500, 1000, 2000, 4000, 5000, 5000] {
        worker.note(Evidence::Absent);
        assert!(!worker.after(pause - 1).admits(), "{pause}");
        assert!(worker.after(1).admits(), "{pause}");
        worker.pick();
    }
}

#[test]
fn failures_within_the_window_set_aside_and_a_success_forgets_them() {
    let mut worker = Watched::new();
    worker.note(Evidence::Bad);
    worker.note(Evidence::Bad);
    worker.note(Evidence::Good);
    worker.note(Evidence::Bad);
    worker.note(Evidence::Bad);
    worker.after(10_001).note(Evidence::Bad);
    assert!(worker.admits(), "the first two are out of the window");
    worker.note(Evidence::Bad);
    assert_eq!(worker.note(Evidence::Bad), Some(Change::SetAside));
    assert!(!worker.after(4999).admits());
    assert!(worker.after(1).admits());
}

#[test]
fn a_probe_that_is_answered_ends_an_absence_but_not_a_series_of_failures() {
    let mut worker = Watched::new();
    worker.note(Evidence::Absent);
    assert_eq!(worker.note(Evidence::Present), Some(Change::Back));
    assert!(worker.admits());
    for _ in 0..3 {
        worker.note(Evidence::Bad);
    }
    assert_eq!(worker.note(Evidence::Present), None);
    assert!(!worker.admits());
}

#[test]
fn a_trial_that_fails_sets_aside_again_and_enough_that_succeed_bring_back() {
    let mut worker = Watched::new();
    for _ in 0..3 {
        worker.note(Evidence::Bad);
    }
    worker.after(5000).pick();
    worker.note(Evidence::Bad);
    assert!(!worker.admits());
    worker.after(5000).pick();
    assert_eq!(worker.note(Evidence::Good), None);
    assert!(worker.admits());
    worker.pick();
    assert_eq!(worker.note(Evidence::Good), Some(Change::Back));
}

#[test]
fn a_trial_that_was_cancelled_leaves_the_place_to_another() {
    let mut worker = Watched::new();
    worker.note(Evidence::Absent);
    worker.after(500).pick();
    worker.note(Evidence::Neutral);
    assert!(worker.admits());
    worker.pick();
    assert!(worker.after(10_000).admits(), "its request was cancelled");
}

#[test]
fn a_worker_that_is_back_takes_a_tenth_of_its_share_and_all_of_it_ten_seconds_later() {
    for evidence in [Evidence::Good, Evidence::Present] {
        let mut worker = Watched::new();
        assert_eq!(worker.part(), 100, "at the first start");
        worker.note(Evidence::Absent);
        worker.after(500).pick();
        assert_eq!(worker.note(evidence), Some(Change::Back));
        assert_eq!(worker.part(), 10);
        assert_eq!(worker.after(5000).part(), 55);
        worker.note(Evidence::Good);
        assert_eq!(worker.after(4000).part(), 91);
        assert!(worker.breaker.is_unhealthy());
        assert_eq!(worker.after(1000).part(), 100);
        worker.note(Evidence::Neutral);
        assert!(!worker.breaker.is_unhealthy(), "it takes no lock any more");
    }
}

#[test]
fn slow_start_begins_anew_after_each_time_aside_and_can_be_off() {
    let mut worker = Watched::new();
    for _ in 0..2 {
        for _ in 0..3 {
            worker.note(Evidence::Bad);
        }
        worker.note(Evidence::Good);
        assert_eq!(worker.part(), 10);
        worker.after(9000);
    }
    let off = BreakerLimits {
        slow_start: Duration::ZERO,
        ..LIMITS
    };
    let mut breaker = Breaker::default();
    breaker.note(Evidence::Absent, worker.now, &off);
    breaker.note(Evidence::Present, worker.now, &off);
    assert!(!breaker.is_unhealthy());
    assert_eq!(breaker.part(worker.now, off.slow_start), 1.0);
}

#[test]
fn refusals_of_requests_and_of_load_say_nothing() {
    let mut worker = Watched::new();
    for _ in 0..100 {
        worker.note(Evidence::Neutral);
    }
    assert!(worker.admits());
}

#[test]
fn a_silent_worker_is_not_set_aside_and_answers_with_a_probe_or_a_request() {
    for evidence in [Evidence::Present, Evidence::Good] {
        let mut worker = Watched::new();
        assert_eq!(worker.note(Evidence::Silent), Some(Change::FallsSilent));
        assert_eq!(worker.note(Evidence::Silent), None);
        assert_eq!(worker.note(Evidence::Neutral), None);
        assert!(worker.admits() && worker.breaker.is_silent());
        assert_eq!(worker.note(evidence), Some(Change::AnswersAgain));
        assert!(!worker.breaker.is_silent() && !worker.breaker.is_unhealthy());
    }
}

#[test]
fn silence_neither_ends_nor_makes_a_series_of_failures() {
    let mut worker = Watched::new();
    worker.note(Evidence::Bad);
    worker.note(Evidence::Silent);
    worker.note(Evidence::Bad);
    assert_eq!(worker.note(Evidence::Bad), Some(Change::SetAside));
    worker.note(Evidence::Silent);
    assert!(!worker.admits());
}

#[test]
fn a_silence_is_remembered_from_its_begin_to_its_end() {
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let limits = BreakerLimits::default();
    let mut breaker = Breaker::default();
    assert!(!breaker.was_silent(at(0), at(1)));
    breaker.note(Evidence::Silent, at(10), &limits);
    breaker.note(Evidence::Silent, at(20), &limits);
    assert!(breaker.was_silent(at(10), at(30)) && !breaker.was_silent(at(9), at(30)));
    breaker.note(Evidence::Present, at(40), &limits);
    assert!(breaker.was_silent(at(12), at(40)) && !breaker.was_silent(at(12), at(41)));
}
