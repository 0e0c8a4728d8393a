#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use pingora::ErrorSource;
use pingora::proxy::Session;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::tests::{chunk, head, installed, write};
use super::super::{Installed, Sent};
use super::*;
use crate::net;

const FIRST: &str = "data: 1\n\n";
const STALL: Duration = Duration::from_secs(5);

/// A stream whose first event has passed, with both ends of its sockets.
struct Stream {
    session: Session,
    installed: Installed,
    client: DuplexStream,
    decode: DuplexStream,
}

impl Stream {
    /// Pingora waits for the next event.
    async fn begin() -> Self {
        let (mut session, installed, mut client) = installed().await;
        let body = session.downstream_session.read_request_body().await;
        assert_eq!(body.unwrap().unwrap(), Bytes::from_static(b"{}"));
        write(&mut session, vec![head(), chunk(FIRST)])
            .await
            .unwrap();
        session.downstream_session.set_write_timeout(Some(STALL));
        let (ours, decode) = duplex(1 << 20);
        installed.relay(&net::offered(Box::new(ours), FIRST.len() as u64));
        let mut stream = Self {
            session,
            installed,
            client: {
                let end = format!("{:X}\r\n{FIRST}\r\n", FIRST.len());
                read_to(&mut client, &end).await;
                client
            },
            decode,
        };
        assert!(futures_util::poll!(Box::pin(stream.idle())).is_pending());
        stream
    }

    /// Watches the client, as Pingora does.
    async fn idle(&mut self) -> Box<Error> {
        let session = &mut self.session.downstream_session;
        session.read_body_or_idle(true).await.unwrap_err()
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.decode.write_all(bytes.as_ref()).await.unwrap();
    }

    fn end(mut self) -> Sent {
        self.installed.restore(&mut self.session)
    }
}

fn longer_than_the_clients_buffer() -> String {
    format!("20000\r\n{}\r\n", "x".repeat(0x20000))
}

/// Reads until this has come.
async fn read_to(client: &mut DuplexStream, end: &str) {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        got.push(client.read_u8().await.unwrap());
    }
}

#[tokio::test]
async fn events_are_followed_while_pingora_sees_none_of_them() {
    let mut stream = Stream::begin().await;
    stream.send("9\r\ndata: 2\n\n\r\n3\r\n: x\r\n").await;
    read_to(&mut stream.client, "c\r\ndata: 2\n\n: x\r\n").await;
    assert_eq!(stream.installed.shared().events(), 2);
    let sent = stream.end();
    assert_eq!((sent.relayed, sent.events.events()), (12, 2));
    assert!(!sent.is_cut && !sent.delivered && !sent.events.is_at_event_end());
}

#[tokio::test]
async fn the_end_marker_delivers_the_stream_although_the_client_leaves_at_once() {
    let mut stream = Stream::begin().await;
    stream.send("e\r\ndata: [DONE]\n\n\r\n").await;
    read_to(&mut stream.client, "data: [DONE]\n\n\r\n").await;
    let (client, _) = duplex(1);
    drop(std::mem::replace(&mut stream.client, client));
    assert!(futures_util::poll!(Box::pin(stream.idle())).is_pending());
    assert!(stream.end().delivered);
}

#[tokio::test]
async fn a_stream_that_ends_while_its_client_takes_nothing_is_cut() {
    let mut stream = Stream::begin().await;
    stream.send(longer_than_the_clients_buffer()).await;
    read_to(&mut stream.client, "x").await;
    let sent = stream.end();
    assert!(sent.is_cut, "no event can follow");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_for_too_long_ends_the_stream() {
    let mut stream = Stream::begin().await;
    stream.send(longer_than_the_clients_buffer()).await;
    let begun = tokio::time::Instant::now();
    let error = stream.idle().await;
    assert_eq!(*error.etype(), ErrorType::WriteTimedout);
    assert_eq!(*error.esource(), ErrorSource::Downstream);
    assert!(begun.elapsed() >= STALL);
    assert!(stream.end().is_cut);
}

#[tokio::test]
async fn an_end_marker_that_cannot_be_written_delivers_nothing() {
    let mut stream = Stream::begin().await;
    let (client, _) = duplex(1);
    drop(std::mem::replace(&mut stream.client, client));
    stream.send("e\r\ndata: [DONE]\n\n\r\n").await;
    // The relay's turn comes first.
    tokio::task::yield_now().await;
    drop(stream.idle().await);
    assert!(!stream.end().delivered);
}
