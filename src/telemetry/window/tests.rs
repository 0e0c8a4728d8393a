use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::fleet::Worker;
use crate::pd::Route;
use crate::telemetry::{Cause, FailedAttempt, Pair, Part};

/// A stream of 11 events of one pair: prefill responds after 30 ms, the first byte comes after 40, the last after 140.
fn stream(prefill: u16, decode: u16) -> Record {
    let started = Instant::now();
    let mut record = Record::new(started);
    let at = |ms| Some(started + Duration::from_millis(ms));
    record.route = Some(Route::Generate);
    record.streamed = true;
    record.events = 11;
    record.status = 200;
    record.pair = Some(Pair {
        prefill: Arc::new(Worker::for_tests(Role::Prefill, prefill)),
        decode: Arc::new(Worker::for_tests(Role::Decode, decode)),
    });
    let times = &mut record.times;
    (times.read, times.selected, times.sent) = (at(0), at(0), at(0));
    (times.prefill_end, times.decode_first) = (at(30), at(40));
    (times.first_byte, times.ended) = (at(40), at(140));
    record
}

fn failed(ended: &'static str) -> Record {
    let mut record = stream(1, 2);
    record.ended = ended.into();
    record.streamed = false;
    record
}

fn pair_of(record: &Record) -> PairId {
    let pair = record.pair.as_ref().expect("a pair");
    (pair.prefill.id(), pair.decode.id())
}

fn at(seconds: u64, window: &Window) -> Instant {
    window.began + Duration::from_secs(seconds)
}

fn window() -> Window {
    Window::new(Instant::now())
}

#[test]
fn a_request_counts_for_the_whole_its_pair_and_its_two_workers() {
    let window = window();
    for _ in 0..3 {
        window.add(&stream(1, 2), at(5, &window));
    }
    window.add(&stream(1, 3), at(5, &window));
    let view = window.view(Filter::default(), at(6, &window));
    assert_eq!(view.minute.counts.requests, 4);
    assert_eq!(view.minute.counts.routes, [4, 0, 0, 0, 0]);
    assert_eq!(view.quarter.counts.events, 44);
    assert_eq!(
        view.quarter.counts.parts_us[Part::Prefill as usize],
        120_000
    );
    assert_eq!(view.quarter.counts.parts_us[Part::Decode as usize], 40_000);
    assert!(view.quarter.counts.gap().is_none(), "40 gaps are few");
    assert_eq!(view.quarter.counts.gaps_us, 400_000);
    let ttft = view.minute.ttft.quantile(0.9).unwrap_or_default();
    assert!((32.0..46.0).contains(&ttft), "{ttft}");
    let mut workers: Vec<_> = view.workers.iter().collect();
    workers.sort_by_key(|(id, _)| *id);
    let requests: Vec<_> = workers.iter().map(|(_, sum)| sum.counts.requests).collect();
    assert_eq!(requests, [4, 3, 1]);
    let mut pairs: Vec<_> = view
        .pairs
        .iter()
        .map(|(_, sum, _)| sum.counts.requests)
        .collect();
    pairs.sort_unstable();
    assert_eq!(pairs, [1, 3]);
}

#[test]
fn a_filter_leaves_the_requests_of_its_workers() {
    let window = window();
    let record = stream(1, 2);
    let (prefill, decode) = pair_of(&record);
    for (nth, other) in [(1, 2), (1, 3), (4, 2)].into_iter().enumerate() {
        for _ in 0..=nth {
            window.add(&stream(other.0, other.1), at(1, &window));
        }
    }
    let mut broken = failed("decode_lost");
    broken.pair = stream(4, 2).pair;
    window.add(&broken, at(1, &window));
    let requests = |filter| {
        let view = window.view(filter, at(2, &window));
        let by_period: u64 = view.periods.iter().map(|(_, sum)| sum.requests).sum();
        assert_eq!(view.minute.counts.requests, by_period);
        (by_period, view.errors.values().sum::<u64>())
    };
    let filter = |prefill, decode| Filter { prefill, decode };
    assert_eq!(requests(Filter::default()), (7, 1));
    assert_eq!(requests(filter(Some(prefill), None)), (3, 0));
    assert_eq!(requests(filter(None, Some(decode))), (5, 1));
    assert_eq!(requests(filter(Some(prefill), Some(decode))), (1, 0));
}

