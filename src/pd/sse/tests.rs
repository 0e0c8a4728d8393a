#![allow(clippy::unwrap_used)]

use super::*;

fn split(stream: &str, chunk_bytes: usize) -> Vec<String> {
    let mut splitter = Splitter::new(stream.len());
    let mut events = Vec::new();
    for chunk in stream.as_bytes().chunks(chunk_bytes) {
        splitter.push(Bytes::copy_from_slice(chunk));
        while let Some(event) = splitter.next_event().unwrap() {
            events.push(event);
        }
    }
    events.extend(splitter.finish());
    events
        .iter()
        .map(|event| String::from_utf8(event.to_vec()).unwrap())
        .collect()
}

#[test]
fn events_end_with_a_blank_line_in_any_spelling_and_chunking() {
    for (stream, events) in [
        ("", vec![]),
        ("data: 1\n\ndata: 2\n\n", vec!["data: 1\n\n", "data: 2\n\n"]),
        (
            "data: 1\r\n\r\ndata: 2\r\n\r\n",
            vec!["data: 1\r\n\r\n", "data: 2\r\n\r\n"],
        ),
        ("data: 1\r\rdata: 2\r\r", vec!["data: 1\r\r", "data: 2\r\r"]),
        (
            "a\n\r\nb\r\n\nc\r\r\nd\n\r\re",
            vec!["a\n\r\n", "b\r\n\n", "c\r\r\n", "d\n\r", "\r", "e"],
        ),
        ("\n\n: hi\n\nrest\n", vec!["\n", "\n", ": hi\n\n", "rest\n"]),
        ("data: a\ndata: b\n\n", vec!["data: a\ndata: b\n\n"]),
    ] {
        for chunk_bytes in 1..=stream.len().max(1) {
            assert_eq!(
                split(stream, chunk_bytes),
                events,
                "{stream:?} in chunks of {chunk_bytes}"
            );
        }
    }
}

#[test]
fn an_event_whole_in_a_chunk_is_not_copied() {
    let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\nda");
    let mut splitter = Splitter::new(64);
    splitter.push(chunk.clone());
    assert_eq!(
        splitter.next_event().unwrap().unwrap().as_ptr(),
        chunk.as_ptr()
    );
    assert_eq!(
        splitter.next_event().unwrap().unwrap().as_ptr(),
        chunk[9..].as_ptr()
    );
    assert_eq!(splitter.next_event().unwrap(), None);
    assert_eq!(splitter.finish().unwrap(), "da");
}

#[test]
fn a_stream_that_is_all_there_gives_its_whole_events() {
    let stream = Bytes::from_static(b"data: 1\n\n\r\rdata: 2\r\n\r\ndata: 3\n");
    let whole: Vec<Bytes> = events(stream).collect();
    assert_eq!(whole, ["data: 1\n\n", "\r", "\r", "data: 2\r\n\r\n"]);
}

#[test]
fn an_event_over_the_limit_is_refused_in_any_chunking() {
    let stream = b"data: 12\n\n";
    for chunk_bytes in 1..=stream.len() {
        for (limit, taken) in [(stream.len(), true), (stream.len() - 1, false)] {
            let mut splitter = Splitter::new(limit);
            let mut result = Ok(None);
            for chunk in stream.chunks(chunk_bytes) {
                splitter.push(Bytes::copy_from_slice(chunk));
                result = splitter.next_event();
                if result.is_err() {
                    break;
                }
            }
            let wanted = if taken {
                Ok(Some(Bytes::from_static(stream)))
            } else {
                Err(EventTooLong { limit })
            };
            assert_eq!(result, wanted);
        }
    }
}

#[test]
fn the_data_of_an_event_is_its_one_data_line() {
    for (event, payload) in [
        ("data: {}\n\n", Some("{}")),
        ("data:{}\n\n", Some("{}")),
        ("data:  {}\r\n\r\n", Some(" {}")),
        ("data: {}\r\r", Some("{}")),
        ("data:\n\n", Some("")),
        ("data\n\n", Some("")),
        ("event: x\ndata: {\"a\":1}\n\n", Some("{\"a\":1}")),
        ("data: {}\nid: 7\n\n", Some("{}")),
        ("data: {\ndata: }\n\n", None),
        (": comment\n\n", None),
        ("database: {}\n\n", None),
        (" data: {}\n\n", None),
        ("\n", None),
        ("", None),
    ] {
        assert_eq!(
            data(event.as_bytes()),
            payload.map(str::as_bytes),
            "{event:?}"
        );
    }
}

#[test]
fn done_counts_only_as_a_whole_line() {
    for (event, done) in [
        ("data: [DONE]\n\n", true),
        ("data:[DONE]\r\n\r\n", true),
        ("data: [DONE] \n\n", false),
        ("data: {\"text\":\"data: [DONE]\"}\n\n", false),
        ("[DONE]\n\n", false),
    ] {
        assert_eq!(is_done(event.as_bytes()), done, "{event:?}");
    }
}

#[test]
fn an_error_event_is_one_whole_event() {
    assert_eq!(error_event("{\"error\":1}"), "data: {\"error\":1}\n\n");
    let event = error_event("{\n\"error\":1}\n");
    assert_eq!(event, "data: {\ndata: \"error\":1}\n\n");
    assert_eq!(split(&event, 1), [event.as_str()]);
}

#[test]
fn the_boundary_is_known_after_every_byte_and_every_chunk() {
    let ends_with_blank_line = |sent: &[u8]| {
        let mut line = Line::EventStart;
        let mut rest = sent;
        while let Some(end) = line.find_event_end(rest, |_| {}) {
            rest = &rest[end..];
        }
        matches!(line, Line::EventStart | Line::BlankCr)
    };
    // All streams of up to eight bytes of these three, in all cuts into two chunks.
    for length in 0..=8u32 {
        for number in 0..3usize.pow(length) {
            let stream: Vec<u8> = (0..length)
                .map(|place| b"x\n\r"[number / 3usize.pow(place) % 3])
                .collect();
            for cut in 0..=stream.len() {
                let mut boundary = Boundary::new();
                boundary.update(&stream[..cut]);
                boundary.update(&stream[cut..]);
                assert_eq!(
                    boundary.is_at_event_end(),
                    ends_with_blank_line(&stream),
                    "{stream:?} {cut}"
                );
            }
        }
    }
}
