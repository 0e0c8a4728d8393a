//! The table of results: scenarios and readings down, balancers across.

use std::collections::BTreeMap;

use mini_lb::bench::table::{columns, number};
use serde_json::{Value, json};

use super::rounds::{CAP, NewRoom, Round};
use super::scenarios::{Reading, Scenario};
use crate::programs::machine::machine;

/// All rounds of one scenario with one balancer.
#[derive(Debug, Clone)]
pub struct Rounds {
    pub scenario: &'static str,
    pub target: String,
    /// The rounds, or the reason why there are none.
    pub rounds: Result<Vec<Round>, String>,
}

/// The whole table.
pub fn table(scenarios: &[Scenario], targets: &[String], all: &[Rounds], wanted: usize) -> String {
    let mut rows = vec![vec!["milliseconds, p50 / p99".to_owned()]];
    rows[0].extend(targets.iter().cloned());
    for scenario in scenarios {
        let of = |target: &String| {
            all.iter()
                .find(|rounds| rounds.scenario == scenario.name && rounds.target == *target)
        };
        for reading in scenario.readings {
            let mut row = vec![format!("{}: {}", scenario.name, what(*reading))];
            row.extend(targets.iter().map(|target| match of(target) {
                Some(Rounds {
                    rounds: Ok(rounds), ..
                }) if *reading == scenario.readings[0] => {
                    cell(*reading, rounds) + &fewer(rounds.len(), wanted)
                }
                Some(Rounds {
                    rounds: Ok(rounds), ..
                }) => cell(*reading, rounds),
                Some(Rounds {
                    rounds: Err(error), ..
                }) => match error.rsplit_once("serves nothing of it: ") {
                    Some((_, got)) => format!("not served: {got}"),
                    None => "failed".to_owned(),
                },
                None => "-".to_owned(),
            }));
            rows.push(row);
        }
    }
    columns(&rows)
}

/// All measurements as JSON.
pub fn as_json(scenarios: &[Scenario], all: &[Rounds]) -> Value {
    let rounds: Vec<Value> = all
        .iter()
        .map(|rounds| match &rounds.rounds {
            Ok(read) => {
                json!({"scenario": rounds.scenario, "target": rounds.target, "rounds": read})
            }
            Err(error) => {
                json!({"scenario": rounds.scenario, "target": rounds.target, "error": error})
            }
        })
        .collect();
    let about: BTreeMap<&str, &str> = scenarios
        .iter()
        .map(|scenario| (scenario.name, scenario.about))
        .collect();
    json!({"machine": machine(&[]), "cap_ms": CAP.as_millis(), "scenarios": about, "readings": rounds})
}

fn what(reading: Reading) -> &'static str {
    match reading {
        Reading::Client => "client knows",
        Reading::PrefillEnds => "prefill's socket closed",
        Reading::DecodeEnds => "decode's socket closed",
        Reading::Served => "served",
        Reading::PrefillRequests => "requests at prefill",
        Reading::DecodeRequests => "requests at decode",
        Reading::Retry => "tried again",
        Reading::PromptLogprobs => "are there",
        Reading::Rooms => "rooms",
        Reading::OneForAll => "decode got one prompt's blocks for all",
    }
}

fn cell(reading: Reading, all: &[Round]) -> String {
    let reached: Vec<&Round> = all.iter().filter(|round| round.is_reached).collect();
    if reached.is_empty() {
        return format!("not reached: {}", outcomes(all.iter(), all.len()));
    }
    let times = |of: fn(&Round) -> Option<f64>| times(reached.iter().map(|round| of(round)));
    let mean = |of: fn(&Round) -> usize| {
        let sum: usize = reached.iter().map(|round| of(round)).sum();
        number(sum as f64 / reached.len() as f64)
    };
    match reading {
        Reading::Client => {
            let mut text = format!(
                "{}  {}",
                times(|round| round.client_ms),
                outcomes(reached.iter().copied(), all.len())
            );
            let unreached = all.iter().filter(|round| !round.is_reached);
            if reached.len() < all.len() {
                text += &format!(", not reached: {}", outcomes(unreached, all.len()));
            }
            text
        }
        Reading::PrefillEnds => times(|round| round.prefill_ends_ms),
        Reading::DecodeEnds => times(|round| round.decode_ends_ms),
        Reading::Served => {
            let served = reached.iter().filter(|round| round.is_served).count();
            format!("{served} of {}", reached.len())
        }
        Reading::PrefillRequests => mean(|round| round.prefill_requests),
        Reading::DecodeRequests => mean(|round| round.decode_requests),
        Reading::Retry => {
            let count = |kind| {
                let is = |round: &&&Round| round.retried == Some(kind);
                reached.iter().filter(is).count()
            };
            match (count(NewRoom::Yes), count(NewRoom::No)) {
                (0, 0) => "never".to_owned(),
                (new, 0) => format!("{new}, in new rooms"),
                (0, same) => format!("{same}, IN THE SAME ROOM"),
                (new, same) => format!("{new} in new rooms, {same} IN THE SAME"),
            }
        }
        Reading::PromptLogprobs => {
            let there = reached.iter().filter(|round| round.has_prompt_logprobs);
            match there.count() {
                0 => "lost".to_owned(),
                all if all == reached.len() => "there".to_owned(),
                some => format!("there in {some} of {}", reached.len()),
            }
        }
        Reading::Rooms => mean(|round| round.rooms),
        Reading::OneForAll => {
            let wrong = reached.iter().filter(|round| round.one_for_all).count();
            format!("{wrong} of {}", reached.len())
        }
    }
}

/// The cell of a scenario that ended early.
fn fewer(rounds: usize, wanted: usize) -> String {
    match rounds < wanted {
        true => format!(" (n={rounds})"),
        false => String::new(),
    }
}

/// Median and 99th percentile; a round that hangs is longer than any other.
fn times(all: impl Iterator<Item = Option<f64>>) -> String {
    let mut all: Vec<f64> = all.map(|ms| ms.unwrap_or(f64::INFINITY)).collect();
    all.sort_by(f64::total_cmp);
    let nth = |share: usize| all.get((all.len() * share).div_ceil(100).saturating_sub(1));
    let text = |ms: Option<&f64>| match ms {
        Some(ms) if ms.is_finite() => number(*ms),
        Some(_) => format!(">{}", number(CAP.as_secs_f64() * 1e3)),
        None => "-".to_owned(),
    };
    match all.first() {
        Some(first) if first.is_infinite() => "never".to_owned(),
        _ => format!("{} / {}", text(nth(50)), text(nth(99))),
    }
}

/// The clients' outcomes, the most frequent first, with counts when there are several.
fn outcomes<'a>(rounds: impl Iterator<Item = &'a Round>, of: usize) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for round in rounds {
        let outcome = round.outcome.as_deref().unwrap_or("left");
        *counts.entry(outcome).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let each = counts.iter().map(|(outcome, count)| match *count == of {
        true => (*outcome).to_owned(),
        false => format!("{outcome} x{count}"),
    });
    each.collect::<Vec<_>>().join(", ")
}
