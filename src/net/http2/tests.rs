//! Streams of one connection to a worker that are not read, without a socket.

#![allow(clippy::unwrap_used)]

use h2::server;
use http::Response;
use tokio::io::duplex;

use super::*;

/// Streams whose windows, full of small events, cost more than h2 allows by itself.
const UNREAD: usize = 140;

/// Serves every request with small events: without an end, until it may send no more, except for the last one.
async fn worker(socket: DuplexStream) {
    let mut connection = server::handshake(socket).await.unwrap();
    let mut seen = 0;
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        seen += 1;
        let is_last = seen > UNREAD;
        tokio::spawn(async move {
            let mut out = respond.send_response(Response::new(()), false).unwrap();
            let event = Bytes::from_static(&[b'x'; 50]);
            if is_last {
                return out.send_data(event, true).unwrap();
            }
            loop {
                out.reserve_capacity(event.len());
                // The next window never comes.
                while out.capacity() < event.len() {
                    poll_fn(|cx| out.poll_capacity(cx)).await.unwrap().unwrap();
                }
                out.send_data(event.clone(), false).unwrap();
            }
        });
    }
}

#[tokio::test]
async fn streams_of_small_events_that_are_not_read_leave_the_others_alone() {
    let (ours, theirs) = duplex(1 << 20);
    let working = tokio::spawn(worker(theirs));
    let connections = Arc::<Http2Connections>::default();
    let mut next = connections.begin(1, Box::new(ours)).await.unwrap();
    let ask = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut unread = Vec::new();
    while unread.len() < UNREAD {
        next.write_all(ask).await.unwrap();
        // Its events come, and no more of them is read.
        next.read_exact(&mut [0; 64]).await.unwrap();
        unread.push(next);
        next = connections.open(1).expect("the connection is there");
    }
    next.write_all(ask).await.unwrap();
    let mut read = String::new();
    while !read.ends_with("0\r\n\r\n") {
        read.push(next.read_u8().await.unwrap().into());
    }
    assert!(read.contains("32\r\nxxxx"), "{read}");
    assert!(!working.is_finished());
}
