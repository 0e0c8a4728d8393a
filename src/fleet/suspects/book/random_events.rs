//! The book under random events: requests are sent, lost, tried, served and given up; workers die, and take all that
//! they have with them; time passes. Its rules are checked after each event.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::pd::Route;

const WINDOW: Duration = Duration::from_secs(120);

/// More than there are different requests.
const AMPLE: usize = 64;
const SCARCE: usize = 4;

/// Requests with other bodies than the first.
const INNOCENT: u8 = 24;

/// One attempt that runs.
#[derive(Clone)]
struct Running {
    body: u8,
    trial: Option<TrialId>,
    pair: [u64; 2],
    sent: Instant,
    point: Option<Point>,
}

struct Run {
    limits: SuspectLimits,
    book: Book,
    now: Instant,
    rng: SmallRng,
    running: Vec<Running>,
    /// The workers that were lost with each body since it was served or forgotten last, one for each loss.
    lost: HashMap<u8, Vec<u64>>,
    /// The longest time that passes at once, in seconds.
    pace: u64,
}

fn digest(body: u8) -> Digest {
    Digest::of(Route::Generate, [&[body][..]])
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            limits: SuspectLimits {
                window: WINDOW,
                capacity: [AMPLE, SCARCE][(seed % 2) as usize],
            },
            book: Book::default(),
            now: Instant::now(),
            rng: SmallRng::seed_from_u64(seed),
            running: Vec::new(),
            lost: HashMap::new(),
            pace: 40,
        }
    }

    /// Prefill workers have odd numbers, decode workers even ones.
    fn pair(&mut self) -> [u64; 2] {
        [
            self.rng.random_range(0..4) * 2 + 1,
            self.rng.random_range(0..3) * 2,
        ]
    }

    fn arrives(&mut self) {
        let body = self.rng.random_range(0..12);
        let overdue = self.rng.random_bool(0.3);
        self.is_sent(body, overdue);
    }

    /// Sends a request, unless it is refused or has to wait.
    fn is_sent(&mut self, body: u8, overdue: bool) {
        let pair = self.pair();
        let trial = match self.book.standing(&digest(body), self.now) {
            Standing::Refused(_) => return,
            Standing::Clear => None,
            Standing::Suspect => {
                let workers = pair.map(WorkerId);
                match self.book.seat(&digest(body), workers, overdue, self.now) {
                    Seating::Trial(trial) => Some(trial),
                    Seating::Wait => return,
                    other => panic!("{other:?}"),
                }
            }
        };
        self.running.push(Running {
            body,
            trial,
            pair,
            sent: self.now,
            point: None,
        });
    }

    fn goes_on(&mut self, index: usize) {
        let one = &mut self.running[index];
        one.point = match one.point {
            None => Some(Point::Prefilled),
            Some(_) => Some(Point::FirstByte),
        };
        if let (Some(trial), Some(point)) = (one.trial, one.point) {
            self.book.reached(trial, point);
        }
    }

    fn ends(&mut self, index: usize, served: bool) {
        let one = self.running.swap_remove(index);
        if served {
            self.book.served(&digest(one.body), self.now);
            self.lost.remove(&one.body);
            let standing = self.book.standing(&digest(one.body), self.now);
            assert_eq!(standing, Standing::Clear, "a served one is no suspect");
        }
        if let Some(trial) = one.trial {
            self.book.ended(trial);
        }
    }

    /// A worker dies. Its requests learn of it in any order.
    fn worker_dies(&mut self, id: u64) {
        let (mut died, rest): (Vec<_>, Vec<_>) = self
            .running
            .drain(..)
            .partition(|one| one.pair.contains(&id));
        self.running = rest;
        self.now += Duration::from_millis(1);
        self.forget();
        let desk = self.book.desks.get(&WorkerId(id));
        let seat = desk.and_then(|desk| desk.seat.as_ref());
        let seated: Vec<_> = seat.map(|seat| seat.holders.clone()).unwrap_or_default();
        while !died.is_empty() {
            let one = died.swap_remove(self.rng.random_range(0..died.len()));
            self.reports_loss(&one, id, &seated);
        }
    }

    fn reports_loss(&mut self, one: &Running, id: u64, seated: &[TrialId]) {
        let was_refused = self.is_refused(one.body);
        let entry = self.book.entries.get(&digest(one.body));
        let was_alone = entry.is_some_and(|entry| entry.alone);
        let workers = [Lost {
            id: WorkerId(id),
            role: ROLES[((id + 1) % 2) as usize],
            url: String::new(),
        }];
        let loss = Loss {
            workers: &workers,
            sent: one.sent,
            begun: one.point == Some(Point::FirstByte),
        };
        let (_, shared) =
            self.book
                .lost(&digest(one.body), one.trial, &loss, self.limits, self.now);
        self.lost.entry(one.body).or_default().push(id);
        let is_refused = self.is_refused(one.body);
        let in_seat = one.trial.is_some_and(|trial| seated.contains(&trial));
        assert_eq!(shared, in_seat && seated.len() > 1);
        if is_refused && !was_refused {
            let lost = &self.lost[&one.body];
            let different: HashSet<_> = lost.iter().collect();
            assert!(one.trial.is_some(), "only a trial can refuse");
            assert!(different.len() > 1 || lost.len() >= 3, "{lost:?}");
            assert!(
                seated.is_empty() || in_seat,
                "one beside the seat is blamed"
            );
            assert!(!shared || was_alone, "one of a group is blamed");
        }
    }

    fn is_refused(&self, body: u8) -> bool {
        matches!(
            self.book.standing(&digest(body), self.now),
            Standing::Refused(_)
        )
    }

    /// Forgets what the book has forgotten.
    fn forget(&mut self) {
        self.book.tidy(self.now);
        let book = &self.book;
        self.lost
            .retain(|body, _| book.entries.contains_key(&digest(*body)));
    }

    fn event(&mut self) {
        let index = self.rng.random_range(0..self.running.len().max(1));
        match self.rng.random_range(0..100) {
            0..50 => self.arrives(),
            50..65 if !self.running.is_empty() => self.goes_on(index),
            65..80 if !self.running.is_empty() => {
                let served = self.rng.random_bool(0.3);
                self.ends(index, served);
            }
            80..92 => {
                let worker = self.rng.random_range(0..7);
                self.worker_dies(worker);
            }
            _ => {
                self.now += Duration::from_secs(self.rng.random_range(0..self.pace));
                self.forget();
            }
        }
    }

    fn check(&self) {
        let book = &self.book;
        assert!(book.len() <= self.limits.capacity);
        let counted: usize = book.lengths.values().sum();
        assert_eq!(counted, book.len());
        for (worker, desk) in &book.desks {
            let holders = desk.seat.iter().flat_map(|seat| &seat.holders);
            assert!(desk.seat.is_none() || holders.clone().count() > 0);
            let mut here = HashSet::new();
            for id in holders.chain(&desk.others) {
                let trial = book.trials.get(id).expect("a place without a trial");
                assert!(trial.workers.contains(worker));
                assert!(here.insert(*id), "a trial has two places");
            }
        }
        let trials = self.running.iter().filter_map(|one| one.trial);
        let trials: HashSet<_> = trials.collect();
        assert_eq!(book.trials.keys().copied().collect::<HashSet<_>>(), trials);
        for (digest, entry) in &book.entries {
            let current = entry.trial.map(|id| book.trials[&id].digest);
            assert!(current.is_none_or(|of| of == *digest));
            assert!(!entry.lost.is_empty() && entry.lost.len() <= 2);
            assert!(entry.roles != [false; 2]);
        }
    }
}

