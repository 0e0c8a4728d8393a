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
    let counts = allocated(&unit).await;
    baseline::check(&format!("allocations, {of}"), &counts);
    counts
}

async fn allocated(unit: &Unit) -> Counts {
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let watched = Allocated::start(&prefill, &decode).await;
    let address = watched.address;
    let mut lockstep = Lockstep::new(watched, Some(prefill), decode, address, 1).await;
    per_unit(&mut lockstep, unit).await
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
    match traced(&unit, clients).await {
        Some(counts) => baseline::check(&format!("system calls, {of}"), &counts),
        None => not_counted(of),
    }
}

fn not_counted(of: &str) {
    // Written directly, because the test harness hides the output of a test that passes.
    let _ = writeln!(stderr(), "not counted, ptrace is not permitted: {of}");
}

/// The system calls of a unit; `None` where they cannot be traced.
async fn traced(unit: &Unit, clients: usize) -> Option<Counts> {
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let watched = Traced::start(&prefill, &decode).await?;
    let address = watched.address;
    let mut lockstep = Lockstep::new(watched, Some(prefill), decode, address, clients).await;
    Some(per_unit(&mut lockstep, unit).await)
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

/// Without a baseline: it is one cost against the other. The stream of one sample is not gathered, and costs much less.
#[tokio::test]
async fn four_samples_allocate_at_most_2_1_times_of_two() {
    let two = allocated(&Unit::samples(2)).await;
    let four = allocated(&Unit::samples(4)).await;
    for name in ["allocations", "bytes"] {
        let ratio = four[name] / two[name];
        println!("{name} of four samples: {ratio:.2} times those of two");
        assert!(ratio < 2.1, "{name}: {two:?} {four:?}");
    }
}

/// Bytes that the balancer holds for a client with a live stream of this many samples, and for its connection.
async fn held(samples: usize) -> i64 {
    let unit = Unit::samples(samples);
    let Unit::Samples {
        request, events, ..
    } = &unit
    else {
        unreachable!("a unit of samples");
    };
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let watched = Allocated::start(&prefill, &decode).await;
    let address = watched.address;
    let mut lockstep = Lockstep::new(watched, Some(prefill), decode, address, 1).await;
    lockstep.round(&unit, &mut []).await;
    let before = lockstep.watched.held().await;
    lockstep.connect(address).await;
    let mut decodes = lockstep.begin_samples(request, samples).await;
    lockstep.events(&mut decodes, &events[..2]).await;
    let live = lockstep.watched.held().await;
    lockstep.events(&mut decodes, &events[2..]).await;
    let words = samples * (events.len() - 1);
    lockstep.end_samples(decodes, words).await;
    live - before
}

#[tokio::test]
async fn live_streams_of_four_samples_hold_less_than_those_of_four_requests() {
    let (one, four) = (held(1).await, held(4).await);
    println!("bytes held for a live stream of one sample: {one}, of four: {four}");
    assert!(four < 4 * one, "{four} and {one} bytes");
}

#[tokio::test]
async fn four_samples_make_fewer_system_calls_than_four_requests() {
    let Some(one) = traced(&Unit::samples(1), 1).await else {
        return not_counted("four samples");
    };
    let four = traced(&Unit::samples(4), 1).await.unwrap();
    println!("one sample: {one:?}, four: {four:?}");
    assert!(four["all"] < 4.0 * one["all"], "{one:?} {four:?}");
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
