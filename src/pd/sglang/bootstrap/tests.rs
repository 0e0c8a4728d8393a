#![allow(clippy::unwrap_used)]

use super::super::super::Route;
use super::super::request::parse;
use super::*;

/// Injects rooms 1, 2, 3... for prefill `p:8998` into a body of `/generate`.
fn injected(body: &str) -> String {
    let facts = parse(Route::Generate, body.as_bytes()).unwrap();
    let rooms: Vec<Room> = (1..)
        .take(facts.batch.prompts())
        .map(|n| Room::new(n).unwrap())
        .collect();
    let bootstrap = Bootstrap::new("p", Some(8998));
    let fields = Fields {
        bootstrap: &bootstrap,
        rooms: &rooms,
        rank: None,
        rids: None,
    };
    let injected = inject(body.as_bytes().into(), &facts, &fields);
    String::from_utf8(injected.body.to_vec()).unwrap()
}

const SCALARS: &str = r#""bootstrap_host":"p","bootstrap_port":8998,"bootstrap_room":1}"#;

#[test]
fn a_scalar_room_is_spliced_for_one_prompt() {
    assert_eq!(injected("{}"), format!("{{{SCALARS}"));
    assert_eq!(
        injected(r#"{"text":"a"}"#),
        format!(r#"{{"text":"a",{SCALARS}"#)
    );
}

#[test]
fn lists_are_spliced_for_a_batch_of_any_size() {
    for (body, fields) in [
        (
            r#"{"text":[]"#,
            r#""bootstrap_host":[],"bootstrap_port":[],"bootstrap_room":[]}"#,
        ),
        (
            r#"{"text":["a"]"#,
            r#""bootstrap_host":["p"],"bootstrap_port":[8998],"bootstrap_room":[1]}"#,
        ),
        (
            r#"{"text":["a","b"]"#,
            r#""bootstrap_host":["p","p"],"bootstrap_port":[8998,8998],"bootstrap_room":[1,2]}"#,
        ),
    ] {
        assert_eq!(injected(&format!("{body}}}")), format!("{body},{fields}"));
    }
}

#[test]
fn the_clients_own_fields_are_cut_in_any_spelling_and_nothing_else_changes() {
    for (body, kept) in [
        (r#"{"bootstrap_room":7}"#, "{"),
        (
            r#"{ "bootstrap_room" : 7 , "bootstrap_host":"x" }"#,
            "{    ",
        ),
        (r#"{"bootstrap_room":7,"a":1}"#, r#"{"a":1,"#),
        (
            r#"{"a":1 , "bootstrap_room":{"b":[7]} , "c":1e400}"#,
            r#"{"a":1   , "c":1e400,"#,
        ),
        (
            r#"{"a":-0,"bootstrap_room":7,"\u0062ootstrap_room":8}"#,
            r#"{"a":-0,"#,
        ),
        (
            r#"{"a":{"bootstrap_room":7},"bootstrap_rooms":1}"#,
            r#"{"a":{"bootstrap_room":7},"bootstrap_rooms":1,"#,
        ),
        (
            "\n{\"a\":123456789012345678901234567890\t}\n\n",
            "\n{\"a\":123456789012345678901234567890\t,",
        ),
    ] {
        assert_eq!(injected(body), format!("{kept}{SCALARS}"), "{body}");
    }
}

#[test]
fn no_byte_moves_when_nothing_is_cut_and_there_is_room_to_spare() {
    let text = format!(r#"{{"text":"{}"}}"#, "a".repeat(1000));
    let facts = parse(Route::Generate, text.as_bytes()).unwrap();
    let bootstrap = Bootstrap::new(&"h".repeat(64), Some(u16::MAX));
    let rooms = [Room::new(Room::MAX).unwrap()];
    let mut body = BytesMut::with_capacity(text.len() + tail_reserve(1));
    body.extend_from_slice(text.as_bytes());
    let before = body.as_ptr();
    let after = inject(
        body,
        &facts,
        &Fields {
            bootstrap: &bootstrap,
            rooms: &rooms,
            rank: None,
            rids: Some(&[RequestId(u128::MAX)]),
        },
    );
    assert_eq!(after.body.as_ptr(), before);
}

#[test]
fn another_pair_gets_the_same_body_with_other_fields() {
    let (one, two) = (Bootstrap::new("p", Some(1)), Bootstrap::new("q", None));
    let rooms = [1, 2, 3, 4].map(|n| Room::new(n).unwrap());
    for (body, kept) in [
        (r#"{"text":["a","b"]}"#, r#"{"text":["a","b"],"#),
        (r#"{"bootstrap_room":9}"#, "{"),
    ] {
        let facts = parse(Route::Generate, body.as_bytes()).unwrap();
        let prompts = facts.batch.prompts();
        let first = Fields {
            bootstrap: &one,
            rooms: &rooms[..prompts],
            rank: None,
            rids: Some(&[RequestId(10), RequestId(11)][..prompts]),
        };
        let second = Fields {
            bootstrap: &two,
            rooms: &rooms[2..2 + prompts],
            rank: Some(3),
            rids: Some(&[RequestId(12), RequestId(13)][..prompts]),
        };
        let sent = inject(body.into(), &facts, &first);
        let again = sent.again(&second).again(&first).again(&second);
        let fresh = inject(body.into(), &facts, &second);
        assert_eq!(again.body, fresh.body);
        assert!(fresh.body.starts_with(kept.as_bytes()));
        assert_ne!(sent.body, fresh.body);
    }
}

#[test]
fn the_rank_is_one_for_all_prompts() {
    let bootstrap = Bootstrap::new("p", None);
    let rooms = [2, 6].map(|n| Room::new(n).unwrap());
    for (body, prompts, fields) in [
        ("{}", 1, r#""bootstrap_room":2,"disagg_prefill_dp_rank":2}"#),
        (
            r#"{"disagg_prefill_dp_rank":[7],"text":["a","b"]}"#,
            2,
            r#""bootstrap_room":[2,6],"disagg_prefill_dp_rank":2}"#,
        ),
    ] {
        let facts = parse(Route::Generate, body.as_bytes()).unwrap();
        let fields_of_two = Fields {
            bootstrap: &bootstrap,
            rooms: &rooms[..prompts],
            rank: Some(2),
            rids: None,
        };
        let injected = inject(body.into(), &facts, &fields_of_two).body;
        assert!(injected.ends_with(fields.as_bytes()), "{injected:?}");
        let names = injected.windows(7).filter(|name| name == b"dp_rank");
        assert_eq!(names.count(), 1, "the client's own is cut");
    }
}

#[test]
fn an_id_is_one_for_one_prompt_and_a_list_for_a_batch() {
    let bootstrap = Bootstrap::new("p", None);
    let room = Room::new(1).unwrap();
    for (body, rid) in [
        ("{}", r#""rid":"000000000000000000000000000000ff"}"#),
        (
            r#"{"text":["a"]}"#,
            r#""rid":["000000000000000000000000000000ff"]}"#,
        ),
    ] {
        let facts = parse(Route::Generate, body.as_bytes()).unwrap();
        let fields = Fields {
            bootstrap: &bootstrap,
            rooms: &[room],
            rank: None,
            rids: Some(&[RequestId(255)]),
        };
        let injected = inject(body.into(), &facts, &fields);
        assert!(
            injected.body.ends_with(rid.as_bytes()),
            "{:?}",
            injected.body
        );
    }
}

#[test]
fn an_ipv6_address_is_bracketed_once_and_a_missing_port_is_null() {
    for (host, port, host_json, port_json) in [
        (
            "prefill-0.local",
            Some(8998),
            r#""prefill-0.local""#,
            "8998",
        ),
        ("10.0.0.1", None, r#""10.0.0.1""#, "null"),
        ("fd00::1", Some(1), r#""[fd00::1]""#, "1"),
        ("[fd00::1]", Some(65535), r#""[fd00::1]""#, "65535"),
        ("fe80::1%eth0", None, r#""[fe80::1%eth0]""#, "null"),
        ("a\"b", None, r#""a\"b""#, "null"),
    ] {
        let bootstrap = Bootstrap::new(host, port);
        assert_eq!(
            (&*bootstrap.host_json, &*bootstrap.port_json),
            (host_json, port_json)
        );
        assert_eq!(bootstrap.port(), port);
    }
    assert_eq!(Bootstrap::new("fd00::1", None).host(), "[fd00::1]");
}

#[test]
fn a_room_is_neither_zero_nor_beyond_63_bits() {
    assert_eq!(Room::new(0), None);
    assert_eq!(Room::new(1).map(Room::number), Some(1));
    assert_eq!(
        Room::new(Room::MAX).unwrap().to_string(),
        "9223372036854775807"
    );
    assert_eq!(Room::new(Room::MAX + 1), None);
}

#[test]
#[should_panic(expected = "one room for each prompt")]
fn a_wrong_number_of_rooms_is_never_sent() {
    let facts = parse(Route::Generate, b"{}").unwrap();
    inject(
        "{}".into(),
        &facts,
        &Fields {
            bootstrap: &Bootstrap::new("p", None),
            rooms: &[],
            rank: None,
            rids: None,
        },
    );
}
