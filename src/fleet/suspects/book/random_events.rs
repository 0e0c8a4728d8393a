//! The book under random events: requests are sent, lost, tried, served and given up; workers die, and take all that
//! they have with them; time passes. Its rules are checked after each event.

#![allow(clippy::unwrap_used)]

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::pd::{Role, Route};

const WINDOW: Duration = Duration::from_secs(120);

/// More than there are different requests.
const AMPLE: usize = 16;
const SCARCE: usize = 4;

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
    /// When a worker was lost while a trial of this body had its seat.
    blamed: HashMap<u8, Vec<Instant>>,
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
            blamed: HashMap::new(),
        }
    }

    fn arrives(&mut self) {
        let body = self.rng.random_range(0..12);
        let pair = [
            self.rng.random_range(0..4) * 2 + 1,
            self.rng.random_range(0..3) * 2,
        ];
        let trial = match self.book.standing(&digest(body), self.now) {
            Standing::Refused(_) => return,
            Standing::Clear => None,
            Standing::Suspect => {
                let workers = pair.map(WorkerId);
                match self.book.seat(&digest(body), workers, self.now) {
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

    fn goes_on(&mut self) {
        let index = self.rng.random_range(0..self.running.len());
        let one = &mut self.running[index];
        one.point = match one.point {
            None => Some(Point::Prefilled),
            Some(_) => Some(Point::FirstByte),
        };
        if let (Some(trial), Some(point)) = (one.trial, one.point) {
            self.book.reached(trial, point);
        }
    }

    fn ends(&mut self) {
        let index = self.rng.random_range(0..self.running.len());
        let one = self.running.swap_remove(index);
        if let Some(trial) = one.trial {
            self.book.ended(trial, self.rng.random_bool(0.5));
        }
    }

    /// A worker dies. Its requests learn of it in any order.
    fn worker_dies(&mut self) {
        let id = self.rng.random_range(0..7);
        let (mut died, rest): (Vec<_>, Vec<_>) = self
            .running
            .drain(..)
            .partition(|one| one.pair.contains(&id));
        self.running = rest;
        self.now += Duration::from_millis(1);
        let seated = self
            .book
            .desks
            .get(&WorkerId(id))
            .and_then(|desk| desk.seat);
        while !died.is_empty() {
            let one = died.swap_remove(self.rng.random_range(0..died.len()));
            let was_refused = self.is_refused(one.body);
            let workers = [Lost {
                id: WorkerId(id),
                role: [Role::Decode, Role::Prefill][(id % 2) as usize],
                url: String::new(),
            }];
            let loss = Loss {
                workers: &workers,
                sent: one.sent,
                begun: one.point == Some(Point::FirstByte),
            };
            self.book
                .lost(&digest(one.body), one.trial, &loss, self.limits, self.now);
            if let (Some((holder, _)), Some(trial)) = (seated, one.trial) {
                let guilty = holder == trial;
                assert_eq!(
                    self.is_refused(one.body),
                    guilty || was_refused,
                    "a trial beside one with the seat is not blamed"
                );
                if guilty {
                    self.blamed.entry(one.body).or_default().push(self.now);
                }
            }
        }
    }

    fn is_refused(&self, body: u8) -> bool {
        matches!(
            self.book.standing(&digest(body), self.now),
            Standing::Refused(_)
        )
    }

    fn event(&mut self) {
        match self.rng.random_range(0..100) {
            0..50 => self.arrives(),
            50..65 if !self.running.is_empty() => self.goes_on(),
            65..80 if !self.running.is_empty() => self.ends(),
            80..92 => self.worker_dies(),
            _ => {
                self.now += Duration::from_secs(self.rng.random_range(0..40));
                self.book.tidy(self.now);
            }
        }
    }

    fn check(&self) {
        let book = &self.book;
        assert!(book.len() <= self.limits.capacity);
        let counted: usize = book.lengths.values().sum();
        assert_eq!(counted, book.len());
        let mut seats = HashSet::new();
        for (worker, desk) in &book.desks {
            if let Some((trial, _)) = desk.seat {
                assert!(!desk.others.contains(&trial));
                assert!(book.trials.contains_key(&trial), "a seat without a trial");
                assert!(seats.insert((trial, *worker)));
            }
            for trial in &desk.others {
                assert!(book.trials.contains_key(trial), "a place without a trial");
            }
        }
        let trials = self.running.iter().filter_map(|one| one.trial);
        let trials: HashSet<_> = trials.collect();
        assert_eq!(book.trials.keys().copied().collect::<HashSet<_>>(), trials);
        let apart = |pair: &[Instant]| pair[1] - pair[0] >= WINDOW;
        for times in self.blamed.values() {
            // Unless it is forgotten for want of space.
            let kept = self.limits.capacity == SCARCE || times.windows(2).all(apart);
            assert!(kept, "two losses in the seat within one window");
        }
        for entry in book.entries.values() {
            assert!(!entry.lost.is_empty() && entry.lost.len() <= 2);
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
                run.book.ended(trial, true);
            }
        }
        run.now += WINDOW;
        run.book.tidy(run.now);
        assert!(run.book.is_empty(), "{:?}", run.book);
        assert!(run.book.lengths.is_empty());
    }
}
