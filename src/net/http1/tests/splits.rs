//! A response is the same however its bytes are split into reads.

use proptest::prelude::*;

use super::*;

/// A response with this body in one of the framings, and whether the close ends it.
fn framed(body: &[u8], framing: u8, sizes: &[usize]) -> (Vec<u8>, Then) {
    let mut response = b"HTTP/1.1 200 OK\r\nserver: x\r\n".to_vec();
    match framing {
        0 => {
            response.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
            response.extend(body);
            (response, Then::Stays)
        }
        1 => {
            response.extend(b"transfer-encoding: chunked\r\n\r\n");
            let (mut rest, mut sizes) = (body, sizes.iter().cycle());
            while !rest.is_empty() {
                let size = (*sizes.next().unwrap()).clamp(1, rest.len());
                let extension = ["", ";a", " ; b=\"c\""][size % 3];
                response.extend(format!("{size:x}{extension}\r\n").bytes());
                response.extend(&rest[..size]);
                response.extend(b"\r\n");
                rest = &rest[size..];
            }
            response.extend(b"0\r\nx-trailer: y\r\n\r\n");
            (response, Then::Stays)
        }
        _ => {
            response.extend(b"\r\n");
            response.extend(body);
            (response, Then::Closes)
        }
    }
}

/// These bytes in pieces of these sizes, which repeat.
fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let (mut cut, mut sizes) = (Vec::new(), sizes.iter().cycle());
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at((*sizes.next().unwrap()).clamp(1, bytes.len()));
        cut.push(piece);
        bytes = rest;
    }
    cut
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

proptest! {
    #[test]
    fn every_split_of_the_bytes_gives_the_same_body(
        body in prop::collection::vec(any::<u8>(), 0..600),
        framing in 0..3_u8,
        chunks in prop::collection::vec(1..80_usize, 1..6),
        sizes in prop::collection::vec(1..60_usize, 1..6),
    ) {
        let (response, then) = framed(&body, framing, &chunks);
        let got = block_on(pieces(&Method::POST, &cut(&response, &sizes), then)).unwrap();
        let reusable = then == Then::Stays;
        prop_assert_eq!(got, Response { status: 200, body, reusable });
    }

    #[test]
    fn every_split_of_any_bytes_gives_the_same_response(
        parts in prop::collection::vec(prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n", "HTTP/1.0 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "\r\n", "\n", "\r", " ", "a: b\r\n",
            "content-length: 5\r\n", "transfer-encoding: chunked\r\n", "connection: close\r\n", "5\r\n", "0\r\n",
            "5;x\r\n", "hello", "hello\r\n", "0\r\n\r\n", "\0", "ffffffffffffffff\r\n",
        ]), 0..12),
        begins in any::<bool>(),
        sizes in prop::collection::vec(1..12_usize, 1..6),
    ) {
        let begin = if begins { "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" } else { "" };
        let response = begin.to_owned() + &parts.concat();
        let outcome = |pieces_of: &[&[u8]]| {
            // `reusable` is left out: it depends on whether unsolicited bytes have arrived already.
            let got = block_on(pieces(&Method::POST, pieces_of, Then::Closes));
            got.ok().map(|got| (got.status, got.body))
        };
        let whole = outcome(&[response.as_bytes()]);
        prop_assert_eq!(outcome(&cut(response.as_bytes(), &sizes)), whole);
    }
}
