//! `mini_lb::pd` with random bodies, mutations and splits.
//! The random generators are seeded, so a failure repeats. The properties are those of `support::properties`.

use std::fs;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use mini_lb::pd::json::MAX_DEPTH;
use mini_lb::pd::{self, Batch, Merge, PrefillData, Route, StreamMerger};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::properties::{rewriter, splitter};

#[test]
fn an_injected_body_is_the_body_outside_of_the_owned_keys() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (mut cuts, mut batches, mut streams, mut refused) = (0, 0, 0, 0);
    for _ in 0..40_000 {
        // The route of `/generate`, ids or none, any room.
        let mut bytes = vec![0, rng.random_range(0..2), rng.random_range(0..3)];
        bytes.extend(random_body(&mut rng).bytes());
        let rewriter::Outcome::Rewritten { stream, batch, cut } = rewriter::check(&bytes) else {
            // A list of options that does not fit the prompts.
            refused += 1;
            continue;
        };
        cuts += usize::from(cut);
        batches += usize::from(batch);
        streams += usize::from(stream);
    }
    // The generator reaches the interesting cases.
    assert!(
        cuts > 4_000 && batches > 2_000 && streams > 800 && refused < 8_000,
        "{cuts} {batches} {streams} {refused}"
    );
}

#[test]
fn the_scanner_accepts_what_serde_json_accepts() {
    let mut rng = SmallRng::seed_from_u64(2);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..60_000 {
        let mut text = random_body(&mut rng).into_bytes();
        for _ in 0..rng.random_range(0..3) {
            mutate(&mut rng, &mut text);
        }
        let scans = rewriter::the_scanner_takes_what_serde_json_takes(&text);
        *(if scans { &mut accepted } else { &mut refused }) += 1;
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
        assert!(!rewriter::the_scanner_takes_what_serde_json_takes(
            text.as_bytes()
        ));
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
        let side = PrefillData::from_stream(merge, batch, answer("prefill.sse")).unwrap();
        let decode = answer("decode.sse");
        let whole = merged(&side, std::slice::from_ref(&decode));
        assert_ne!(whole, decode, "{scenario}");
        for _ in 0..40 {
            let longest = rng.random_range(1..decode.len());
            let lengths: Vec<usize> = (0..rng.random_range(0..60))
                .map(|_| rng.random_range(0..longest))
                .collect();
            let chunks = splitter::chunks(&decode, &lengths);
            assert_eq!(merged(&side, &chunks), whole, "{scenario}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_a_stream_gives_the_same_events(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..24),
        lengths in prop::collection::vec(0usize..20, 0..12),
    ) {
        let stream = Bytes::from(pieces.concat());
        splitter::any_chunking_gives_the_same_events(&stream, &lengths);
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
            prop_assert!(PrefillData::from_body(merge, Batch::Single, bytes).is_err());
            prop_assert!(PrefillData::from_stream(merge, Batch::Single, Bytes::from(event.clone())).is_err());
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

fn merged(side: &PrefillData, chunks: &[Bytes]) -> Bytes {
    let mut merger = StreamMerger::new(side.clone());
    let mut out = BytesMut::new();
    for event in splitter::events(chunks) {
        merger.event(&event, &mut out).unwrap();
    }
    out.freeze()
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
            // Only strings, so that batches are frequent enough.
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
