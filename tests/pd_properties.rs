//! The pure room under bytes that nobody would think of: random bodies, random mutations, random splits.
//! What is random is seeded, so a failure comes again. The references are slow and share no code with the
//! room.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use mini_lb::pd::json::{MAX_DEPTH, Scanner};
use mini_lb::pd::{
    self, Batch, Bootstrap, Boundary, Fields, Merge, PromptSide, Room, Route, Splitter,
    StreamMerger,
};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::de::IgnoredAny;
use serde_json::Value;

const OWNED: [&str; 3] = ["bootstrap_host", "bootstrap_port", "bootstrap_room"];

#[test]
fn an_injected_body_is_the_body_outside_of_the_owned_keys() {
    let mut rng = SmallRng::seed_from_u64(1);
    let bootstrap = Bootstrap::new("fd00::1", Some(8998));
    let (mut cut, mut batches, mut streams) = (0, 0, 0);
    for _ in 0..100_000 {
        let body = random_body(&mut rng);
        let facts =
            pd::parse(Route::Generate, body.as_bytes()).unwrap_or_else(|e| panic!("{body}: {e}"));

        let tree: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(facts.stream, tree["stream"] == true, "{body}");
        let strings = |list: &Vec<Value>| list.iter().all(Value::is_string).then_some(list.len());
        let prompts = tree["text"].as_array().and_then(strings);
        assert_eq!(
            facts.batch,
            prompts.map_or(Batch::Single, Batch::Of),
            "{body}"
        );

        let rooms: Vec<Room> = (0..facts.batch.prompts())
            .map(|_| Room::new(rng.random_range(1..=Room::MAX)).unwrap())
            .collect();
        let spare = rng.random_range(0..400);
        let mut bytes = BytesMut::with_capacity(body.len() + spare);
        bytes.extend_from_slice(body.as_bytes());
        let injected = pd::inject(
            bytes,
            &facts,
            &Fields {
                bootstrap: &bootstrap,
                rooms: &rooms,
                rids: None,
            },
        )
        .body;

        let kept = without_owned(&body);
        let injected = std::str::from_utf8(&injected).unwrap();
        assert_eq!(
            injected,
            kept.clone() + &fields(&kept, facts.batch, &rooms),
            "{body}"
        );
        let mut merged: Value = serde_json::from_str(injected).unwrap();
        for name in OWNED {
            assert!(merged.as_object_mut().unwrap().remove(name).is_some());
        }
        cut += usize::from(OWNED.iter().any(|name| tree.get(name).is_some()));
        batches += usize::from(facts.batch != Batch::Single);
        streams += usize::from(facts.stream);
    }
    // The generator reaches what it is there for.
    assert!(
        cut > 10_000 && batches > 5_000 && streams > 2_000,
        "{cut} {batches} {streams}"
    );
}

/// Intended differences: none in the documents made here. Elsewhere serde_json skips values of any depth
/// and the scanner stops at [`MAX_DEPTH`]; a `Value` of serde_json refuses lone surrogates and the scanner,
/// like Python, does not.
#[test]
fn the_scanner_accepts_what_serde_json_accepts() {
    let mut rng = SmallRng::seed_from_u64(2);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..60_000 {
        let mut text = random_body(&mut rng).into_bytes();
        for _ in 0..rng.random_range(0..3) {
            mutate(&mut rng, &mut text);
        }
        let wanted = std::str::from_utf8(&text)
            .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        assert_eq!(scans(&text), wanted, "{}", text.escape_ascii());
        *(if wanted { &mut accepted } else { &mut refused }) += 1;
    }
    assert!(
        accepted > 20_000 && refused > 20_000,
        "{accepted} {refused}"
    );
}

#[test]
fn a_hostile_depth_costs_no_stack_and_is_refused() {
    for bracket in ["[", "{\"a\":", "[{\"a\":["] {
        let text = bracket.repeat(200_000);
        assert!(!scans(text.as_bytes()));
        let error = pd::parse(Route::Generate, format!("{{\"a\":{text}").as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains(&MAX_DEPTH.to_string()),
            "{error}"
        );
    }
}

