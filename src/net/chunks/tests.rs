//! Joined chunks have the same meaning as the chunks that arrived.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// The length of the first line of [`HEAD`].
const HEAD_LINE: usize = 17;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// A strict reader of a chunked body: its chunks, and whether the body ended, was cut off or is malformed.
fn read(mut body: &[u8]) -> (Vec<Vec<u8>>, &'static str) {
    let mut chunks = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(body) else {
            let bad = httparse::parse_chunk_size(body).is_err();
            return (chunks, if bad { "bad" } else { "cut" });
        };
        if size == 0 {
            let ended = body[line..].windows(2).any(|two| two == LINE_END);
            return (chunks, if ended { "ended" } else { "cut" });
        }
        let size = usize::try_from(size).unwrap();
        let data = &body[line..];
        chunks.push(data[..size.min(data.len())].to_vec());
        match data.get(size..).unwrap_or_default() {
            [b'\r', b'\n', ..] => body = &data[size + 2..],
            [] | [b'\r'] => return (chunks, "cut"),
            _ => return (chunks, "bad"),
        }
    }
}

/// The reads that Pingora sees when these bytes arrive in reads that end at `ends`.
fn joined(bytes: &[u8], ends: &[usize]) -> Vec<Vec<u8>> {
    let mut joiner = Joiner::new(Chunks::Joined);
    let mut reads = Vec::new();
    let mut from = 0;
    for end in ends.iter().copied().chain([bytes.len()]) {
        let mut read = bytes[from..end].to_vec();
        let left = joiner.join(&mut read);
        assert!(left <= read.len() && (left > 0 || read.is_empty()));
        read.truncate(left);
        reads.push(read);
        from = end;
    }
    reads
}

