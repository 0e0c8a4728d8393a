//! The bounds of what is remembered, and which requests it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::super::super::{Cause, FailedAttempt, Pair, Record};
use super::*;
use crate::fleet::{Role, Worker, WorkerParts};
use crate::pd::Route;

/// A stream that began and ended so long after its head.
fn record(id: &str, begun: Instant, ttft: u64, e2e: u64) -> Record {
    let mut record = Record::new(begun);
    record.request_id = HeaderValue::from_str(id).expect("a header value");
    record.route = Some(Route::Generate);
    record.streamed = true;
    record.times.first_byte = Some(begun + Duration::from_millis(ttft));
    record.times.ended = Some(begun + Duration::from_millis(e2e));
    record
}

/// As large as a row may be.
fn huge(samples: usize) -> Record {
    let mut record = record(&"i".repeat(256), Instant::now(), 1, 2);
    let name = format!("{}.example", "long-name".repeat(20));
    let worker = |role| Arc::new(Worker::of_parts(WorkerParts::plain(role, &name, 1)));
    record.error = Some("e\u{20ac}".repeat(1000));
    let pair = Pair {
        prefill: worker(Role::Prefill),
        decode: worker(Role::Decode),
    };
    record.pair = Some(pair.clone());
    for _ in 0..10 {
        record.failed.push(FailedAttempt {
            worker: worker(Role::Prefill),
            cause: Cause::Code("prefill_connect_timeout"),
            pair: pair.clone(),
            legs: record.legs,
            times: record.times,
            spans: Default::default(),
        });
    }
    record.sampled = (0..samples).map(|_| Arc::new(huge(0))).collect();
    record
}

/// The memory of all rows, and how many they are; one that is in two lists counts twice.
fn memory(finished: &Finished) -> (usize, usize) {
    let remembered = finished.lock();
    let periods = [&remembered.slowest, &remembered.earlier];
    let lists = periods.map(|period| [&period.by_ttft, &period.by_e2e]);
    let slow = lists.iter().flatten().flat_map(|list| &list.rows);
    let rows = remembered.last.iter().chain(slow.map(|(_, row)| row));
    rows.fold((0, 0), |(bytes, count), row| {
        (bytes + row.bytes(), count + 1)
    })
}

fn ids(rows: &[Arc<Row>], of: &[&str]) -> bool {
    rows.len() == of.len() && rows.iter().zip(of).all(|(row, id)| row.is_called(id))
}

#[test]
fn ten_thousand_requests_and_eight_megabytes_are_never_exceeded() {
    for samples in [0, 200] {
        let begun = Instant::now();
        let finished = Finished::new(MAX_CAPACITY, begun);
        let record = huge(samples);
        let rounds = if samples == 0 { 11_000 } else { 600 };
        for _ in 0..rounds {
            finished.push(Row::of(&record));
        }
        // Another period of them.
        finished.lock().begun -= PERIOD;
        for _ in 0..rounds / 2 {
            finished.push(Row::of(&record));
        }
        let (bytes, count) = memory(&finished);
        assert!(
            bytes <= MAX_BYTES && count <= MAX_REQUESTS,
            "{bytes} {count}"
        );
        assert!(bytes > MAX_BYTES / 2, "the memory is used: {bytes}");
    }
}

#[test]
fn usual_requests_are_remembered_up_to_the_capacity() {
    let begun = Instant::now();
    let finished = Finished::new(MAX_CAPACITY, begun);
    let pair = Pair {
        prefill: Arc::new(Worker::for_tests(Role::Prefill, 30_000)),
        decode: Arc::new(Worker::for_tests(Role::Decode, 30_001)),
    };
    for index in 0..11_000_u64 {
        let mut record = record(&format!("{index:032}"), begun, index, 2 * index);
        record.pair = Some(pair.clone());
        finished.push(Row::of(&record));
    }
    let (last, slowest, total) = finished.rows();
    assert_eq!((last.len(), total), (MAX_CAPACITY, 11_000));
    assert_eq!(slowest.by_e2e.len(), SLOWEST);
    assert!(last[0].is_called(&format!("{:032}", 10_999)));
}

#[test]
fn the_slowest_outlive_the_last_ones_for_two_periods() {
    let begun = Instant::now();
    let finished = Finished::new(2, begun);
    let push = |id: &str, begun, ttft, e2e| finished.push(Row::of(&record(id, begun, ttft, e2e)));
    push("slow-start", begun, 900, 1000);
    push("slow-end", begun, 1, 5000);
    for id in ["a", "b", "c"] {
        push(id, begun, 2, 3);
    }
    let (last, slowest, total) = finished.rows();
    assert!(ids(&last, &["c", "b"]) && total == 5);
    assert!(ids(&slowest.by_ttft[..1], &["slow-start"]));
    assert!(ids(&slowest.by_e2e[..2], &["slow-end", "slow-start"]));
    push("next", begun + PERIOD, 1, 2);
    let (_, slowest, _) = finished.rows();
    assert!(ids(&slowest.by_e2e[..1], &["slow-end"]));
    push("last", begun + 2 * PERIOD, 1, 2);
    let (_, slowest, _) = finished.rows();
    assert!(ids(&slowest.by_e2e, &["next", "last"]) || ids(&slowest.by_e2e, &["last", "next"]));
}

#[test]
fn a_document_has_no_time_to_its_first_token() {
    let begun = Instant::now();
    let finished = Finished::new(2, begun);
    let mut document = record("document", begun, 5, 6);
    document.streamed = false;
    finished.push(Row::of(&document));
    let (_, slowest, _) = finished.rows();
    assert!(slowest.by_ttft.is_empty() && ids(&slowest.by_e2e, &["document"]));
}
