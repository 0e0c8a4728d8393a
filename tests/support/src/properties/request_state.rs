//! The laws of the course of two legs: a small corridor does what the verdicts say, and whatever happens a
//! request ends once, with every leg ended, no room used twice and nothing tried again after the first byte.
//!
//! The bytes: what is allowed, then one event after the other. When they are used up a deadline ends it.

use std::collections::HashSet;

use mini_lb::pd::{Leg, RequestState, RetryRules, Role, Verdict};

use super::decisions::Decisions;

/// How a request ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    Answered,
    ToldOf(Role),
    Left,
}

/// What became of one request.
pub struct Outcome {
    pub ended: Ended,
    pub attempts: u32,
}

pub fn check(bytes: &[u8]) -> Outcome {
    let mut choices = Decisions::new(bytes);
    let attempts = 1 + choices.below(4) as u32;
    let budget = choices.yes();
    let own_rid = choices.yes();
    let mut corridor = Corridor::new(RetryRules { attempts, own_rid }, budget);
    while !corridor.is_over() {
        let Some(event) = choices.next() else {
            corridor.leg_ends(Role::Decode, Leg::Failed);
            if !corridor.is_over() {
                corridor.end(Ended::Left);
            }
            break;
        };
        corridor.step(event, &mut choices);
    }
    corridor.obeys_the_laws()
}

/// A corridor without sockets: it counts what it starts and what it ends.
struct Corridor {
    course: RequestState,
    rules: RetryRules,
    /// Whether the budget of retries has room.
    budget: bool,
    rooms: HashSet<u32>,
    next_room: u32,
    legs_started: u32,
    legs_ended: u32,
    live: [bool; 2],
    bytes_sent: bool,
    /// Whether a worker may have seen the request.
    seen: bool,
    endings: Vec<Ended>,
}

impl Corridor {
    fn new(rules: RetryRules, budget: bool) -> Self {
        let mut corridor = Self {
            course: RequestState::default(),
            rules,
            budget,
            rooms: HashSet::new(),
            next_room: 1,
            legs_started: 0,
            legs_ended: 0,
            live: [false; 2],
            bytes_sent: false,
            seen: false,
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
        self.note(role, leg);
        self.obey();
    }

    fn note(&mut self, role: Role, leg: Leg) {
        self.seen |= leg != Leg::Unsent;
        match role {
            Role::Prefill => self.course.prefill(leg),
            Role::Decode => self.course.decode(leg),
        }
    }

    fn obey(&mut self) {
        match self.course.verdict(self.rules) {
            Verdict::Wait => assert!(!self.bytes_sent && self.live.contains(&true)),
            Verdict::Respond => {}
            Verdict::Retry(role) if !self.budget => self.end(Ended::ToldOf(role)),
            Verdict::Retry(_) => {
                assert!(!self.bytes_sent, "nothing is tried again after that");
                // A leg that is still under way may have been read.
                let seen = self.seen || self.live.contains(&true);
                assert!(!(self.rules.own_rid && seen), "an id is used once");
                self.seen = seen;
                self.end_legs();
                self.course.retry();
                self.start();
            }
            Verdict::Fail(role) => {
                assert!(!(self.bytes_sent && role == Role::Prefill));
                self.end(Ended::ToldOf(role));
            }
        }
    }

    fn step(&mut self, event: u8, choices: &mut Decisions<'_>) {
        match event % 6 {
            0 => self.leg_ends(Role::Prefill, Leg::Served),
            1 => self.leg_ends(Role::Prefill, failure(choices)),
            2 => self.leg_ends(Role::Decode, failure(choices)),
            3 if self.live[1] => {
                // Decode's head has come, and with it perhaps its first byte.
                self.note(Role::Decode, Leg::Served);
                self.obey();
                let responds = || self.course.verdict(self.rules) == Verdict::Respond;
                if !self.is_over() && responds() && choices.yes() {
                    self.course.commit();
                    self.bytes_sent = true;
                }
            }
            4 if self.bytes_sent => self.end(Ended::Answered),
            5 if choices.below(10) == 9 => self.end(Ended::Left),
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        !self.endings.is_empty()
    }

    fn obeys_the_laws(self) -> Outcome {
        let [ended] = self.endings[..] else {
            panic!("exactly one outcome: {:?}", self.endings);
        };
        assert_eq!(self.legs_started, self.legs_ended);
        let attempts = self.course.attempt();
        assert!(attempts <= self.rules.attempts);
        assert_eq!(self.rooms.len() as u32, attempts);
        assert_eq!(self.legs_started, 2 * attempts);
        assert!(self.budget || attempts == 1);
        assert_eq!(self.course.is_committed(), self.bytes_sent);
        assert!(self.bytes_sent || ended != Ended::Answered);
        Outcome { ended, attempts }
    }
}

fn failure(choices: &mut Decisions<'_>) -> Leg {
    match choices.below(4) {
        0 => Leg::Unsent,
        1 => Leg::Lost,
        2 => Leg::Failed,
        _ => Leg::Rejected([400, 404, 413, 429, 500, 502, 503, 504][choices.below(8)]),
    }
}
