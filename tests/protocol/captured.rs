//! `mini_lb::pd` with recorded bytes of SGLang servers: a client must get the same through a pair as from an
//! ordinary server. The reference is a plain tree of JSON values and shares no code with the scanner.
//! See `tests/fixtures/sglang-0.5.23/README.md` for the captures.

use std::fs;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use mini_lb::pd::{self, Batch, Merge, PrefillData, Route, Splitter, StreamMerger, sse};
use serde_json::Value;

fn file(scenario: &str, name: &str) -> Option<Bytes> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/sglang-0.5.23")
        .join(scenario);
    fs::read(folder.join(name)).ok().map(Bytes::from)
}

/// The responses of the two legs in a scenario, and the facts of its request.
struct Captured {
    merge: Merge,
    batch: Batch,
    prefill: Bytes,
    decode: Bytes,
    ordinary: Option<Bytes>,
}

fn captured(scenario: &str, extension: &str) -> Captured {
    let route = if scenario.starts_with("cmpl") {
        Route::Completions
    } else {
        Route::Generate
    };
    let facts = pd::parse(route, &file(scenario, "request.json").unwrap()).unwrap();
    assert_eq!(facts.stream, extension == "sse", "{scenario}");
    let answer = |leg: &str| file(scenario, &format!("{leg}.{extension}"));
    Captured {
        merge: facts.merge,
        batch: facts.batch,
        prefill: answer("prefill").unwrap(),
        decode: answer("decode").unwrap(),
        ordinary: answer("ordinary"),
    }
}

const BODIES: [(&str, Merge, Batch); 14] = [
    ("gen_logprob", Merge::InputLogprobs, Batch::Single),
    ("gen_logprob_text", Merge::InputLogprobs, Batch::Single),
    ("gen_logprob_batch", Merge::InputLogprobs, Batch::Of(2)),
    ("gen_logprob_default_start", Merge::None, Batch::Single),
    ("gen_default_start_top", Merge::None, Batch::Single),
    ("gen_token_ids", Merge::InputLogprobs, Batch::Single),
    ("gen_flat", Merge::InputLogprobs, Batch::Single),
    ("gen_batch_mixed", Merge::InputLogprobs, Batch::Of(2)),
    ("gen_batch_of_one", Merge::InputLogprobs, Batch::Of(1)),
    ("cmpl_logprobs", Merge::None, Batch::Single),
    ("cmpl_echo_logprobs", Merge::Echo, Batch::Single),
    ("cmpl_echo_batch", Merge::Echo, Batch::Of(2)),
    ("cmpl_echo_negative", Merge::Echo, Batch::Single),
    ("cmpl_echo_zero", Merge::None, Batch::Single),
];

const STREAMS: [(&str, Merge, Batch); 7] = [
    ("gen_logprob_stream", Merge::InputLogprobs, Batch::Single),
    (
        "gen_logprob_batch_stream",
        Merge::InputLogprobs,
        Batch::Of(2),
    ),
    ("gen_token_ids_stream", Merge::InputLogprobs, Batch::Single),
    ("gen_flat_b64_stream", Merge::InputLogprobs, Batch::Single),
    ("gen_batch_stream_all", Merge::InputLogprobs, Batch::Of(2)),
    ("cmpl_echo_stream", Merge::Echo, Batch::Single),
    ("cmpl_echo_batch_stream", Merge::Echo, Batch::Of(2)),
];

#[test]
fn a_merged_body_is_the_ordinary_servers_body() {
    for (scenario, merge, batch) in BODIES {
        let captured = captured(scenario, "json");
        assert_eq!(
            (captured.merge, captured.batch),
            (merge, batch),
            "{scenario}"
        );
        let side = PrefillData::from_body(merge, batch, captured.prefill.clone()).unwrap();
        let merged = value(&pd::merge::body(&side, captured.decode.clone()).unwrap());
        assert_eq!(
            merged,
            reference(merge, &value(&captured.prefill), value(&captured.decode)),
            "{scenario}"
        );
        if let Some(ordinary) = captured.ordinary {
            assert_eq!(steady(merged), steady(value(&ordinary)), "{scenario}");
        }
    }
}

