//! What one connection may make the balancer hold, without a socket: both ends are polled until neither moves.

#![allow(clippy::unwrap_used)]

use std::task::Poll;

use futures_util::poll;
use h2::client;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::server::Session as CustomSession;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// What lies between the two ends, in bytes.
const PIPE: usize = 1 << 10;

/// What h2 has in its buffer for writing beside the bodies that it holds.
const FRAME: usize = 16 << 10;

/// Polls without progress after which there is none.
const STUCK: usize = 100;

type Server = Connection<DuplexStream, Bytes>;
type Client = (client::SendRequest<Bytes>, client::Connection<DuplexStream>);

/// Both ends of a connection. The client's windows are no bound.
async fn connected() -> (Client, Server) {
    let (ours, theirs) = duplex(PIPE);
    let mut wide = client::Builder::new();
    wide.initial_window_size(16 << 20)
        .initial_connection_window_size(16 << 20);
    let (client, server) = tokio::join!(wide.handshake(theirs), options().handshake(ours));
    (client.unwrap(), server.unwrap())
}

/// What a client can write of this frame, again and again, that reads no answer, in bytes.
async fn taken(frame: &[u8]) -> usize {
    let (ours, mut client) = duplex(PIPE);
    let opening = tokio::spawn(options().handshake::<_, Bytes>(ours));
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    client
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut server = opening.await.unwrap().unwrap();
    let frames = frame.repeat(64);
    let (mut taken, mut stuck) = (0, 0);
    while stuck < STUCK && taken < 1 << 20 {
        assert!(poll!(Box::pin(server.accept())).is_pending());
        match poll!(Box::pin(client.write(&frames[taken % frame.len()..]))) {
            Poll::Ready(written) => {
                taken += written.unwrap();
                stuck = 0;
            }
            Poll::Pending => stuck += 1,
        }
        tokio::task::yield_now().await;
    }
    taken
}

#[tokio::test]
async fn a_client_that_reads_no_answer_to_settings_and_pings_is_not_read_on() {
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0xff, 0xff];
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7];
    for frame in [&settings[..], &ping] {
        let taken = taken(frame).await;
        assert!(taken < 8 * FRAME, "{taken} bytes");
    }
}

#[tokio::test]
async fn a_response_that_is_not_read_is_taken_up_to_the_bound() {
    let ((mut requests, mut client), mut server) = connected().await;
    let request = Request::get("http://a/").body(()).unwrap();
    let _sent = requests.send_request(request, true).unwrap();
    let (request, respond) = loop {
        assert!(poll!(&mut client).is_pending());
        if let Poll::Ready(accepted) = poll!(Box::pin(server.accept())) {
            break accepted.unwrap().unwrap();
        }
        tokio::task::yield_now().await;
    };
    let (parts, body) = request.into_parts();
    let (cut, _to_cut) = mpsc::unbounded_channel();
    let (digest, tally) = (Arc::default(), Arc::default());
    let mut session = Http2Session::new(parts.into(), body, respond, digest, tally, cut);
    // From here on the client reads nothing.
    let head = Box::new(ResponseHeader::build(200, None).unwrap());
    let whole = HttpTask::Body(Some(vec![0; 1 << 20].into()), true);
    let mut writing = session.response_duplex_vec(vec![HttpTask::Header(head, false), whole]);
    for _ in 0..STUCK {
        assert!(poll!(&mut writing).is_pending());
        assert!(poll!(Box::pin(server.accept())).is_pending());
        tokio::task::yield_now().await;
    }
    drop(writing);
    let sent = session.body_bytes_sent();
    assert!(sent >= MAX_SEND_BUFFER, "{sent} bytes");
    assert!(sent <= MAX_SEND_BUFFER + FRAME + PIPE, "{sent} bytes");
}

#[tokio::test]
async fn bodies_that_are_not_read_are_sent_up_to_the_windows() {
    let ((mut requests, mut client), mut server) = connected().await;
    let (mut bodies, mut accepted) = (Vec::new(), Vec::new());
    for (streams, window) in [(1, STREAM_WINDOW), (8, CONNECTION_WINDOW)] {
        while bodies.len() < streams {
            let request = Request::post("http://a/").body(()).unwrap();
            let (response, mut body) = requests.send_request(request, false).unwrap();
            body.reserve_capacity(1 << 20);
            bodies.push((response, body, 0));
        }
        for _ in 0..10 * STUCK {
            assert!(poll!(&mut client).is_pending());
            if let Poll::Ready(request) = poll!(Box::pin(server.accept())) {
                accepted.push(request.unwrap().unwrap());
            }
            for (_, body, sent) in &mut bodies {
                let capacity = body.capacity();
                if capacity > 0 {
                    body.send_data(vec![0; capacity].into(), false).unwrap();
                    *sent += capacity;
                }
            }
            tokio::task::yield_now().await;
        }
        let sent: usize = bodies.iter().map(|(_, _, sent)| sent).sum();
        assert_eq!(sent, window as usize, "{streams} streams");
    }
    assert_eq!(accepted.len(), 8);
}