#[test]
fn the_rules_hold_after_any_events() {
    for seed in 0..200 {
        let mut run = Run::new(seed);
        for _ in 0..400 {
            run.event();
            run.check();
        }
        for one in std::mem::take(&mut run.running) {
            if let Some(trial) = one.trial {
                run.book.ended(trial);
            }
        }
        run.now += WINDOW;
        run.book.tidy(run.now);
        assert!(run.book.is_empty(), "{:?}", run.book);
        assert!(run.book.lengths.is_empty());
    }
}

/// The first request takes down each worker of one role that it reaches, sooner or later, and its client sends it again
/// and again. The others are sent until they are served.
#[test]
fn a_fatal_request_takes_down_two_workers_or_three_with_groups_and_no_other_is_refused() {
    for seed in 0..100 {
        let mut run = Run::new(2 * seed);
        let (groups, role) = (seed % 2 == 1, (seed / 2 % 2) as usize);
        let mut served = HashSet::new();
        let mut deaths = Vec::new();
        // All are sent before the first one dies.
        (0..=INNOCENT).for_each(|body| run.is_sent(body, false));
        for round in 0.. {
            run.now += Duration::from_millis(run.rng.random_range(0..20));
            assert!(round < 20_000, "seed {seed}: some are never served");
            if served.len() == usize::from(INNOCENT) && run.is_refused(0) {
                break;
            }
            let body = run.rng.random_range(0..=INNOCENT);
            let is_running = run.running.iter().any(|one| one.body == body);
            if !is_running && !served.contains(&body) {
                let overdue = groups && run.rng.random_bool(0.8);
                run.is_sent(body, overdue);
            }
            let index = run.rng.random_range(0..run.running.len().max(1));
            let Some(one) = run.running.get(index).cloned() else {
                continue;
            };
            let done = [None, Some(Point::Prefilled)][role];
            match one.body {
                0 if one.point == done && run.rng.random_bool(0.2) => {
                    deaths.push(one.pair[role]);
                    run.worker_dies(one.pair[role]);
                    let refused = (1..=INNOCENT).find(|body| run.is_refused(*body));
                    assert_eq!(refused, None, "seed {seed}");
                }
                0 if one.point == done => {}
                _ if one.point < Some(Point::FirstByte) => run.goes_on(index),
                _ => {
                    run.ends(index, true);
                    served.insert(one.body);
                }
            }
        }
        let limit = if groups { 3 } else { 2 };
        let different: HashSet<_> = deaths.iter().collect();
        assert!(different.len() <= limit, "seed {seed}: {deaths:?}");
        // The book alone does not keep it from the worker that it was lost with.
        assert!(deaths.len() <= limit + 1, "seed {seed}: {deaths:?}");
    }
}