#[test]
fn a_body_without_anything_to_merge_passes_as_it_is() {
    let captured = captured("cmpl_logprobs", "json");
    let side = PrefillData::from_body(Merge::None, Batch::Single, Bytes::from_static(b"anything"))
        .unwrap();
    let merged = pd::merge::body(&side, captured.decode.clone()).unwrap();
    assert_eq!(merged.as_ptr(), captured.decode.as_ptr());
}

#[test]
fn every_merged_event_is_the_ordinary_servers_event() {
    for (scenario, merge, batch) in STREAMS {
        let captured = captured(scenario, "sse");
        assert_eq!(
            (captured.merge, captured.batch),
            (merge, batch),
            "{scenario}"
        );
        let merged = values(&merged_stream(&captured));
        assert_eq!(merged.len(), values(&captured.decode).len(), "{scenario}");
        let Some(ordinary) = captured.ordinary else {
            continue;
        };
        let ordinary = values(&ordinary);
        let mut compared = 0;
        for event in &merged {
            // Which tokens share an event depends on the scheduler; events with the same tokens must be equal.
            let twin = ordinary
                .iter()
                .find(|other| progress(other) == progress(event));
            if let Some(twin) = twin {
                assert_eq!(steady(event.clone()), steady(twin.clone()), "{scenario}");
                compared += 1;
            }
        }
        assert!(compared > batch.prompts(), "{scenario}: {compared}");
    }
}

#[test]
fn every_event_of_generate_carries_prefills_data() {
    for (scenario, ..) in STREAMS
        .into_iter()
        .filter(|(_, merge, _)| *merge == Merge::InputLogprobs)
    {
        let captured = captured(scenario, "sse");
        let prefill = values(&captured.prefill);
        let merged = values(&merged_stream(&captured));
        for (event, decode) in merged.iter().zip(values(&captured.decode)) {
            let known = prefill
                .iter()
                .find(|known| known["index"] == event["index"])
                .unwrap();
            assert_eq!(
                *event,
                reference(Merge::InputLogprobs, known, decode),
                "{scenario}"
            );
        }
    }
}

#[test]
fn an_echoed_prompt_comes_with_the_first_event_of_each_choice_only() {
    for scenario in ["cmpl_echo_stream", "cmpl_echo_batch_stream"] {
        let captured = captured(scenario, "sse");
        let prefill = values(&captured.prefill);
        let mut seen = Vec::new();
        for (event, decode) in values(&merged_stream(&captured))
            .into_iter()
            .zip(values(&captured.decode))
        {
            let index = event["choices"][0]["index"].clone();
            let first = !index.is_null() && !seen.contains(&index);
            let known = prefill
                .iter()
                .find(|known| known["choices"][0]["index"] == index)
                .unwrap();
            let wanted = if first {
                reference(Merge::Echo, known, decode)
            } else {
                decode
            };
            assert_eq!(event, wanted, "{scenario}");
            seen.push(index);
        }
    }
}

