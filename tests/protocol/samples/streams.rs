//! Gathering streams: the ordinary server's, in any order and any cut, and what may happen to one sample of them.

use bytes::{Bytes, BytesMut};
use mini_lb::pd::{GatherFault, Route, sse};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use support::properties::splitter;

use super::{Captured, MAX_EVENT_BYTES, captured};

const STREAMS: [&str; 10] = [
    "n_gen_stream_3",
    "n_gen_2_stream_incremental",
    "n_gen_batch_stream_2x2",
    "n_chat_2_stream_incremental",
    "n_chat_2_stream_logprobs_continuous",
    "n_chat_3_stream_stop_sampled",
    "n_chat_3_stream_usage",
    "n_cmpl_2_stream",
    "n_cmpl_2_stream_incremental_echo",
    "n_cmpl_list_2x2_stream_echo_logprobs_usage",
];

#[test]
fn the_streams_of_all_samples_become_the_ordinary_servers_stream() {
    for scenario in STREAMS {
        let captured = captured(scenario, "sse");
        let mut stream = captured.gather().stream(MAX_EVENT_BYTES);
        let mut out = BytesMut::new();
        for (sample, event) in captured.events() {
            assert!(!stream.is_complete());
            stream.push(sample, event, &mut out).unwrap();
        }
        assert!(stream.is_complete());
        assert_eq!(out, captured.ordinary, "{scenario}");
    }
}

/// The stream of each sample, from its events.
fn streams(events: &[(usize, Bytes)], n: usize) -> Vec<Bytes> {
    let of = |sample: usize| {
        let own = events.iter().filter(move |(of, _)| *of == sample);
        own.flat_map(|(_, event)| event.to_vec()).collect()
    };
    (0..n).map(of).collect()
}

/// Random chunks of all streams, in a random order that keeps the order within each.
fn shuffled(rng: &mut SmallRng, streams: &[Bytes]) -> Vec<(usize, Bytes)> {
    let mut waiting: Vec<_> = streams
        .iter()
        .map(|stream| {
            let longest = rng.random_range(1..stream.len());
            let lengths: Vec<usize> = (0..rng.random_range(0..60))
                .map(|_| rng.random_range(0..longest))
                .collect();
            splitter::chunks(stream, &lengths).into_iter().peekable()
        })
        .collect();
    let mut order = Vec::new();
    while waiting.iter_mut().any(|chunks| chunks.peek().is_some()) {
        let sample = rng.random_range(0..streams.len());
        order.extend(waiting[sample].next().map(|chunk| (sample, chunk)));
    }
    order
}

/// The JSON of each event but the end marker, which is the last one and there once.
fn payloads(stream: &Bytes) -> Vec<Value> {
    let events: Vec<Bytes> = sse::events(stream.clone()).collect();
    assert_eq!(events.concat(), *stream, "whole events only");
    let (done, events) = events.split_last().unwrap();
    assert!(sse::is_done(done));
    events
        .iter()
        .map(|event| serde_json::from_slice(sse::data(event).unwrap()).unwrap())
        .collect()
}

fn has_choice(json: &Value) -> bool {
    json.get("choices")
        .is_none_or(|choices| *choices != json!([]))
}

/// The events with a choice of one sample; ids of finish chunks are not its own.
fn sequence(payloads: &[Value], route: Route, of: impl Fn(usize) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    for mut json in payloads.iter().filter(|json| has_choice(json)).cloned() {
        let index = match route {
            Route::Generate => json.as_object_mut().unwrap().shift_remove("index"),
            _ => json["choices"][0]
                .as_object_mut()
                .unwrap()
                .shift_remove("index"),
        };
        let index = index.and_then(|index| index.as_u64()).unwrap_or_default();
        if of(usize::try_from(index).unwrap()) {
            if json["choices"][0]["finish_reason"].is_string() {
                json["id"] = Value::Null;
            }
            found.push(json);
        }
    }
    found
}

