//! What the steps of a request cost by themselves, each beside the obvious alternative.
//!
//! ```text
//! cargo bench --bench micro               # all of them
//! cargo bench --bench micro -- merging    # those with this in their name
//! ```
//!
//! The alternative is a tree of `serde_json` values that is read, changed and written again: with
//! `arbitrary_precision` and `preserve_order`, since a proxy may change neither a number nor an order. Numbers say
//! how one compares with the other; what a request costs in the end is the business of `end_to_end`.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use divan::Divan;
use mini_lb::pd::{
    self, Batch, Bootstrap, Facts, Fields, Injected, Merge, PrefillData, Room, Route,
};
use serde_json::{Value, json};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One without an end would otherwise take the longest of all.
const LONGEST: Duration = Duration::from_secs(2);

fn main() {
    Divan::default().max_time(LONGEST).config_with_args().main();
}

const SIZES: [usize; 4] = [1 << 10, 64 << 10, 1 << 20, 16 << 20];
/// Logprobs of a prompt that are merged.
const LOGPROBS: usize = 2_000;
const ROOM: u64 = 4_611_686_018_427_387_904;

/// Reading a request, and writing the fields of the rendezvous into it.
#[divan::bench_group]
mod rendezvous {
    use divan::Bencher;
    use divan::counter::BytesCount;

    use super::*;

    /// A prompt as text, with a line end and a quote every so often.
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

    /// The body as the proxy holds it, with room for the fields.
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
}

/// A stream of 1,000 events of about 200 bytes, cut into events again.
#[divan::bench_group]
mod splitting {
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

    /// The stream in chunks of so many bytes.
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

    /// Each event is read and written again.
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
}

/// Prefill's knowledge of a prompt of 2,000 tokens, put into decode's answer.
#[divan::bench_group]
mod merging {
    use divan::Bencher;
    use divan::counter::BytesCount;
    use mini_lb::pd::{StreamMerger, merge, sse};

    use super::*;

    fn generated(logprobs: usize) -> String {
        let logprob = |token: usize| json!([-9.586_738_5 - token as f64 / 64.0, token, null]);
        json!({
            "text": " word", "output_ids": [522],
            "meta_info": {
                "id": "3ec4afe904f44bdb93629fcbe22d03be", "finish_reason": null, "prompt_tokens": LOGPROBS,
                "input_token_logprobs": (0..logprobs).map(logprob).collect::<Vec<_>>(),
                "output_token_logprobs": [logprob(522)], "completion_tokens": 1,
            },
        })
        .to_string()
    }

