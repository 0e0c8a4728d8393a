//! Splitting a stream of 1,000 events of about 200 bytes.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use mini_lb::pd::{Splitter, sse};

use super::*;

const EVENTS: usize = 1_000;

fn event() -> Bytes {
    let data = json!({
        "id": "2c35e188b7d04ada9fd41544cc97ba4f", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": " word"}, "logprobs": null, "finish_reason": null}],
    });
    format!("data: {data}\n\n").into()
}

fn stream() -> Bytes {
    event().repeat(EVENTS).into()
}

/// The stream in chunks of `size` bytes.
fn bench_chunks(bencher: Bencher<'_, '_>, bytes: usize) {
    let stream = stream();
    let chunks: Vec<Bytes> = stream
        .chunks(bytes)
        .map(|chunk| stream.slice_ref(chunk))
        .collect();
    bencher
        .counter(BytesCount::of_slice(&stream))
        .counter(ItemsCount::new(EVENTS))
        .bench(|| {
            let mut splitter = Splitter::new(1 << 20);
            let mut events = 0;
            for chunk in &chunks {
                splitter.push(chunk.clone());
                while let Some(event) = splitter.next_event().unwrap() {
                    events += divan::black_box(event).len().min(1);
                }
            }
            assert_eq!(events, EVENTS);
        });
}

#[divan::bench]
fn chunks_that_are_events(bencher: Bencher<'_, '_>) {
    bench_chunks(bencher, event().len());
}

#[divan::bench]
fn chunks_of_64_kib(bencher: Bencher<'_, '_>) {
    bench_chunks(bencher, 64 << 10);
}

#[divan::bench]
fn chunks_of_7_bytes(bencher: Bencher<'_, '_>) {
    bench_chunks(bencher, 7);
}

/// Parses and writes each event.
#[divan::bench]
fn tree(bencher: Bencher<'_, '_>) {
    let stream = stream();
    bencher
        .counter(BytesCount::of_slice(&stream))
        .counter(ItemsCount::new(EVENTS))
        .bench(|| {
            for event in sse::events(stream.clone()) {
                let tree: Value = serde_json::from_slice(sse::data(&event).unwrap()).unwrap();
                divan::black_box(format!("data: {tree}\n\n"));
            }
        });
}