#[test]
fn any_cut_and_any_interleaving_gives_whole_events_and_each_samples_own_sequence() {
    let mut rng = SmallRng::seed_from_u64(11);
    for scenario in STREAMS {
        let captured = captured(scenario, "sse");
        let streams = streams(&captured.events(), captured.n);
        for _ in 0..15 {
            let mut stream = captured.gather().stream(MAX_EVENT_BYTES);
            let mut out = BytesMut::new();
            for (sample, chunk) in shuffled(&mut rng, &streams) {
                let sent = out.len();
                stream.push(sample, chunk, &mut out).unwrap();
                let added = Bytes::copy_from_slice(&out[sent..]);
                let whole: usize = sse::events(added).map(|event| event.len()).sum();
                assert_eq!(whole, out.len() - sent, "{scenario}");
            }
            assert!((0..captured.n).all(|sample| stream.end(sample).is_ok()));
            let gathered = payloads(&out.freeze());
            for (sample, own) in streams.iter().enumerate() {
                for prompt in 0..captured.facts.batch.prompts() {
                    let flat = prompt * captured.n + sample;
                    assert_eq!(
                        sequence(&gathered, captured.route, |index| index == flat),
                        sequence(&payloads(own), captured.route, |index| index == prompt),
                        "{scenario}"
                    );
                }
            }
            ends_as_the_ordinary_stream(&captured, &gathered);
        }
    }
}

/// Finish chunks of chat and the usage are the same and in the same place, whatever was sent before them.
fn ends_as_the_ordinary_stream(captured: &Captured, gathered: &[Value]) {
    let ordinary = payloads(&captured.ordinary);
    let held = |payloads: &[Value]| {
        let waits = |json: &&Value| {
            let finishes = json["choices"][0]["finish_reason"].is_string();
            !has_choice(json) || captured.route == Route::ChatCompletions && finishes
        };
        let held: Vec<Value> = payloads.iter().rev().take_while(waits).cloned().collect();
        let ids: Vec<&Value> = held.iter().map(|json| &json["id"]).collect();
        assert!(
            ids.windows(2).all(|pair| pair[0] == pair[1]),
            "one id: {ids:?}"
        );
        let mut texts: Vec<String> = held
            .into_iter()
            .map(|mut json| {
                json["id"] = Value::Null;
                json.to_string()
            })
            .collect();
        texts.sort();
        texts
    };
    assert_eq!(held(gathered), held(&ordinary));
}

#[test]
fn events_in_another_spelling_become_the_same_events() {
    for scenario in STREAMS {
        let captured = captured(scenario, "sse");
        let mut stream = captured.gather().stream(MAX_EVENT_BYTES);
        let mut out = BytesMut::new();
        for (sample, event) in captured.events() {
            // Without a space, and with lines that end otherwise and another field.
            let event = String::from_utf8(event.to_vec()).unwrap();
            let event = event
                .replace("data: ", "id: 1\r\ndata:")
                .replace('\n', "\r\n");
            let event = event.replace("\r\r", "\r");
            stream.push(sample, event.into(), &mut out).unwrap();
        }
        let out = String::from_utf8(out.to_vec()).unwrap();
        let plain = out.replace("\r\n", "\n").replace("id: 1\ndata:", "data: ");
        assert_eq!(plain.as_bytes(), captured.ordinary, "{scenario}");
    }
}

#[test]
fn all_chunks_have_the_created_of_the_first_one() {
    for scenario in [
        "n_chat_3_stream_usage",
        "n_cmpl_list_2x2_stream_echo_logprobs_usage",
    ] {
        let captured = captured(scenario, "sse");
        let mut stream = captured.gather().stream(MAX_EVENT_BYTES);
        let mut out = BytesMut::new();
        for (place, (sample, event)) in captured.events().into_iter().enumerate() {
            let mut event = String::from_utf8(event.to_vec()).unwrap();
            let own = captured.n - sample + usize::from(sample == 1 && place > 8) * 1_000_000_000;
            if let Some((before, rest)) = event.split_once("\"created\":") {
                let (_, after) = rest.split_once(',').unwrap();
                event = format!("{before}\"created\":{own},{after}");
            }
            stream.push(sample, event.into(), &mut out).unwrap();
        }
        let payloads = payloads(&out.freeze());
        let first = &payloads[0]["created"];
        assert!(first.is_u64());
        assert!(
            payloads.iter().all(|json| json["created"] == *first),
            "{scenario}"
        );
    }
}

