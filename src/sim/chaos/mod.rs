//! Fault injection: which rule of a worker's script applies to which request.
//!
//! | file | what lives there |
//! |---|---|
//! | `rule` | the language of scripts |
//! | `fault` | what an action does to a request and its response |
//! | `body` | a stream with a fault, event by event |
//! | `io` | a connection with a fault, below hyper |
//!
//! What a fault means within an item is `engine`'s. Deterministic: no clock and no global random generator, so that
//! the same script and the same order of requests give the same faults.

mod body;
mod fault;
mod io;
mod rule;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

pub use rule::{Action, End, Match, Rule, Script, ScriptError};

pub(crate) use body::FaultyEvents;
pub(crate) use fault::Fault;
pub(crate) use io::{ChaosIo, ConnectionFaults};

use super::Role;

/// The request header that selects the rules with its value in `match.header`.
pub(crate) const FAULT_HEADER: &str = "x-sim-fault";

/// The part of a fault that acts within the engine, on every item of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ItemFault {
    #[default]
    None,
    /// Ends with finish reason `abort` after so many tokens.
    AbortAfter(usize),
    /// The KV transfer fails.
    LoseKv,
    /// The worker goes down during the KV transfer.
    CrashInTransfer,
}

/// The script of one worker, and how often each of its rules matched and fired.
pub(crate) struct Chaos {
    role: Role,
    state: Mutex<State>,
    /// How long the API's listener stays closed, for the latest `refuse`; none before the first.
    refusal: watch::Sender<Option<Duration>>,
}

struct State {
    script: Script,
    /// For each rule: how many requests matched, and for how many of them it fired.
    counts: Vec<(u64, u64)>,
}

impl Chaos {
    pub(crate) fn new(role: Role, script: Script) -> Chaos {
        Chaos {
            role,
            state: Mutex::new(State::new(script)),
            refusal: watch::Sender::new(None),
        }
    }

    /// Replaces the script. All counts start at 0.
    pub(crate) fn load(&self, script: Script) {
        *self.state() = State::new(script);
    }

    /// The fault of the first rule that fires for a request. A rule counts only requests for which no rule before
    /// it fired.
    pub(crate) fn fault_for(&self, path: &str, header: Option<&str>) -> Option<Fault> {
        let mut state = self.state();
        let State { script, counts } = &mut *state;
        for (index, (rule, (matched, fired))) in script.rules.iter().zip(counts).enumerate() {
            let wanted = &rule.matching;
            if !wanted.matches(self.role, path, header) {
                continue;
            }
            *matched += 1;
            let draw = draw(script.seed, index as u64, *matched);
            if wanted.fires(*matched, *fired, draw) {
                *fired += 1;
                return Some(Fault {
                    rule: rule.name().to_owned(),
                    action: rule.action.clone(),
                });
            }
        }
        None
    }

    /// Closes the API's listener for a time.
    pub(crate) fn refuse(&self, time: Duration) {
        self.refusal.send_replace(Some(time));
    }

    /// Changes with every [`Chaos::refuse`].
    pub(crate) fn refusals(&self) -> watch::Receiver<Option<Duration>> {
        self.refusal.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(script: Script) -> State {
        let counts = vec![(0, 0); script.rules.len()];
        State { script, counts }
    }
}

/// A number in `0.0..1.0` for the n-th match of a rule.
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (SplitMix64's finalizer).
fn draw(seed: u64, rule: u64, matched: u64) -> f64 {
    let mut mixed = seed;
    for word in [rule, matched] {
        mixed = mixed.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    // 53 bits are what a double holds.
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Numbers of the requests, from 1, for which the rule fires.
    fn fired(matching: &str, seed: u64, requests: u64) -> Vec<u64> {
        let text = format!("{{seed: {seed}, rules: [{{match: {matching}, do: reset}}]}}");
        let chaos = Chaos::new(Role::Decode, Script::parse(&text).unwrap());
        (1..=requests)
            .filter(|_| chaos.fault_for("/generate", None).is_some())
            .collect()
    }

    #[test]
    fn counts_decide_for_which_requests_a_rule_fires() {
        for (matching, wanted) in [
            ("{}", vec![1, 2, 3, 4, 5, 6]),
            ("{every: 2}", vec![2, 4, 6]),
            ("{after: 4}", vec![5, 6]),
            ("{times: 1}", vec![1]),
            ("{after: 1, every: 2, times: 2}", vec![3, 5]),
            ("{path: /health}", vec![]),
            ("{role: prefill}", vec![]),
            ("{header: x}", vec![]),
            ("{path: /generate, role: decode, times: 2}", vec![1, 2]),
        ] {
            assert_eq!(fired(matching, 1, 6), wanted, "{matching}");
        }
    }

    #[test]
    fn the_same_seed_fires_for_the_same_requests() {
        let half = "{probability: 0.5}";
        assert_eq!(fired(half, 7, 1000), fired(half, 7, 1000));
        assert_ne!(fired(half, 7, 1000), fired(half, 8, 1000));
        let count = fired(half, 7, 1000).len();
        assert!((400..600).contains(&count), "{count} of 1000");
    }

    #[test]
    fn a_request_that_names_a_fault_gets_only_that_one() {
        let text = "rules: [{do: silence}, {match: {header: late}, do: {delay_head: {ms: 1}}}]";
        let chaos = Chaos::new(Role::Prefill, Script::parse(text).unwrap());
        let action = |header| chaos.fault_for("/", header).map(|fault| fault.action);
        assert_eq!(action(Some("late")), Some(Action::DelayHead { ms: 1 }));
        assert_eq!(action(Some("other")), None);
        assert_eq!(action(None), Some(Action::Silence));
    }

    #[test]
    fn a_new_script_counts_from_zero() {
        let script = Script::parse("rules: [{match: {times: 1}, do: reset}]").unwrap();
        let chaos = Chaos::new(Role::Prefill, script.clone());
        assert!(chaos.fault_for("/", None).is_some());
        assert!(chaos.fault_for("/", None).is_none());
        chaos.load(script);
        assert!(chaos.fault_for("/", None).is_some());
        chaos.load(Script::default());
        assert!(chaos.fault_for("/", None).is_none());
    }
}