fn whole(sizes: &[usize]) -> Vec<u8> {
    let mut bytes = HEAD.to_vec();
    for (index, size) in sizes.iter().enumerate() {
        bytes.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        bytes.extend((0..*size).map(|at| b'!' + ((at + 7 * index) % 90) as u8));
        bytes.extend_from_slice(LINE_END);
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn chunks_of_one_read_are_one_chunk() {
    let bytes = whole(&[3, 300, 1, 70_000, 15]);
    let out = joined(&bytes, &[]).concat();
    let (chunks, end) = read(&out[HEAD.len()..]);
    assert_eq!((chunks.len(), end), (1, "ended"));
    assert_eq!(chunks, [read(&bytes[HEAD.len()..]).0.concat()]);
}

#[test]
fn a_chunk_of_which_only_a_part_has_arrived_is_joined_too() {
    let bytes = whole(&[4, 400, 9]);
    let out = joined(&bytes, &[HEAD.len() + 100]);
    let (chunks, end) = read(&out[0][HEAD.len()..]);
    assert_eq!((chunks.len(), end), (1, "cut"));
    assert_eq!(chunks[0].len(), 100 - b"4\r\n\r\n190\r\n".len());
}

#[test]
fn separate_chunks_are_not_touched() {
    let bytes = whole(&[4, 400, 9]);
    let mut read = bytes.clone();
    let mut joiner = Joiner::new(Chunks::Separate);
    let left = joiner.join(&mut read);
    assert_eq!((left, &read), (bytes.len(), &bytes));
    let mut joiner = Joiner::new(Chunks::Separate);
    joiner.join(&mut read[..HEAD.len()]);
    assert_eq!(joiner.payload_at_boundary(), None, "no relay");
}

#[test]
fn a_chunk_that_arrives_alone_is_not_touched() {
    let bytes = whole(&[200]);
    for cut in [HEAD.len(), bytes.len() - 5] {
        assert_eq!(joined(&bytes, &[cut]).concat(), bytes);
    }
}

#[test]
fn a_body_that_is_not_certainly_chunked_is_not_touched() {
    let chunks = &whole(&[4, 5])[HEAD.len()..];
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 100 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\n\r\n",
    ] {
        let bytes = [head.as_bytes(), chunks].concat();
        assert_eq!(joined(&bytes, &[]).concat(), bytes, "{head:?}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n", "y".repeat(MAX_HEAD_BYTES));
    let bytes = [long.as_bytes(), &whole(&[4, 5])[HEAD_LINE..]].concat();
    assert_eq!(joined(&bytes, &[long.len()]).concat(), bytes);
}

#[test]
fn a_head_that_arrives_in_pieces_is_one_all_the_same() {
    let bytes = whole(&[4, 5]);
    let out = joined(&bytes, &[]).concat();
    assert!(out.len() < bytes.len());
    for first in 1..HEAD.len() {
        for second in [first, first + 1, HEAD.len()] {
            let ends = [first, second];
            assert_eq!(joined(&bytes, &ends).concat(), out, "{ends:?}");
        }
    }
}

#[test]
fn anything_but_plain_chunks_passes_through_unchanged() {
    for odd in [
        "5;x=y\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n",
        "00000000005\r\nhello\r\n0\r\n\r\n",
        "0\r\nx-trailer: y\r\n\r\n",
        "5\nhello\r\n",
    ] {
        let bytes = [HEAD, b"2\r\nab\r\n2\r\ncd\r\n", odd.as_bytes()].concat();
        let out = [HEAD, b"4\r\nabcd\r\n", odd.as_bytes()].concat();
        assert_eq!(joined(&bytes, &[]).concat(), out, "{odd:?}");
    }
    // A chunk that is longer than its size: its line end is wrong, and stays wrong.
    let bytes = [HEAD, b"2\r\nab\r\n2\r\ncdx\r\n2\r\nef\r\n"].concat();
    let out = [HEAD, b"4\r\nabcdx\r\n2\r\nef\r\n"].concat();
    assert_eq!(joined(&bytes, &[]).concat(), out);
}

#[test]
fn trailers_are_kept_however_they_arrive_and_in_either_mode() {
    for (end, kept) in [
        ("0\r\nx: y\r\n\r\n", Some("x: y\r\n\r\n")),
        (
            "0\r\nx: y\r\nz: 1\r\n\r\nmore",
            Some("x: y\r\nz: 1\r\n\r\n"),
        ),
        ("0\r\n\r\n", None),
        ("0\r\n\r\nmore: 1\r\n\r\n", None),
        ("0\r\nx: y\r\n", None),
        ("00\r\nx: y\r\n\r\n", None),
    ] {
        let bytes = [HEAD, b"2\r\nab\r\n", end.as_bytes()].concat();
        for chunks in [Chunks::Joined, Chunks::Separate] {
            for split in HEAD.len()..=bytes.len() {
                let mut joiner = Joiner::new(chunks);
                let mut passed = Vec::new();
                for part in [&bytes[..split], &bytes[split..]] {
                    let mut part = part.to_vec();
                    let left = joiner.join(&mut part);
                    passed.extend_from_slice(&part[..left]);
                }
                assert_eq!(passed, bytes);
                let trailers = joiner.take_trailers();
                let kept = kept.map(|kept| kept.as_bytes().to_vec());
                assert_eq!(trailers, kept, "{end:?} {chunks:?} {split}");
            }
        }
    }
    let long = format!("0\r\nx: {}\r\n\r\n", "y".repeat(MAX_TRAILER_BYTES));
    let mut joiner = Joiner::new(Chunks::Joined);
    joiner.join(&mut [HEAD, long.as_bytes()].concat());
    assert_eq!(joiner.take_trailers(), None);
}

proptest! {
    #[test]
    fn joined_chunks_hold_the_same_data_and_end_in_the_same_way(
        sizes in prop::collection::vec(1usize..600, 0..20),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        // One byte of the body is replaced.
        flaw in prop::option::of((any::<prop::sample::Index>(), prop::sample::select(&b"\r\n0f;x"[..]))),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = whole(&sizes);
        let body = bytes.len() - HEAD.len();
        if let Some((at, byte)) = flaw {
            bytes[HEAD.len() + at.index(body)] = byte;
        }
        if let Some(at) = cut {
            bytes.truncate(HEAD.len() + at.index(body));
        }
        let mut ends: Vec<_> = ends.iter().map(|end| {
            HEAD.len() + end.index(bytes.len() - HEAD.len() + 1)
        }).collect();
        ends.sort_unstable();
        let out = joined(&bytes, &ends).concat();
        let (before, was) = read(&bytes[HEAD.len()..]);
        let (after, is) = read(&out[HEAD.len()..]);
        prop_assert_eq!(before.concat(), after.concat());
        prop_assert_eq!(was, is);
        prop_assert!(after.len() <= before.len());
    }
}
