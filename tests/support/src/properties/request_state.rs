//! Properties of `pd::RequestState`: a small proxy acts on its verdicts, and after any sequence of events a
//! request has ended once, every leg has ended, no room was used twice and nothing was retried after the first byte.
//!
//! Input: the retry rules, then one byte for each event. At the end of the bytes a deadline ends the request.

use std::collections::HashSet;

use mini_lb::pd::{Leg, Order, RequestState, RetryRules, Role, Verdict};

use super::decisions::Decisions;

/// Events from here on are those of an idle connection that was closed.
const RARE: u8 = 240;

/// How a request ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    Answered,
    ToldOf(Role),
    Left,
}

/// The outcome of one request.
pub struct Outcome {
    pub ended: Ended,
    pub attempts: u32,
}

pub fn check(bytes: &[u8]) -> Outcome {
    let mut choices = Decisions::new(bytes);
    let attempts = 1 + choices.below(4) as u32;
    let budget = choices.yes();
    let own_rid = choices.yes();
    let rules = RetryRules {
        attempts,
        own_rid,
        order: Order::Together,
    };
    let mut corridor = Corridor::new(rules, budget);
    while !corridor.is_over() {
        let Some(event) = choices.byte() else {
            corridor.leg_ends(Role::Decode, Leg::Failed);
            if !corridor.is_over() {
                corridor.end(Ended::Left);
            }
            break;
        };
        corridor.step(event, &mut choices);
    }
    corridor.check_invariants()
}

/// A proxy without sockets: it counts the legs that it starts and ends.
struct Corridor {
    state: RequestState,
    rules: RetryRules,
    /// Whether the budget of retries has room.
    budget: bool,
    rooms: HashSet<u32>,
    next_room: u32,
    legs_started: u32,
    legs_ended: u32,
    live: [bool; 2],
    bytes_sent: bool,
    /// Whether a worker may have read the request.
    seen: bool,
    /// How often an attempt has begun again.
    begun_again: u32,
    endings: Vec<Ended>,
}

impl Corridor {
    fn new(rules: RetryRules, budget: bool) -> Self {
        let mut corridor = Self {
            state: RequestState::default(),
            rules,
            budget,
            rooms: HashSet::new(),
            next_room: 1,
            legs_started: 0,
            legs_ended: 0,
            live: [false; 2],
            bytes_sent: false,
            seen: false,
            begun_again: 0,
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
            Role::Prefill => self.state.prefill(leg),
            Role::Decode => self.state.decode(leg),
        }
    }

    fn obey(&mut self) {
        match self.state.verdict(self.rules) {
            Verdict::Wait => assert!(!self.bytes_sent && self.live.contains(&true)),
            Verdict::Respond => {}
            Verdict::Again(role) => {
                assert!(!self.bytes_sent, "nothing is tried again after that");
                assert!(!self.rules.own_rid, "an id is used once");
                self.begun_again += 1;
                self.seen = true;
                self.end_legs();
                self.state.begin_again(role);
                assert!(self.state.needs_new_connections());
                self.start();
            }
            Verdict::Retry(role) if !self.budget => self.end(Ended::ToldOf(role)),
            Verdict::Retry(_) => {
                assert!(!self.bytes_sent, "nothing is tried again after that");
                // A leg that is being sent may have been read.
                let seen = self.seen || self.live.contains(&true);
                assert!(!(self.rules.own_rid && seen), "an id is used once");
                self.seen = seen;
                self.end_legs();
                self.state.retry();
                self.start();
            }
            Verdict::Alone => unreachable!("the legs are sent together"),
            Verdict::Fail(role) => {
                assert!(!(self.bytes_sent && role == Role::Prefill));
                self.end(Ended::ToldOf(role));
            }
        }
    }

    fn step(&mut self, event: u8, choices: &mut Decisions<'_>) {
        match event % 6 {
            0 => self.leg_ends(Role::Prefill, Leg::Served),
            // Rare, and no choice of its own, so that the kept sequences mean what they meant.
            1 if event >= RARE => self.leg_ends(Role::Prefill, Leg::Stale),
            2 if event >= RARE => self.leg_ends(Role::Decode, Leg::Stale),
            1 => self.leg_ends(Role::Prefill, failure(choices)),
            2 => self.leg_ends(Role::Decode, failure(choices)),
            3 if self.live[1] => {
                // Decode's head has arrived, perhaps with the first byte of the body.
                self.note(Role::Decode, Leg::Served);
                self.obey();
                let verdict = self.state.verdict(self.rules);
                let may_go_on = matches!(verdict, Verdict::Respond | Verdict::Wait);
                if !self.is_over() && may_go_on && choices.yes() {
                    self.first_byte();
                }
            }
            4 if self.bytes_sent => self.end(Ended::Answered),
            5 if choices.below(10) == 9 => self.end(Ended::Left),
            _ => {}
        }
    }

    fn first_byte(&mut self) {
        self.state.begin();
        self.obey();
        if !self.is_over() && self.state.verdict(self.rules) == Verdict::Respond {
            self.state.commit();
            self.bytes_sent = true;
        }
    }

    fn is_over(&self) -> bool {
        !self.endings.is_empty()
    }

    fn check_invariants(self) -> Outcome {
        let [ended] = self.endings[..] else {
            panic!("exactly one outcome: {:?}", self.endings);
        };
        assert_eq!(self.legs_started, self.legs_ended);
        let attempts = self.state.attempt();
        assert!(attempts <= self.rules.attempts);
        assert!(self.begun_again <= 1);
        let sendings = attempts + self.begun_again;
        assert_eq!(self.rooms.len() as u32, sendings);
        assert_eq!(self.legs_started, 2 * sendings);
        assert!(self.budget || attempts == 1);
        assert_eq!(self.state.is_committed(), self.bytes_sent);
        assert!(self.bytes_sent || ended != Ended::Answered);
        Outcome { ended, attempts }
    }
}

fn failure(choices: &mut Decisions<'_>) -> Leg {
    match choices.below(4) {
        0 => Leg::Unsent,
        1 => Leg::Lost,
        2 => Leg::Failed,
        _ => match [400, 404, 413, 429, 500, 502, 503, 504][choices.below(8)] {
            504 => Leg::Aborted(500),
            status => Leg::Rejected(status),
        },
    }
}
