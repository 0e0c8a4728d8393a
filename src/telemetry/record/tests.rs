//! The parts of the time to the first byte, from the steps of made records.

use super::*;

/// A stream whose steps happened at these milliseconds from its head, in the order of [`Times`].
fn stream(steps: [Option<u64>; 6]) -> Record {
    let mut record = Record::new(Instant::now());
    let at = |ms: Option<u64>| ms.map(|ms| record.times.started + Duration::from_millis(ms));
    let [read, selected, sent, prefill_end, decode_first, first_byte] = steps.map(at);
    record.times = Times {
        read,
        selected,
        sent,
        prefill_end,
        decode_first,
        first_byte,
        ..record.times
    };
    record.streamed = true;
    record
}

fn parts_of(record: &Record) -> Vec<(&'static str, u64)> {
    let parts = record.parts().expect("a stream that has begun");
    let millis = |time: Duration| time.as_millis() as u64;
    let sum: Duration = parts.iter().map(|(_, time)| time).sum();
    assert_eq!(Some(sum), record.times.first_byte());
    let named = parts.iter().map(|(part, time)| (part.name(), millis(time)));
    named.filter(|(_, time)| *time > 0).collect()
}

#[test]
fn the_parts_add_up_to_the_time_to_the_first_byte() {
    let steps = [1, 3, 6, 10, 15, 21].map(Some);
    let parts = [("read", 1), ("queue", 2), ("send", 3), ("prefill", 4)];
    let all = [&parts[..], &[("decode", 5), ("relay", 6)]].concat();
    assert_eq!(parts_of(&stream(steps)), all);
}

#[test]
fn prefill_has_no_part_of_the_time_after_decodes_first_byte() {
    let late = stream([Some(1), Some(1), Some(1), Some(30), Some(10), Some(11)]);
    let open = stream([Some(1), Some(1), Some(1), None, Some(10), Some(11)]);
    for record in [late, open] {
        let parts = [("read", 1), ("prefill", 9), ("relay", 1)];
        assert_eq!(parts_of(&record), parts);
    }
}

#[test]
fn failed_attempts_are_a_part_of_their_own() {
    let mut record = stream([1, 51, 52, 60, 70, 71].map(Some));
    record.attempts = 2;
    record.queued = Duration::from_millis(8);
    let parts = parts_of(&record);
    assert_eq!(parts[1..4], [("queue", 8), ("retry", 42), ("send", 1)]);
}

#[test]
fn a_document_and_a_stream_without_its_first_byte_have_no_parts() {
    let mut document = stream([1, 2, 3, 4, 5, 6].map(Some));
    document.streamed = false;
    assert_eq!(document.parts(), None);
    let steps = [Some(1), Some(2), Some(3), None, None, None];
    assert_eq!(stream(steps).parts(), None);
}
