//! Merging prefill's data about a prompt of 2,000 tokens into decode's response.

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

/// `/v1/completions` with `echo`: the tokens of the prompt, and the first generated one.
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

/// The responses of prefill and decode.
fn answers(merge: Merge) -> [Bytes; 2] {
    match merge {
        Merge::Echo => [completed(LOGPROBS), completed(0)],
        _ => [generated(LOGPROBS), generated(0)],
    }
    .map(Bytes::from)
}

/// The merge of two trees.
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

fn bench_whole(bencher: Bencher<'_, '_>, merge: Merge, merged: fn(Merge, &[Bytes; 2]) -> Bytes) {
    let answers = answers(merge);
    // Both give the same result.
    assert_eq!(merged(merge, &answers), merged_as_trees(merge, &answers));
    bencher
        .counter(BytesCount::new(answers[0].len() + answers[1].len()))
        .bench(|| merged(merge, &answers));
}

/// One event, after prefill's response has been read.
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

/// The first event, which is merged; later ones pass unchanged.
#[divan::bench]
fn completions_echo_event(bencher: Bencher<'_, '_>) {
    bench_event(bencher, Merge::Echo);
}

#[divan::bench]
fn completions_echo_event_tree(bencher: Bencher<'_, '_>) {
    bench_event_trees(bencher, Merge::Echo);
}
