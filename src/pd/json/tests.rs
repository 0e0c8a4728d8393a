#![allow(clippy::unwrap_used)]

use std::ops::Range;

use super::scanner::STRING_STEP;
use super::*;

fn scan(text: &[u8]) -> Result<Range<usize>, Error> {
    let mut scanner = Scanner::new(text)?;
    let span = scanner.skip()?;
    scanner.end()?;
    Ok(span)
}

#[test]
fn the_grammar_of_rfc_8259_is_taken() {
    for text in [
        "0",
        "-0",
        "1e400",
        "-1.25E-3",
        "123456789012345678901234567890",
        "\"\"",
        "true",
        "false",
        "null",
        "{}",
        "[]",
        " [ ] ",
        "\t{ \"a\" : [ 1 , { } ] }\r\n",
        r#""\"\\\/\b\f\n\r\t\u00e9""#,
        r#""\ud800""#,
        r#"{"a":1,"a":2}"#,
        "\"\u{7f}\u{80}\u{10ffff}\"",
        "[[],[[]],{\"\":[]}]",
    ] {
        let span = scan(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(&text[span], text.trim());
    }
}

#[test]
fn what_is_not_json_is_refused_where_it_goes_wrong() {
    for (text, offset, what) in [
        (&b""[..], 0, "the text ends too early"),
        (b"{\"a\":1", 6, "the text ends too early"),
        (b"NaN", 0, "a value was expected"),
        (b"-Infinity", 1, "a digit was expected"),
        (b"nul", 0, "a value was expected"),
        (b"01", 1, "text after the end of the value"),
        (b"1.", 2, "the text ends too early"),
        (b"1.e", 2, "a digit was expected"),
        (b"{\"a\":1,}", 7, "a key was expected"),
        (b"[1,]", 3, "a value was expected"),
        (b"[1}", 2, "a comma or a closing bracket was expected"),
        (b"{\"a\":1]", 6, "a comma or a closing brace was expected"),
        (b"{\"a\" 1}", 5, "a colon was expected"),
        (b"{'a':1}", 1, "a key was expected"),
        (b"\"a\nb\"", 2, "a control character in a string"),
        (b"\"abc", 4, "a string without an end"),
        (b"\"\\x\"", 1, "an unknown escape"),
        (
            b"\"\\u12g4\"",
            1,
            "an escape without four hexadecimal digits",
        ),
        (b"{} {}", 3, "text after the end of the value"),
        (b"\xef\xbb\xbf{}", 0, "a byte order mark"),
        (b"{\"a\":\"\xff\"}", 6, "bytes that are not UTF-8"),
        (b"\"\xed\xa0\x80\"", 1, "bytes that are not UTF-8"),
    ] {
        assert_eq!(
            scan(text),
            Err(Error::Syntax { offset, what }),
            "{}",
            text.escape_ascii()
        );
    }
}

#[test]
fn depth_is_limited_whether_values_are_skipped_or_visited() {
    let nest = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(scan(nest(MAX_DEPTH).as_bytes()).is_ok());
    let too_deep = Err(Error::TooDeep { offset: MAX_DEPTH });
    assert_eq!(scan(nest(MAX_DEPTH + 1).as_bytes()), too_deep);
    assert_eq!(scan("[".repeat(1_000_000).as_bytes()), too_deep);

    let text = nest(MAX_DEPTH + 1);
    let mut scanner = Scanner::new(text.as_bytes()).unwrap();
    let visited = scanner.array(|s, _| s.array(|s, _| s.skip().map(drop)).map(drop));
    assert_eq!(visited, Err(Error::TooDeep { offset: MAX_DEPTH }));
}

#[test]
fn members_are_given_with_their_unescaped_names_and_their_commas() {
    let text = r#"{ "a" : 1 , "str\u0065am":[2], "\ud800": {} }"#;
    let mut scanner = Scanner::new(text.as_bytes()).unwrap();
    let mut seen = Vec::new();
    let close = scanner
        .object(|s, member| {
            let value = s.skip()?;
            seen.push((
                member.name.into_owned(),
                member.start,
                member.comma,
                s.slice(value),
            ));
            Ok(())
        })
        .unwrap();
    scanner.end().unwrap();
    assert_eq!(close, text.len() - 1);
    assert_eq!(
        seen,
        [
            ("a".to_owned(), 2, None, "1"),
            ("stream".to_owned(), 12, Some(10), "[2]"),
            ("\\ud800".to_owned(), 31, Some(29), "{}"),
        ]
    );
}

#[test]
fn a_cut_takes_one_comma_with_each_member() {
    for (text, rest) in [
        ("{}", "{}"),
        ("{x}", "{}"),
        ("{x,x}", "{}"),
        ("{a,x}", "{a}"),
        ("{x,a}", "{a}"),
        ("{x, x, a,b}", "{  a,b}"),
        ("{a , x , b}", "{a   , b}"),
        ("{ a,x,x,b,x }", "{ a,b }"),
    ] {
        let mut cuts = Cuts::default();
        let mut comma = None;
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b',' => comma = Some(at),
                b'x' => cuts.cut(comma, at..at + 1),
                b'a' | b'b' => cuts.keep(comma),
                _ => {}
            }
        }
        let mut left = text.to_owned();
        for range in cuts.ranges().iter().rev() {
            left.replace_range(range.clone(), "");
        }
        assert_eq!(left, rest, "{text}");
        assert_eq!(cuts.leaves_nothing(), !text.contains(['a', 'b']), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn long_arrays_of_integers_are_judged_like_short_ones(
        ids in proptest::collection::vec(0u32..200_000, 1..700),
        separator in proptest::sample::select(&[",", ", ", ",  ", " ,", "\n,"][..]),
        flaw in proptest::option::of((
            proptest::prelude::any::<proptest::sample::Index>(),
            proptest::sample::select(&b"0123456789, -.e[]\"x"[..]),
        )),
    ) {
        let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
        let mut text = format!("[{}]", ids.join(separator)).into_bytes();
        if let Some((at, byte)) = flaw {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let judged = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
        proptest::prop_assert_eq!(scan(&text).is_ok(), judged);
    }
}

#[test]
fn a_flaw_is_found_in_every_piece_of_a_long_string() {
    for at in [
        1,
        STRING_STEP,
        STRING_STEP + 1,
        STRING_STEP + 2,
        2 * STRING_STEP,
        3 * STRING_STEP - 1,
    ] {
        let mut text = vec![b'a'; 3 * STRING_STEP + 2];
        (text[0], text[3 * STRING_STEP + 1]) = (b'"', b'"');
        assert_eq!(scan(&text), Ok(0..text.len()));
        text[at] = b'\n';
        let what = "a control character in a string";
        assert_eq!(scan(&text), Err(Error::Syntax { offset: at, what }));
        text[at..at + 2].copy_from_slice(b"\\\"");
        assert_eq!(scan(&text), Ok(0..text.len()));
    }
}