#[test]
fn any_split_of_a_captured_stream_merges_to_the_same_bytes() {
    let mut rng = SmallRng::seed_from_u64(3);
    for (scenario, merge, batch) in [
        ("gen_logprob_stream", Merge::InputLogprobs, Batch::Single),
        ("gen_batch_stream_all", Merge::InputLogprobs, Batch::Of(2)),
        ("gen_flat_b64_stream", Merge::InputLogprobs, Batch::Single),
        ("cmpl_echo_batch_stream", Merge::Echo, Batch::Of(2)),
    ] {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/sglang-0.5.23")
            .join(scenario);
        let answer = |leg: &str| Bytes::from(fs::read(folder.join(leg)).unwrap());
        let side = PromptSide::from_stream(merge, batch, answer("prefill.sse")).unwrap();
        let decode = answer("decode.sse");
        let whole = merged(&side, std::slice::from_ref(&decode));
        assert_ne!(whole, decode, "{scenario}");
        for _ in 0..40 {
            let cuts = rng.random_range(0..60);
            assert_eq!(
                merged(&side, &split_at_random(&mut rng, &decode, cuts)),
                whole,
                "{scenario}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_a_stream_gives_the_same_events(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream = Bytes::from(pieces.concat());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let chunks = split(&stream, &cuts);
        let whole = events(std::slice::from_ref(&stream));
        prop_assert_eq!(events(&chunks), whole.clone());
        prop_assert_eq!(whole.concat(), stream.as_ref());

        let (mut in_chunks, mut at_once) = (Boundary::new(), Boundary::new());
        chunks.iter().for_each(|chunk| in_chunks.update(chunk));
        at_once.update(&stream);
        prop_assert_eq!(in_chunks.is_at_event_end(), at_once.is_at_event_end());
    }

    #[test]
    fn no_bytes_make_the_room_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let event = [b"data: {", &bytes[..], b"\n\n"].concat();
        for route in Route::ALL {
            let _ = pd::parse(route, &bytes);
            let _ = pd::stream_error(route, &event);
        }
        for merge in [Merge::InputLogprobs, Merge::Echo] {
            let bytes = Bytes::from(bytes.clone());
            prop_assert!(PromptSide::from_body(merge, Batch::Single, bytes).is_err());
            prop_assert!(PromptSide::from_stream(merge, Batch::Single, Bytes::from(event.clone())).is_err());
        }
    }
}

const PIECES: &[&str] = &[
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    "data: ",
    "data:",
    "{\"text\":\"é\\n\\n\"}",
    "[DONE]",
    ": hi",
    "event: x",
    " ",
    "a",
];

fn events(chunks: &[Bytes]) -> Vec<Bytes> {
    let mut splitter = Splitter::new(1 << 20);
    let mut events = Vec::new();
    for chunk in chunks {
        splitter.push(chunk.clone());
        while let Some(event) = splitter.next_event().unwrap() {
            events.push(event);
        }
    }
    events.extend(splitter.finish());
    events
}

fn merged(side: &PromptSide, chunks: &[Bytes]) -> Bytes {
    let mut merger = StreamMerger::new(side.clone());
    let mut out = BytesMut::new();
    for event in events(chunks) {
        merger.event(&event, &mut out).unwrap();
    }
    out.freeze()
}

fn split(stream: &Bytes, cuts: &[usize]) -> Vec<Bytes> {
    let ends = cuts.iter().copied().chain([stream.len()]);
    let starts = [0].into_iter().chain(cuts.iter().copied());
    starts
        .zip(ends)
        .map(|(start, end)| stream.slice(start..end))
        .collect()
}

fn split_at_random(rng: &mut SmallRng, stream: &Bytes, cuts: usize) -> Vec<Bytes> {
    let mut cuts: Vec<usize> = (0..cuts)
        .map(|_| rng.random_range(0..=stream.len()))
        .collect();
    cuts.sort_unstable();
    split(stream, &cuts)
}

fn scans(text: &[u8]) -> bool {
    Scanner::new(text).is_ok_and(|mut scanner| scanner.skip().is_ok() && scanner.end().is_ok())
}

/// The body up to its closing brace without the owned members and one comma for each, found character by
/// character: an object is what stands between its commas.
fn without_owned(body: &str) -> String {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let (mut kept, mut member, mut any_kept) = (String::new(), String::new(), false);
    for c in body.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            member.push(c);
            continue;
        }
        in_string = c == '"';
        match c {
            '{' if depth == 0 => {
                depth = 1;
                kept = member.split_off(0) + "{";
                continue;
            }
            ',' | '}' if depth == 1 => {
                let name = member.trim_start();
                if name.is_empty() || is_owned(name) {
                    let spaces = member.len() - name.len();
                    kept += &member[..spaces];
                    kept += &name[name.trim_end().len()..];
                } else {
                    kept += if any_kept { "," } else { "" };
                    kept += &member;
                    any_kept = true;
                }
                member.clear();
                if c == '}' {
                    return kept;
                }
                continue;
            }
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        member.push(c);
    }
    panic!("no object: {body}");
}

