//! Gathering the responses for four samples: 1,000 events of about 200 bytes, and documents of about 4 KiB.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use mini_lb::pd::{Engine, Gather, sse};

use super::*;

const EVENTS: usize = 1_000;
const SAMPLES: usize = 4;

fn gather(route: Route) -> Gather {
    let n = json!({"n": SAMPLES, "sampling_params": {"n": SAMPLES}});
    let facts = pd::parse(route, n.to_string().as_bytes()).unwrap();
    Engine::Sglang.gather(route, &facts)
}

/// An event of a running stream, with the keys that SGLang writes.
fn event(route: Route) -> Bytes {
    let data = match route {
        Route::Generate => json!({
            "text": " making g", "output_ids": [1199, 468], "meta_info": {
                "id": "f9b41c46330844dba39b2d7a45158ead", "finish_reason": null, "prompt_tokens": 10,
                "weight_version": "default", "completion_tokens": 2, "cached_tokens": 9,
            },
        }),
        _ => json!({
            "id": "2c35e188b7d04ada9fd41544cc97ba4f", "object": "chat.completion.chunk", "created": 1795953537,
            "model": "m", "choices": [{
                "index": 0, "delta": {"reasoning_content": null, "content": " word"}, "logprobs": null,
                "finish_reason": null, "matched_stop": null,
            }],
        }),
    };
    format!("data: {data}\n\n").into()
}

fn bench_events(bencher: Bencher<'_, '_>, route: Route) {
    let event = event(route);
    bencher
        .counter(BytesCount::new(event.len() * EVENTS))
        .counter(ItemsCount::new(EVENTS))
        .with_inputs(|| gather(route).stream(1 << 20))
        .bench_values(|mut stream| {
            let mut bytes = 0;
            for sample in (0..SAMPLES).cycle().take(EVENTS) {
                // As it goes to the client: one buffer for each event.
                let mut out = BytesMut::new();
                stream.push(sample, event.clone(), &mut out).unwrap();
                bytes += divan::black_box(out).len();
            }
            assert!(bytes >= event.len() * EVENTS);
        });
}

fn bench_events_trees(bencher: Bencher<'_, '_>, route: Route) {
    let event = event(route);
    bencher
        .counter(BytesCount::new(event.len() * EVENTS))
        .counter(ItemsCount::new(EVENTS))
        .bench(|| {
            let mut bytes = 0;
            for sample in (0..SAMPLES).cycle().take(EVENTS) {
                let mut data: Value = serde_json::from_slice(sse::data(&event).unwrap()).unwrap();
                match route {
                    Route::Generate => data["index"] = sample.into(),
                    _ => data["choices"][0]["index"] = sample.into(),
                }
                bytes += divan::black_box(format!("data: {data}\n\n")).len();
            }
            assert!(bytes >= event.len() * EVENTS);
        });
}

#[divan::bench]
fn chat_chunks(bencher: Bencher<'_, '_>) {
    bench_events(bencher, Route::ChatCompletions);
}

#[divan::bench]
fn chat_chunks_tree(bencher: Bencher<'_, '_>) {
    bench_events_trees(bencher, Route::ChatCompletions);
}

#[divan::bench]
fn generate_events(bencher: Bencher<'_, '_>) {
    bench_events(bencher, Route::Generate);
}

#[divan::bench]
fn generate_events_tree(bencher: Bencher<'_, '_>) {
    bench_events_trees(bencher, Route::Generate);
}

/// The documents of the samples of a chat.
fn documents() -> Vec<Bytes> {
    let document = json!({
        "id": "86aa6ea37347428d93c62976bdf331d8", "object": "chat.completion", "created": 1795953537, "model": "m",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": " word".repeat(800), "reasoning_content": null},
            "logprobs": null, "finish_reason": "length", "matched_stop": null,
        }],
        "usage": {
            "prompt_tokens": 5, "total_tokens": 805, "completion_tokens": 800, "prompt_tokens_details": null,
            "reasoning_tokens": 0, "completion_tokens_details": null,
        },
    });
    vec![document.to_string().into(); SAMPLES]
}

#[divan::bench]
fn chat_documents(bencher: Bencher<'_, '_>) {
    let (documents, gather) = (documents(), gather(Route::ChatCompletions));
    bencher
        .counter(BytesCount::new(documents[0].len() * SAMPLES))
        .bench(|| gather.document(&documents).unwrap());
}

#[divan::bench]
fn chat_documents_tree(bencher: Bencher<'_, '_>) {
    let documents = documents();
    bencher
        .counter(BytesCount::new(documents[0].len() * SAMPLES))
        .bench(|| {
            let mut samples = documents
                .iter()
                .map(|document| serde_json::from_slice::<Value>(document).unwrap());
            let mut whole = samples.next().unwrap();
            for (sample, mut document) in (1..).zip(samples) {
                let mut choice = document["choices"][0].take();
                choice["index"] = sample.into();
                whole["choices"].as_array_mut().unwrap().push(choice);
                let sum = |key: &str| {
                    whole["usage"][key].as_u64().unwrap() + document["usage"][key].as_u64().unwrap()
                };
                let completion = sum("completion_tokens");
                whole["usage"]["completion_tokens"] = completion.into();
                let prompt = whole["usage"]["prompt_tokens"].as_u64().unwrap();
                whole["usage"]["total_tokens"] = (prompt + completion).into();
            }
            whole.to_string()
        });
}