#[test]
fn a_first_event_of_failure_becomes_the_answer_without_streaming() {
    for (route, stream, plain, status) in [
        (
            Route::Generate,
            "err_too_long_gen_stream",
            "err_too_long_gen",
            400,
        ),
        (
            Route::Generate,
            "decode_lonely_gen_stream",
            "decode_lonely_gen",
            500,
        ),
        (
            Route::ChatCompletions,
            "decode_lonely_chat_stream",
            "decode_lonely_chat",
            500,
        ),
    ] {
        let mut splitter = Splitter::new(1 << 20);
        splitter.push(file(stream, "decode.sse").unwrap());
        let event = splitter.next_event().unwrap().unwrap();
        let error = pd::stream_error(route, &event).unwrap();
        assert_eq!(error.status, status, "{stream}");
        let mut plain = value(&file(plain, "decode.json").unwrap());
        let mut found = value(&error.body);
        // The text contains the ids and rooms of two different requests. The inner object of an OpenAI stream names
        // the type by word while the other response has the number.
        let message = |value: &mut Value| {
            let object = if value["error"].is_object() {
                &mut value["error"]
            } else {
                value
            };
            object["message"]
                .take()
                .as_str()
                .unwrap()
                .split('\'')
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(message(&mut found), message(&mut plain), "{stream}");
        if route == Route::ChatCompletions {
            found["type"].take();
            plain["type"].take();
        }
        assert_eq!(found, plain, "{stream}");
    }
}

#[test]
fn an_ordinary_first_event_is_no_failure() {
    for (scenario, merge, _) in STREAMS {
        let route = if merge == Merge::Echo {
            Route::Completions
        } else {
            Route::Generate
        };
        let mut splitter = Splitter::new(1 << 20);
        splitter.push(captured(scenario, "sse").decode);
        while let Some(event) = splitter.next_event().unwrap() {
            assert_eq!(pd::stream_error(route, &event), None, "{scenario}");
        }
    }
}

fn merged_stream(captured: &Captured) -> Bytes {
    let side =
        PrefillData::from_stream(captured.merge, captured.batch, captured.prefill.clone()).unwrap();
    let mut merger = StreamMerger::new(side);
    let mut splitter = Splitter::new(1 << 20);
    splitter.push(captured.decode.clone());
    let mut merged = BytesMut::new();
    while let Some(event) = splitter.next_event().unwrap() {
        merger.event(&event, &mut merged).unwrap();
    }
    assert_eq!(splitter.finish(), None);
    assert!(merged.ends_with(b"data: [DONE]\n\n"));
    merged.freeze()
}

fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

/// The values of a stream's events, without `[DONE]`.
fn values(stream: &Bytes) -> Vec<Value> {
    let mut splitter = Splitter::new(1 << 20);
    splitter.push(stream.clone());
    let mut values = Vec::new();
    while let Some(event) = splitter.next_event().unwrap() {
        if !sse::is_done(&event) {
            values.push(value(sse::data(&event).unwrap()));
        }
    }
    values
}

/// The merging rules over trees.
fn reference(merge: Merge, prefill: &Value, mut decode: Value) -> Value {
    match merge {
        Merge::None => {}
        Merge::InputLogprobs if decode.is_array() => {
            for (prefill, decode) in prefill
                .as_array()
                .unwrap()
                .iter()
                .zip(decode.as_array_mut().unwrap())
            {
                *decode = reference(merge, prefill, decode.take());
            }
        }
        Merge::InputLogprobs => {
            let (prefill, decode) = (&prefill["meta_info"], &mut decode["meta_info"]);
            for (key, value) in prefill.as_object().unwrap() {
                if key.starts_with("input_") && key.contains("logprobs") {
                    decode[key] = value.clone();
                }
            }
            if prefill["output_token_ids_logprobs"].is_array() {
                decode["output_token_ids_logprobs"][0] =
                    prefill["output_token_ids_logprobs"][0].clone();
            }
        }
        Merge::Echo => {
            let prefill = prefill["choices"].as_array().unwrap();
            for (prefill, decode) in prefill
                .iter()
                .zip(decode["choices"].as_array_mut().unwrap())
            {
                for list in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
                    let mut joined = prefill["logprobs"][list].as_array().unwrap().clone();
                    joined.pop();
                    joined.extend(decode["logprobs"][list].as_array().unwrap().iter().cloned());
                    decode["logprobs"][list] = joined.into();
                }
            }
        }
    }
    decode
}

/// The position of an event in a stream: its choice, and the text so far or its piece of it.
fn progress(event: &Value) -> (Value, Value) {
    let choice = &event["choices"][0];
    let index = if choice.is_null() {
        &event["index"]
    } else {
        &choice["index"]
    };
    let text = if choice.is_null() {
        &event["text"]
    } else {
        &choice["text"]
    };
    (index.clone(), text.clone())
}

/// The value without the fields that differ between two runs of a request: ids, times and cache hits.
fn steady(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            members.retain(|key, _| {
                let noise =
                    ["id", "created", "cached_tokens", "cached_tokens_details"].contains(&&**key);
                let clock = ["_ts", "_time", "_latency", "_throughput", "_wait"];
                !noise && !clock.iter().any(|end| key.ends_with(end))
            });
            members
                .values_mut()
                .for_each(|member| *member = steady(member.take()));
            members.sort_keys();
        }
        Value::Array(elements) => {
            elements
                .iter_mut()
                .for_each(|element| *element = steady(element.take()));
        }
        _ => {}
    }
    value
}
