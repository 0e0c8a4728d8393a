//! The course of two legs under random sequences of events: a small corridor that does what the verdicts say, and
//! the laws that must hold whatever happens.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use mini_lb::fleet::Role;
use mini_lb::pd::{Allowance, Course, Leg, Verdict};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// How a request ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Answered,
    ToldOf(Role),
    Left,
}

/// A corridor without sockets: it counts what it starts and what it ends.
struct Corridor {
    course: Course,
    allowed: Allowance,
    rooms: HashSet<u32>,
    next_room: u32,
    legs_started: u32,
    legs_ended: u32,
    live: [bool; 2],
    bytes_sent: bool,
    endings: Vec<Ended>,
}

impl Corridor {
    fn new(allowed: Allowance) -> Self {
        let mut corridor = Self {
            course: Course::default(),
            allowed,
            rooms: HashSet::new(),
            next_room: 1,
            legs_started: 0,
            legs_ended: 0,
            live: [false; 2],
            bytes_sent: false,
            endings: Vec::new(),
        };
        corridor.start();
        corridor
    }

    fn start(&mut self) {
        assert!(self.rooms.insert(self.next_room), "a room is used once");
        self.next_room += 1;
        self.live = [true; 2];
        self.legs_started += 2;
    }

    fn end_legs(&mut self) {
        for live in &mut self.live {
            self.legs_ended += u32::from(std::mem::take(live));
        }
    }

    fn end(&mut self, ended: Ended) {
        self.end_legs();
        self.endings.push(ended);
    }

    fn leg_ends(&mut self, role: Role, leg: Leg) {
        let live = &mut self.live[usize::from(role == Role::Decode)];
        if !std::mem::take(live) {
            return; // what was cancelled says nothing any more
        }
        self.legs_ended += 1;
        match role {
            Role::Prefill => self.course.prefill(leg),
            Role::Decode => self.course.decode(leg),
        }
        self.obey();
    }

    fn obey(&mut self) {
        match self.course.verdict(self.allowed) {
            Verdict::Wait | Verdict::Respond => {}
            Verdict::Retry => {
                assert!(
                    !self.bytes_sent,
                    "nothing is tried again after the first byte"
                );
                self.end_legs();
                self.course.again();
                self.start();
            }
            Verdict::Fail(role) => self.end(Ended::ToldOf(role)),
        }
    }

    fn is_over(&self) -> bool {
        !self.endings.is_empty()
    }
}

fn random_failure(random: &mut SmallRng) -> Leg {
    match random.random_range(0..4) {
        0 => Leg::Unsent,
        1 => Leg::Lost,
        2 => Leg::Failed,
        _ => Leg::Rejected([400, 404, 413, 429, 500, 502, 503, 504][random.random_range(0..8)]),
    }
}

fn step(corridor: &mut Corridor, random: &mut SmallRng) {
    match random.random_range(0..6) {
        0 => corridor.leg_ends(Role::Prefill, Leg::Served),
        1 => {
            let failure = random_failure(random);
            corridor.leg_ends(Role::Prefill, failure);
        }
        2 => {
            let failure = random_failure(random);
            corridor.leg_ends(Role::Decode, failure);
        }
        3 if corridor.live[1] => {
            // Decode's head has come, and with it perhaps its first byte.
            corridor.course.decode(Leg::Served);
            corridor.obey();
            if !corridor.is_over()
                && corridor.course.verdict(corridor.allowed) == Verdict::Respond
                && random.random()
            {
                corridor.course.commit();
                corridor.bytes_sent = true;
            }
        }
        4 if corridor.bytes_sent => corridor.end(Ended::Answered),
        5 if random.random_ratio(1, 10) => corridor.end(Ended::Left),
        _ => {}
    }
}

#[test]
fn every_sequence_of_events_ends_once_with_every_leg_ended_and_no_room_used_twice() {
    let mut random = SmallRng::seed_from_u64(7);
    let (mut retried, mut told) = (0, HashSet::new());
    for _ in 0..200_000 {
        let allowed = Allowance {
            attempts: random.random_range(1..=4),
            budget: random.random(),
            own_rid: random.random(),
        };
        let mut corridor = Corridor::new(allowed);
        for _ in 0..200 {
            step(&mut corridor, &mut random);
            if corridor.is_over() {
                break;
            }
        }
        if !corridor.is_over() {
            // No event for long: a deadline ends it.
            corridor.leg_ends(Role::Decode, Leg::Failed);
            if !corridor.is_over() {
                corridor.end(Ended::Left);
            }
        }
        assert_eq!(corridor.endings.len(), 1, "exactly one outcome");
        assert_eq!(corridor.legs_started, corridor.legs_ended);
        assert!(corridor.course.attempt() <= allowed.attempts);
        assert_eq!(corridor.rooms.len() as u32, corridor.course.attempt());
        if !allowed.budget {
            assert_eq!(corridor.course.attempt(), 1);
        }
        retried += u32::from(corridor.course.attempt() > 1);
        if let Ended::ToldOf(role) = corridor.endings[0] {
            told.insert(role);
        }
    }
    assert!(
        retried > 1000 && told.len() == 2,
        "the events reach what they are there for"
    );
}
