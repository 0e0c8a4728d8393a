//! The cost of one unit of work, compared with a recorded baseline: allocations, allocated bytes,
//! system calls. Never times, which depend on the machine and its other load.
//!
//! | file | what lives there |
//! |---|---|
//! | `units` | the units of work, and the workers and clients that take one step at a time |
//! | `allocated` | the balancer as a library on its own thread, and the allocations of that thread |
//! | `gathered` | events that are gathered from several samples, and their allocations |
//! | `traced` | the binary and its system calls |
//! | `support::baseline` | the recorded counts, and how far a new count may be from them |
//!
//! A step is taken only when the balancer is idle. So two pieces never arrive together by chance, and the counts
//! are those of the worst case, in which each piece wakes the balancer.
//!
//! These tests are a crate by themselves, because counting allocations replaces the global allocator.
//!
//! To record the counts after an improvement, or after a feature that is worth its cost:
//!
//! ```sh
//! MINI_LB_RECORD_COUNTS=1 cargo test --test cost_baseline
//! ```

#![allow(clippy::unwrap_used)]

mod allocated;
mod gathered;
mod traced;
mod units;

use std::collections::BTreeMap;
use std::io::{Write, stderr};

use allocated::Allocated;
use support::Worker;
use support::baseline::{self, Counts, distance};
use traced::Traced;
use units::{Lockstep, Unit};

/// Number of counted rounds; the result is their median.
const ROUNDS: usize = 9;

/// A balancer whose work can be counted.
trait Watched {
    /// Returns when the balancer waits and has no work left.
    async fn quiet(&self);

    /// Pauses the balancer until the guard is dropped, if that is possible.
    async fn hold(&self) -> impl Sized;

    /// Returns when a paused balancer has woken for the last input.
    async fn woken(&self);

    /// The counts since the start, by name.
    async fn totals(&self) -> Counts;
}

/// The median over the rounds of the counts per unit.
async fn per_unit(lockstep: &mut Lockstep<impl Watched>, unit: &Unit) -> Counts {
    let mut live = lockstep.begin(unit).await;
    // A first round, uncounted: connections open, tables and buffers grow.
    lockstep.round(unit, &mut live).await;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let before = lockstep.watched.totals().await;
        let units = lockstep.round(unit, &mut live).await as f64;
        let after = lockstep.watched.totals().await;
        let before = |name: &str| before.get(name).copied().unwrap_or(0.0);
        let spent = after
            .into_iter()
            .map(|(name, count)| ((count - before(&name)) / units, name));
        rounds.push(spent.map(|(count, name)| (name, count)).collect::<Counts>());
    }
    lockstep.end(live).await;
    let names = rounds.last().into_iter().flat_map(BTreeMap::keys);
    let median = |name: &String| {
        let of = |round: &Counts| round.get(name).copied().unwrap_or(0.0);
        let mut counts: Vec<f64> = rounds.iter().map(of).collect();
        counts.sort_by(f64::total_cmp);
        (name.clone(), counts[ROUNDS / 2])
    };
    names.map(median).collect()
}

async fn allocations(of: &str, unit: Unit) -> Counts {
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let watched = Allocated::start(&prefill, &decode).await;
    let address = watched.address;
    let mut lockstep = Lockstep::new(watched, Some(prefill), decode, address, 1).await;
    let counts = per_unit(&mut lockstep, &unit).await;
    baseline::check(&format!("allocations, {of}"), &counts);
    counts
}

/// The allocations of a plain proxy, for comparison.
async fn allocations_of_pingora(of: &str, unit: Unit) {
    let worker = Worker::listen().await;
    let watched = Allocated::plain(&worker);
    let address = watched.address;
    let mut lockstep = Lockstep::new(watched, None, worker, address, 1).await;
    let counts = per_unit(&mut lockstep, &unit).await;
    baseline::check(&format!("allocations, {of}, Pingora alone"), &counts);
}