    /// `/v1/completions` with `echo`: the prompt's tokens, and the first of the answer.
    fn completed(tokens: usize) -> String {
        let tokens = 0..=tokens;
        let logprob = |token: usize| -9.586_738_5 - token as f64 / 64.0;
        json!({
            "id": "4d127a72d1fe4b398bd80a0457df5bb9", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{
                "index": 0, "text": " word",
                "logprobs": {
                    "text_offset": tokens.clone().map(|_| -1).collect::<Vec<_>>(),
                    "token_logprobs": tokens.clone().map(logprob).collect::<Vec<_>>(),
                    "tokens": tokens.clone().map(|_| " word").collect::<Vec<_>>(),
                    "top_logprobs": tokens.map(|token| json!({" word": logprob(token)})).collect::<Vec<_>>(),
                },
                "finish_reason": null,
            }],
            "usage": null,
        })
        .to_string()
    }

    /// The answers of prefill and decode.
    fn answers(merge: Merge) -> [Bytes; 2] {
        match merge {
            Merge::Echo => [completed(LOGPROBS), completed(0)],
            _ => [generated(LOGPROBS), generated(0)],
        }
        .map(Bytes::from)
    }

    /// What the alternative does with the two trees.
    fn merge_trees(merge: Merge, prefill: &Value, decode: &mut Value) {
        if merge != Merge::Echo {
            let known = prefill["meta_info"]["input_token_logprobs"].clone();
            decode["meta_info"]["input_token_logprobs"] = known;
            return;
        }
        for list in ["text_offset", "token_logprobs", "tokens", "top_logprobs"] {
            let mut merged = prefill["choices"][0]["logprobs"][list]
                .as_array()
                .unwrap()
                .clone();
            merged.pop();
            let rest = &mut decode["choices"][0]["logprobs"][list];
            merged.append(rest.as_array_mut().unwrap());
            *rest = merged.into();
        }
    }

    fn merged(merge: Merge, [prefill, decode]: &[Bytes; 2]) -> Bytes {
        let side = PrefillData::from_body(merge, Batch::Single, prefill.clone()).unwrap();
        merge::body(&side, decode.clone()).unwrap()
    }

    fn merged_as_trees(merge: Merge, [prefill, decode]: &[Bytes; 2]) -> Bytes {
        let prefill: Value = serde_json::from_slice(prefill).unwrap();
        let mut decode: Value = serde_json::from_slice(decode).unwrap();
        merge_trees(merge, &prefill, &mut decode);
        serde_json::to_vec(&decode).unwrap().into()
    }

    fn bench_whole(
        bencher: Bencher<'_, '_>,
        merge: Merge,
        merged: fn(Merge, &[Bytes; 2]) -> Bytes,
    ) {
        let answers = answers(merge);
        // Both do the same.
        assert_eq!(merged(merge, &answers), merged_as_trees(merge, &answers));
        bencher
            .counter(BytesCount::new(answers[0].len() + answers[1].len()))
            .bench(|| merged(merge, &answers));
    }

    /// One event, when prefill's answer has been read.
    fn bench_event(bencher: Bencher<'_, '_>, merge: Merge) {
        let [prefill, decode] = answers(merge);
        let side = PrefillData::from_body(merge, Batch::Single, prefill).unwrap();
        let event = [b"data: ", &decode[..], b"\n\n"].concat();
        let merged = |mut merger: StreamMerger| {
            let mut out = BytesMut::new();
            merger.event(&event, &mut out).unwrap();
            out
        };
        let length = merged(StreamMerger::new(side.clone())).len();
        assert!(length > 10 * LOGPROBS, "{length}");
        bencher
            .counter(BytesCount::new(length))
            .with_inputs(|| StreamMerger::new(side.clone()))
            .bench_values(merged);
    }

    fn bench_event_trees(bencher: Bencher<'_, '_>, merge: Merge) {
        let [prefill, decode] = answers(merge);
        let prefill: Value = serde_json::from_slice(&prefill).unwrap();
        let event = [b"data: ", &decode[..], b"\n\n"].concat();
        let merged = || {
            let mut decode: Value = serde_json::from_slice(sse::data(&event).unwrap()).unwrap();
            merge_trees(merge, &prefill, &mut decode);
            format!("data: {decode}\n\n")
        };
        bencher
            .counter(BytesCount::new(merged().len()))
            .bench(merged);
    }

    #[divan::bench]
    fn generate(bencher: Bencher<'_, '_>) {
        bench_whole(bencher, Merge::InputLogprobs, merged);
    }

    #[divan::bench]
    fn generate_tree(bencher: Bencher<'_, '_>) {
        bench_whole(bencher, Merge::InputLogprobs, merged_as_trees);
    }

    #[divan::bench]
    fn generate_event(bencher: Bencher<'_, '_>) {
        bench_event(bencher, Merge::InputLogprobs);
    }

    #[divan::bench]
    fn generate_event_tree(bencher: Bencher<'_, '_>) {
        bench_event_trees(bencher, Merge::InputLogprobs);
    }

    #[divan::bench]
    fn completions_echo(bencher: Bencher<'_, '_>) {
        bench_whole(bencher, Merge::Echo, merged);
    }

    #[divan::bench]
    fn completions_echo_tree(bencher: Bencher<'_, '_>) {
        bench_whole(bencher, Merge::Echo, merged_as_trees);
    }

    /// The first event; the others pass.
    #[divan::bench]
    fn completions_echo_event(bencher: Bencher<'_, '_>) {
        bench_event(bencher, Merge::Echo);
    }

    #[divan::bench]
    fn completions_echo_event_tree(bencher: Bencher<'_, '_>) {
        bench_event_trees(bencher, Merge::Echo);
    }
}