/// Whether a member, `"key" : value`, has a key of the proxy's.
fn is_owned(member: &str) -> bool {
    let mut strings = serde_json::Deserializer::from_str(member).into_iter::<String>();
    strings
        .next()
        .unwrap()
        .is_ok_and(|key| OWNED.contains(&key.as_str()))
}

/// The text that ends an injected body.
fn fields(kept: &str, batch: Batch, rooms: &[Room]) -> String {
    let list = |items: Vec<String>| match batch {
        Batch::Single => items.concat(),
        Batch::Of(_) => format!("[{}]", items.join(",")),
    };
    let repeat = |item: &str| list(vec![item.to_owned(); rooms.len()]);
    let first = kept.trim().trim_start_matches('{').trim().is_empty();
    format!(
        r#"{}"bootstrap_host":{},"bootstrap_port":{},"bootstrap_room":{}}}"#,
        if first { "" } else { "," },
        repeat("\"[fd00::1]\""),
        repeat("8998"),
        list(rooms.iter().map(Room::to_string).collect()),
    )
}

/// An object with odd spacing, escapes, huge numbers, nested values, and owned keys in every spelling.
fn random_body(rng: &mut SmallRng) -> String {
    let mut body = String::new();
    space(rng, &mut body);
    body.push('{');
    space(rng, &mut body);
    for member in 0..rng.random_range(0..8) {
        if member > 0 {
            body.push(',');
            space(rng, &mut body);
        }
        key(rng, &mut body);
        space(rng, &mut body);
        body.push(':');
        space(rng, &mut body);
        value(rng, &mut body, 3);
        space(rng, &mut body);
    }
    body.push('}');
    space(rng, &mut body);
    body
}

fn key(rng: &mut SmallRng, out: &mut String) {
    const KEYS: [&str; 12] = [
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "bootstrap_rooms",
        "Bootstrap_room",
        "stream",
        "stream",
        "text",
        "text",
        "sampling_params",
        "",
        "é{\\\"}\\n",
    ];
    let key = KEYS[rng.random_range(0..KEYS.len())];
    let escape = !key.contains('\\') && rng.random_range(0..4) == 0;
    out.push('"');
    for c in key.chars() {
        if escape && rng.random_range(0..4) == 0 {
            *out += &format!("\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out.push('"');
}

fn value(rng: &mut SmallRng, out: &mut String, depth: usize) {
    const SCALARS: [&str; 16] = [
        "true",
        "true",
        "false",
        "null",
        "0",
        "-0",
        "1e400",
        "-1.50E+07",
        "123456789012345678901234567890",
        "9223372036854775808",
        "\"\"",
        "\"bootstrap_room\"",
        "\"a,}]{[:\\\"\\\\\"",
        "\"\\ud83d\\ude00\\/\"",
        "\"\u{7f}é\u{10ffff}\"",
        "\"data: [DONE]\"",
    ];
    let kind = if depth == 0 {
        0
    } else {
        rng.random_range(0..5)
    };
    let elements = rng.random_range(0..4);
    match kind {
        3 => {
            // Strings only, so that a batch is met often enough.
            let strings = rng.random_range(0..2) == 0;
            out.push('[');
            for element in 0..elements {
                *out += if element > 0 { "," } else { "" };
                space(rng, out);
                if strings {
                    *out += SCALARS[rng.random_range(10..SCALARS.len())];
                } else {
                    value(rng, out, depth - 1);
                }
                space(rng, out);
            }
            out.push(']');
        }
        4 => {
            out.push('{');
            for element in 0..elements {
                *out += if element > 0 { "," } else { "" };
                space(rng, out);
                key(rng, out);
                out.push(':');
                value(rng, out, depth - 1);
            }
            out.push('}');
        }
        _ => *out += SCALARS[rng.random_range(0..SCALARS.len())],
    }
}

fn space(rng: &mut SmallRng, out: &mut String) {
    if rng.random_range(0..4) == 0 {
        *out += [" ", "\t", "\n", "\r\n", "   "][rng.random_range(0..5)];
    }
}

fn mutate(rng: &mut SmallRng, text: &mut Vec<u8>) {
    const BYTES: &[u8] = b"{}[],:\"\\0123.eE+-truefalsnNaI \n\t\x00\x1f\x7f\x80\xc3\xed\xff/u";
    let at = rng.random_range(0..text.len());
    let byte = BYTES[rng.random_range(0..BYTES.len())];
    match rng.random_range(0..4) {
        0 => text[at] = byte,
        1 => text.insert(at, byte),
        2 => text.truncate(at),
        _ => {
            text.remove(at);
        }
    }
    if text.is_empty() {
        text.push(byte);
    }
}
