#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::watch;

use super::*;
use crate::client::{Stage, post};
use crate::pd::Route;

/// A session that is installed for a POST, and the client's end of its connection.
pub(super) async fn installed() -> (Session, Installed, DuplexStream) {
    let (mut session, client) = post("content-length: 0", "").await;
    let (_, stage) = watch::channel(Stage::default());
    let installed = install(
        &mut session,
        Bytes::from_static(b"{}"),
        Follower {
            events: StreamEnd::new(Route::ChatCompletions),
            gaps: Gaps::for_tests(),
        },
        Box::pin(std::future::pending()),
        Deadlines::default(),
        ShutdownWatcher::new(stage),
        None,
    );
    (session, installed.unwrap(), client)
}

pub(super) fn head() -> HttpTask {
    let mut head = ResponseHeader::build(200, None).unwrap();
    head.insert_header("content-type", "text/event-stream")
        .unwrap();
    head.insert_header(TRANSFER_ENCODING, "chunked").unwrap();
    HttpTask::Header(Box::new(head), false)
}

pub(super) fn chunk(bytes: &'static str) -> HttpTask {
    HttpTask::Body(Some(Bytes::from_static(bytes.as_bytes())), false)
}

pub(super) async fn write(session: &mut Session, tasks: Vec<HttpTask>) -> Result<bool> {
    session.downstream_session.response_duplex_vec(tasks).await
}

#[tokio::test]
async fn a_failure_before_the_first_byte_leaves_the_response_unbegun() {
    let lost = || HttpTask::Failed(Error::new(ErrorType::ConnectionClosed));
    for tasks in [
        vec![lost()],
        vec![head(), lost()],
        vec![head(), chunk(""), lost()],
    ] {
        let (mut session, installed, mut client) = installed().await;
        assert!(write(&mut session, tasks).await.is_err());
        assert!(!installed.has_begun());
        let sent = installed.restore(&mut session);
        assert!(sent.first_byte.is_none());
        drop(session);
        let mut written = Vec::new();
        client.read_to_end(&mut written).await.unwrap();
        assert!(written.is_empty(), "another status is still possible");
    }
}

#[tokio::test]
async fn the_first_byte_begins_the_response_and_events_are_followed_as_they_are_written() {
    let (mut session, installed, _client) = installed().await;
    write(&mut session, vec![head()]).await.unwrap();
    assert!(!installed.has_begun(), "a head waits for its first byte");
    write(&mut session, vec![chunk("data: 1\n\ndata:")])
        .await
        .unwrap();
    assert!(installed.has_begun());
    let sent = installed.restore(&mut session);
    assert!(sent.first_byte.is_some());
    assert_eq!(
        (sent.events.events(), sent.events.is_at_event_end()),
        (1, false)
    );
}

/// A session whose stream has ended with its marker, and whose client has left.
async fn delivered() -> (Session, Installed) {
    let (mut session, installed, client) = installed().await;
    let tasks = vec![head(), chunk("data: [DONE]\n\n")];
    assert!(!write(&mut session, tasks).await.unwrap());
    drop(client);
    (session, installed)
}

async fn idle(session: &mut Session) -> ErrorType {
    // Pingora takes the body before it watches the client.
    let _ = session.downstream_session.read_request_body().await;
    let read = session.downstream_session.read_body_or_idle(true).await;
    read.unwrap_err().etype().clone()
}

#[tokio::test(start_paused = true)]
async fn what_follows_the_end_marker_is_awaited_for_a_limited_time() {
    let (mut session, installed) = delivered().await;
    let begun = tokio::time::Instant::now();
    assert_eq!(idle(&mut session).await, super::super::deadlines::DELIVERED);
    assert!(begun.elapsed() >= Duration::from_secs(5));
    assert!(installed.restore(&mut session).delivered);
}

#[tokio::test]
async fn what_follows_the_end_marker_is_read_up_to_a_limit_and_goes_nowhere() {
    let (mut session, installed) = delivered().await;
    let more = || HttpTask::Body(Some(Bytes::from(vec![b'x'; 32 << 10])), false);
    for _ in 0..2 {
        assert!(!write(&mut session, vec![more()]).await.unwrap());
    }
    assert!(write(&mut session, vec![HttpTask::Done]).await.unwrap());
    let over = write(&mut session, vec![more()]).await.unwrap_err();
    assert_eq!(*over.etype(), super::super::deadlines::DELIVERED);
    assert!(installed.restore(&mut session).delivered);
}

#[tokio::test]
async fn a_stream_that_ends_without_its_marker_begins_only_where_something_was_sent() {
    let end = || HttpTask::Body(None, true);
    let (mut session, installed, _client) = installed().await;
    let error = write(&mut session, vec![head(), chunk("data: 1\n\n"), end()])
        .await
        .unwrap_err();
    assert_eq!(*error.etype(), END_MISSING);
    assert!(!installed.has_begun(), "another pair is still possible");

    let (mut session, installed, _client) = self::installed().await;
    write(&mut session, vec![head(), chunk("data: 1\n\n")])
        .await
        .unwrap();
    let error = write(&mut session, vec![end()]).await.unwrap_err();
    assert_eq!(*error.etype(), END_MISSING);
    assert!(installed.has_begun());
}