async fn system_calls(of: &str, unit: Unit, clients: usize) {
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let Some(watched) = Traced::start(&prefill, &decode).await else {
        // Written directly, because the test harness hides the output of a test that passes.
        let _ = writeln!(stderr(), "not counted, ptrace is not permitted: {of}");
        return;
    };
    let address = watched.address;
    let mut lockstep = Lockstep::new(watched, Some(prefill), decode, address, clients).await;
    let counts = per_unit(&mut lockstep, &unit).await;
    baseline::check(&format!("system calls, {of}"), &counts);
}

#[tokio::test]
async fn a_small_chat_allocates_no_more_than_recorded() {
    allocations("small chat", Unit::small_chat()).await;
}

#[tokio::test]
async fn a_merged_answer_allocates_no_more_than_recorded() {
    allocations("/generate with 2,000 logprobs", Unit::merged_answer()).await;
}

#[tokio::test]
async fn an_event_that_passes_allocates_no_more_than_recorded() {
    allocations("event of a streamed chat", Unit::passing_events()).await;
}

#[tokio::test]
async fn a_merged_event_allocates_no_more_than_recorded() {
    allocations(
        "event of a stream with 2,000 logprobs",
        Unit::merged_events(),
    )
    .await;
}

#[tokio::test]
async fn a_long_prompt_allocates_no_more_than_recorded() {
    let counts = allocations("prompt of 1 MiB", Unit::long_prompt()).await;
    // A bound that recording cannot change: one copy of the body, and one buffer that the socket is read into.
    assert!(counts["bytes"] < 3.0 * f64::from(1 << 20), "{counts:?}");
}

/// The cost of Pingora alone, which changes when Pingora does.
#[tokio::test]
async fn pingora_alone_allocates_as_recorded() {
    allocations_of_pingora("small chat", Unit::small_chat()).await;
    allocations_of_pingora("event of a streamed chat", Unit::passing_events()).await;
    allocations_of_pingora("prompt of 1 MiB", Unit::long_prompt()).await;
}

#[tokio::test]
async fn a_small_chat_makes_no_more_system_calls_than_recorded() {
    system_calls("small chat", Unit::small_chat(), 1).await;
}

#[tokio::test]
async fn small_chats_at_once_make_no_more_system_calls_than_recorded() {
    system_calls("small chat, 8 at once", Unit::small_chat(), 8).await;
}

#[tokio::test]
async fn an_event_that_passes_makes_no_more_system_calls_than_recorded() {
    system_calls("event of a streamed chat", Unit::passing_events(), 1).await;
}

#[tokio::test]
async fn events_at_once_make_no_more_system_calls_than_recorded() {
    let unit = Unit::passing_events();
    system_calls("event of a streamed chat, 8 at once", unit, 8).await;
}

#[tokio::test]
async fn a_merged_event_makes_no_more_system_calls_than_recorded() {
    system_calls(
        "event of a stream with 2,000 logprobs",
        Unit::merged_events(),
        1,
    )
    .await;
}

#[test]
fn a_count_is_judged_by_its_distance_from_the_recorded_one() {
    let (request, event) = ("small chat", "event of a streamed chat");
    for (unit, name, recorded, count, is_far) in [
        (request, "all", 9.0, 9.0, false),
        (request, "all", 9.0, 9.2, false),
        (request, "all", 9.0, 10.0, true),
        (request, "allocations", 160.0, 162.0, false),
        (request, "allocations", 160.0, 163.0, true),
        (event, "allocations", 9.0, 10.0, true),
        (event, "bytes", 2_000.0, 2_050.0, false),
        (request, "bytes", 2_000_000.0, 2_030_000.0, true),
        (request, "instructions", 100_000.0, 104_000.0, false),
        (request, "instructions", 100_000.0, 106_000.0, true),
    ] {
        let judged = |count| distance(unit, name, Some(recorded), count);
        assert_eq!(judged(count).is_some(), is_far, "{unit} {name} {count}");
        let less = 2.0 * recorded - count;
        let is_won = is_far && cfg!(debug_assertions);
        assert_eq!(judged(less).is_some(), is_won, "{unit} {name} {less}");
    }
    assert!(distance(request, "all", None, 9.0).is_some());
}
