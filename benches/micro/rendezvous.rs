//! Parsing a request, and inserting the bootstrap fields.

use divan::Bencher;
use divan::counter::BytesCount;

use super::*;

/// A prompt as text, with some line ends and quotes.
fn text(size: usize) -> String {
    chat(
        "words of a prompt, some of them \"quoted\"; then the line ends\n",
        size,
    )
}

fn chat(content: &str, size: usize) -> String {
    let content = content.repeat(size.div_ceil(content.len()));
    json!({
        "model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 128,
    })
    .to_string()
}

/// A prompt as token ids.
fn ids(size: usize) -> String {
    let ids: Vec<usize> = (0..size / 6).map(|id| 10_000 + id % 90_000).collect();
    json!({"input_ids": ids, "sampling_params": {"max_new_tokens": 128}}).to_string()
}

fn bench_read(bencher: Bencher<'_, '_>, route: Route, body: &str) {
    bencher
        .counter(BytesCount::of_str(body))
        .bench(|| pd::parse(route, body.as_bytes()).unwrap());
}

/// The body as the proxy holds it, with spare capacity for the fields.
fn held(body: &str) -> BytesMut {
    let mut held = BytesMut::with_capacity(body.len() + pd::tail_reserve(1));
    held.extend_from_slice(body.as_bytes());
    held
}

fn injected(body: BytesMut, facts: &Facts, bootstrap: &Bootstrap) -> Injected {
    let rooms = [Room::new(ROOM).unwrap()];
    let fields = Fields {
        bootstrap,
        rooms: &rooms,
        rank: None,
        rids: None,
    };
    pd::inject(body, facts, &fields)
}

fn bench_injection(bencher: Bencher<'_, '_>, route: Route, body: &str) {
    let bootstrap = Bootstrap::new("10.0.0.1", Some(8998));
    bencher
        .counter(BytesCount::of_str(body))
        .with_inputs(|| held(body))
        .bench_values(|body| {
            let facts = pd::parse(route, &body).unwrap();
            injected(body, &facts, &bootstrap)
        });
}

fn bench_tree(bencher: Bencher<'_, '_>, body: &str) {
    bencher.counter(BytesCount::of_str(body)).bench(|| {
        let mut tree: Value = serde_json::from_str(body).unwrap();
        tree["bootstrap_host"] = json!("10.0.0.1");
        tree["bootstrap_port"] = json!(8998);
        tree["bootstrap_room"] = json!(ROOM);
        serde_json::to_vec(&tree).unwrap()
    });
}

#[divan::bench(args = SIZES)]
fn read_text(bencher: Bencher<'_, '_>, size: usize) {
    bench_read(bencher, Route::ChatCompletions, &text(size));
}

#[divan::bench(args = SIZES)]
fn read_chinese(bencher: Bencher<'_, '_>, size: usize) {
    let body = chat("预填充和解码分离的负载均衡器，", size);
    bench_read(bencher, Route::ChatCompletions, &body);
}

#[divan::bench(args = SIZES)]
fn read_and_inject_text(bencher: Bencher<'_, '_>, size: usize) {
    bench_injection(bencher, Route::ChatCompletions, &text(size));
}

#[divan::bench(args = SIZES)]
fn tree_text(bencher: Bencher<'_, '_>, size: usize) {
    bench_tree(bencher, &text(size));
}

#[divan::bench(args = SIZES)]
fn read_ids(bencher: Bencher<'_, '_>, size: usize) {
    bench_read(bencher, Route::Generate, &ids(size));
}

#[divan::bench(args = SIZES)]
fn read_and_inject_ids(bencher: Bencher<'_, '_>, size: usize) {
    bench_injection(bencher, Route::Generate, &ids(size));
}

#[divan::bench(args = SIZES)]
fn tree_ids(bencher: Bencher<'_, '_>, size: usize) {
    bench_tree(bencher, &ids(size));
}
