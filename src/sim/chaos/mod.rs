//! Faults on purpose: which rule strikes which request of a worker.
//!
//! `rule` is the language, `strike` what an action does to a request, `body` shapes a stream's events,
//! `io` is the raw writer under hyper. What a fault means within an item is `engine`'s. Nothing is drawn from a clock or a
//! global generator: the same script and the same order of requests strike the same requests.

mod body;
mod io;
mod rule;
mod strike;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

pub use rule::{Action, End, Match, Rule, Script, ScriptError};

pub(crate) use body::Shaped;
pub(crate) use io::{ChaosIo, Orders};
pub(crate) use strike::Fault;

use super::Role;

/// The header that asks for the rules that name its value.
pub(crate) const FAULT_HEADER: &str = "x-sim-fault";

/// What an item does wrong in the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ItemFault {
    #[default]
    None,
    /// Ends with finish reason `abort` after so many tokens.
    AbortAfter(usize),
    /// The KV transfer fails.
    LoseKv,
    /// The worker dies during the KV transfer.
    CrashInTransfer,
}

/// The script of one worker, and how often its rules matched.
pub(crate) struct Chaos {
    role: Role,
    state: Mutex<State>,
    /// The latest order to stop listening for a time; none yet.
    refusal: watch::Sender<Option<Duration>>,
}

struct State {
    script: Script,
    /// Per rule: requests that matched, and strikes.
    counts: Vec<(u64, u64)>,
}

/// A rule that strikes a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Strike {
    pub(crate) rule: String,
    pub(crate) action: Action,
}

impl Chaos {
    pub(crate) fn new(role: Role, script: Script) -> Chaos {
        Chaos {
            role,
            state: Mutex::new(State::new(script)),
            refusal: watch::Sender::new(None),
        }
    }

    /// Another script from here on; counting begins anew.
    pub(crate) fn load(&self, script: Script) {
        *self.state() = State::new(script);
    }

    /// The first rule that strikes a request. A rule counts the requests that no rule before it struck.
    pub(crate) fn strike(&self, path: &str, header: Option<&str>) -> Option<Strike> {
        let mut state = self.state();
        let State { script, counts } = &mut *state;
        for (index, (rule, (seen, strikes))) in script.rules.iter().zip(counts).enumerate() {
            let wanted = &rule.matching;
            if !wanted.concerns(self.role, path, header) {
                continue;
            }
            *seen += 1;
            let draw = draw(script.seed, index as u64, *seen);
            if wanted.strikes(*seen, *strikes, draw) {
                *strikes += 1;
                return Some(Strike {
                    rule: rule.name().to_owned(),
                    action: rule.action.clone(),
                });
            }
        }
        None
    }

    /// Nobody is to connect for a time.
    pub(crate) fn refuse(&self, time: Duration) {
        self.refusal.send_replace(Some(time));
    }

    /// Orders to stop listening.
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

/// A number of 0..1 for the n-th match of a rule.
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (SplitMix64's finalizer).
fn draw(seed: u64, rule: u64, seen: u64) -> f64 {
    let mut mixed = seed;
    for word in [rule, seen] {
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

    /// Which of `requests` requests are struck, from 1.
    fn struck(matching: &str, seed: u64, requests: u64) -> Vec<u64> {
        let text = format!("{{seed: {seed}, rules: [{{match: {matching}, do: reset}}]}}");
        let chaos = Chaos::new(Role::Decode, Script::parse(&text).unwrap());
        (1..=requests)
            .filter(|_| chaos.strike("/generate", None).is_some())
            .collect()
    }

    #[test]
    fn counts_say_which_requests_are_struck() {
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
            assert_eq!(struck(matching, 1, 6), wanted, "{matching}");
        }
    }

    #[test]
    fn the_same_seed_strikes_the_same_requests() {
        let half = "{probability: 0.5}";
        assert_eq!(struck(half, 7, 1000), struck(half, 7, 1000));
        assert_ne!(struck(half, 7, 1000), struck(half, 8, 1000));
        let count = struck(half, 7, 1000).len();
        assert!((400..600).contains(&count), "{count} of 1000");
    }

    #[test]
    fn a_request_that_names_a_fault_gets_that_one_only() {
        let text = "rules: [{do: silence}, {match: {header: late}, do: {delay_head: {ms: 1}}}]";
        let chaos = Chaos::new(Role::Prefill, Script::parse(text).unwrap());
        let action = |header| chaos.strike("/", header).map(|strike| strike.action);
        assert_eq!(action(Some("late")), Some(Action::DelayHead { ms: 1 }));
        assert_eq!(action(Some("other")), None);
        assert_eq!(action(None), Some(Action::Silence));
    }

    #[test]
    fn a_new_script_counts_anew() {
        let script = Script::parse("rules: [{match: {times: 1}, do: reset}]").unwrap();
        let chaos = Chaos::new(Role::Prefill, script.clone());
        assert!(chaos.strike("/", None).is_some());
        assert!(chaos.strike("/", None).is_none());
        chaos.load(script);
        assert!(chaos.strike("/", None).is_some());
        chaos.load(Script::default());
        assert!(chaos.strike("/", None).is_none());
    }
}