#[test]
fn an_error_of_one_sample_is_given_to_the_caller_unchanged() {
    let error = Bytes::from_static(b"data: {\"error\":{\"message\":\"gone\",\"code\":500}}\n\n");
    for scenario in STREAMS {
        let captured = captured(scenario, "sse");
        let mut stream = captured.gather().stream(MAX_EVENT_BYTES);
        let mut out = BytesMut::new();
        let (events, fails) = (captured.events(), captured.n - 1);
        let (before, rest) =
            events.split_at(events.iter().position(|(of, _)| *of == fails).unwrap() + 1);
        for (sample, event) in before {
            stream.push(*sample, event.clone(), &mut out).unwrap();
        }
        let failed = stream.push(fails, error.clone(), &mut out).unwrap_err();
        assert_eq!(
            (failed.sample, failed.fault),
            (fails, GatherFault::Failed(error.clone()))
        );
        let unfinished = stream.end(fails).unwrap_err();
        assert_eq!(unfinished.fault, GatherFault::Unfinished);

        // The other samples may still send what they have.
        for (sample, event) in rest.iter().filter(|(of, _)| *of != fails) {
            stream.push(*sample, event.clone(), &mut out).unwrap();
        }
        let sent = out.len();
        stream.abandon(&error, &mut out);
        assert!(out[sent..].starts_with(&error), "{scenario}");
        assert!(out.ends_with(b"data: [DONE]\n\n"));
        if captured.route == Route::ChatCompletions {
            let finishes = payloads(&out.split_off(sent).freeze());
            let finished = |json: &&Value| json["choices"][0]["finish_reason"].is_string();
            assert_eq!(
                finishes.iter().filter(finished).count(),
                fails,
                "{scenario}"
            );
        }
    }
}

#[test]
fn events_that_wait_for_other_samples_are_bounded() {
    let captured = captured("n_chat_3_stream_usage", "sse");
    let events = captured.events();
    let finish = events
        .iter()
        .find(|(_, event)| event.windows(8).any(|text| text == b"\"length\""));
    let (_, finish) = finish.unwrap();
    let mut stream = captured.gather().stream(finish.len() * 2);
    let mut out = BytesMut::new();
    stream.push(0, finish.clone(), &mut out).unwrap();
    stream.push(0, finish.clone(), &mut out).unwrap();
    let error = stream.push(0, finish.clone(), &mut out).unwrap_err();
    assert_eq!(error.fault, GatherFault::TooLong(finish.len() * 2));
    // The other samples have a bound of their own.
    stream.push(1, finish.clone(), &mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn no_bytes_make_gathering_panic_or_give_a_part_of_an_event() {
    let mut rng = SmallRng::seed_from_u64(14);
    let (mut whole, mut failed) = (0, 0);
    for scenario in STREAMS {
        let captured = captured(scenario, "sse");
        let streams = streams(&captured.events(), captured.n);
        for _ in 0..40 {
            let mutated: Vec<Bytes> = streams.iter().map(|own| mutated(&mut rng, own)).collect();
            let mut stream = captured.gather().stream(MAX_EVENT_BYTES);
            let mut out = BytesMut::new();
            let mut error = None;
            for (sample, chunk) in shuffled(&mut rng, &mutated) {
                error = error.or(stream.push(sample, chunk, &mut out).err());
            }
            let sent = out.clone().freeze();
            assert_eq!(
                sse::events(sent).map(|event| event.len()).sum::<usize>(),
                out.len()
            );
            if let Some(error) = error {
                failed += 1;
                assert!(!error.to_string().is_empty());
                stream.abandon(b": gone\n\n", &mut out);
                assert!(out.ends_with(b"data: [DONE]\n\n"));
            } else {
                whole += usize::from(stream.is_complete());
            }
            // As documents they are no better.
            assert!(captured.gather().document(&mutated).is_err());
        }
    }
    assert!(whole > 40 && failed > 40, "{whole} {failed}");
}

/// A stream of which some bytes are lost, changed or repeated.
fn mutated(rng: &mut SmallRng, stream: &Bytes) -> Bytes {
    const TEXTS: [&[u8]; 6] = [
        b"\n\n",
        b"\"",
        b"}",
        b"index",
        b"9999999999",
        b"{\"error\":1}",
    ];
    let mut bytes = stream.to_vec();
    for _ in 0..rng.random_range(0..3) {
        let at = rng.random_range(0..bytes.len());
        let end = (at + rng.random_range(0..9)).min(bytes.len());
        let text = TEXTS[rng.random_range(0..TEXTS.len())];
        let kept = rng.random_range(0..3) > 0;
        bytes.splice(at..end, text.iter().copied().filter(|_| kept));
    }
    bytes.into()
}