/// A pair for a request; half of the workers are prefill workers.
#[divan::bench_group]
mod selection {
    use std::sync::Arc;
    use std::time::Instant;

    use divan::Bencher;
    use divan::counter::ItemsCount;
    use http::HeaderValue;
    use mini_lb::fleet::{
        Evidence, Fleet, Limits, Members, Origin, Policies, Role, Selection, WorkerParts,
    };
    use mini_lb::pd::{Route, RoutingKey};

    const FLEETS: [u16; 4] = [2, 20, 200, 2_000];

    fn fleet(workers: u16) -> Arc<Fleet> {
        let fleet = Fleet::new(Policies::random(), Limits::default());
        let half = workers / 2;
        let members = (0..workers).map(|number| {
            let port = 10_000 + number;
            fleet.new_worker(WorkerParts {
                role: if number < half {
                    Role::Prefill
                } else {
                    Role::Decode
                },
                url: format!("http://127.0.0.1:{port}"),
                origin: Origin {
                    host: "127.0.0.1".to_owned(),
                    port,
                    tls: false,
                },
                host: HeaderValue::from_static("worker"),
                bootstrap: None,
                authorization: None,
                admin_authorization: None,
            })
        });
        let members = Members::new(members);
        let fleet = Arc::new(fleet);
        fleet.replace(members);
        fleet
    }

    fn bench_selection(bencher: Bencher<'_, '_>, fleet: &Fleet, now: Instant) {
        let request = RoutingKey {
            route: Route::ChatCompletions,
            body_bytes: 1 << 10,
            prompts: 1,
        };
        let wanted = Selection {
            request: &request,
            avoid: &[],
            now,
        };
        bencher
            .counter(ItemsCount::new(1_usize))
            .bench(|| fleet.select(wanted, rand::random).is_ok());
    }

    #[divan::bench(args = FLEETS)]
    fn all_are_well(bencher: Bencher<'_, '_>, workers: u16) {
        bench_selection(bencher, &fleet(workers), Instant::now());
    }

    /// One in ten prefill workers refuses connections, the first of them always.
    #[divan::bench(args = FLEETS)]
    fn some_are_set_aside(bencher: Bencher<'_, '_>, workers: u16) {
        let (fleet, now) = (fleet(workers), Instant::now());
        for worker in fleet.members().of(Role::Prefill).iter().step_by(10) {
            fleet.note(worker, Evidence::Absent, now);
        }
        bench_selection(bencher, &fleet, now);
    }
}

/// The head of a request, looked at before anything else is.
#[divan::bench_group]
mod admission {
    use divan::Bencher;
    use divan::counter::BytesCount;

    const HEAD: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: balancer.example:8080\r\n\
        Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.99.1\r\n\
        X-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\nX-Stainless-Runtime: CPython\r\n\
        Authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\nAccept-Encoding: gzip, deflate\r\n\
        Connection: keep-alive\r\nContent-Length: 1024\r\n\r\n";

    #[divan::bench]
    fn gate(bencher: Bencher<'_, '_>) {
        bencher
            .counter(BytesCount::of_str(HEAD))
            .bench(|| mini_lb::inside::check(divan::black_box(HEAD.as_bytes())).unwrap());
    }

    /// What it comes on top of: the parse that follows.
    #[divan::bench]
    fn httparse(bencher: Bencher<'_, '_>) {
        bencher.counter(BytesCount::of_str(HEAD)).bench(|| {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut headers);
            request
                .parse(divan::black_box(HEAD.as_bytes()))
                .unwrap()
                .unwrap()
        });
    }
}