#[test]
fn a_failure_counts_for_the_worker_to_blame() {
    let window = window();
    for ended in [
        "prefill_lost",
        "decode_rejected",
        "merge_failed",
        "rejected",
        "client_left",
    ] {
        window.add(&failed(ended), at(1, &window));
    }
    let mut retried = stream(1, 2);
    retried.failed.push(FailedAttempt {
        worker: Arc::new(Worker::for_tests(Role::Prefill, 9)),
        cause: Cause::Code("prefill_unreachable"),
        pair: retried.pair.clone().expect("a pair"),
        legs: retried.legs,
        times: retried.times,
        spans: Default::default(),
    });
    window.add(&retried, at(1, &window));
    let view = window.view(Filter::default(), at(1, &window));
    assert_eq!(view.minute.counts.failures, 3);
    let (prefill, decode) = pair_of(&retried);
    let of = |id: WorkerId| {
        let found = view.workers.iter().find(|(worker, _)| *worker == id);
        found.map(|(_, sum)| (sum.counts.requests, sum.counts.failures))
    };
    assert_eq!(of(prefill), Some((6, 1)));
    assert_eq!(of(decode), Some((6, 1)));
    assert_eq!(of(retried.failed[0].worker.id()), Some((1, 1)));
    let errors: Vec<_> = view.errors.iter().map(|(code, n)| (&**code, *n)).collect();
    let once = [
        "decode_rejected",
        "merge_failed",
        "prefill_lost",
        "rejected",
    ];
    assert_eq!(errors, once.map(|code| (code, 1)));
}

#[test]
fn samples_count_for_their_pairs_and_the_request_for_the_whole() {
    let window = window();
    let mut whole = stream(1, 2);
    whole.samples = 2;
    window.add_sample(&stream(1, 2), at(1, &window));
    window.add_sample(&stream(1, 3), at(1, &window));
    window.add(&whole, at(1, &window));
    let view = window.view(Filter::default(), at(1, &window));
    assert_eq!(view.minute.counts.requests, 1);
    let pairs = view.pairs.iter().map(|(_, sum, _)| sum.counts.requests);
    assert_eq!(pairs.collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn requests_without_legs_are_not_counted() {
    let window = window();
    window.add(&Record::new(Instant::now()), at(1, &window));
    let view = window.view(Filter::default(), at(1, &window));
    assert_eq!(view.quarter.counts.requests, 0);
}

#[test]
fn a_minute_and_a_quarter_of_an_hour_are_forgotten_in_their_time() {
    let window = window();
    window.add(&stream(1, 2), at(0, &window));
    window.add(&failed("decode_lost"), at(0, &window));
    let seen = |second| {
        let view = window.view(Filter::default(), at(second, &window));
        (
            view.minute.counts.requests,
            view.quarter.counts.requests,
            view.errors.len(),
        )
    };
    assert_eq!(seen(59), (2, 2, 1));
    assert_eq!(seen(60), (0, 2, 1));
    assert_eq!(seen(899), (0, 2, 1));
    assert_eq!(seen(900), (0, 0, 0));
    assert!(
        window
            .view(Filter::default(), at(900, &window))
            .pairs
            .is_empty()
    );
}

#[test]
fn no_number_of_workers_pairs_or_codes_takes_more_memory() {
    let window = window();
    for decode in 0..u16::try_from(MAX_WORKERS).expect("few") {
        window.add(&stream(60_000, decode), at(1, &window));
        let mut broken = stream(60_000, decode);
        broken.ended = "decode_lost".into();
        window.add(&broken, at(1, &window));
    }
    let view = window.view(Filter::default(), at(1, &window));
    assert_eq!(view.minute.counts.requests, 2 * MAX_WORKERS as u64);
    assert_eq!(
        (view.pairs.len(), view.workers.len()),
        (MAX_PAIRS, MAX_WORKERS)
    );
    assert_eq!(view.errors["decode_lost"], MAX_WORKERS as u64);
    // Those that have passed make room.
    window.add(&stream(1, 2), at(2_000, &window));
    let view = window.view(Filter::default(), at(2_000, &window));
    assert_eq!((view.pairs.len(), view.workers.len()), (1, 2));
}

#[test]
fn the_mean_gap_is_that_between_the_events_of_a_stream() {
    let window = window();
    for _ in 0..10 {
        window.add(&stream(1, 2), at(1, &window));
    }
    let view = window.view(Filter::default(), at(1, &window));
    let gap = view.minute.counts.gap().unwrap_or_default();
    assert!((gap - 0.010).abs() < 1e-6, "{gap}");
}
