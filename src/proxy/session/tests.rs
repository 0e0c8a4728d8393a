#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::watch;

use super::*;
use crate::client::{Stage, post};

/// A session that is installed for a POST, and the client's end of its connection.
async fn installed() -> (Session, Installed, DuplexStream) {
    let (mut session, client) = post("content-length: 0", "").await;
    let (_, stage) = watch::channel(Stage::default());
    let installed = install(
        &mut session,
        Bytes::from_static(b"{}"),
        Box::pin(std::future::pending()),
        Deadlines::default(),
        ShutdownWatcher::new(stage),
    );
    (session, installed.unwrap(), client)
}

fn head() -> HttpTask {
    let mut head = ResponseHeader::build(200, None).unwrap();
    head.insert_header("content-type", "text/event-stream")
        .unwrap();
    head.insert_header(TRANSFER_ENCODING, "chunked").unwrap();
    HttpTask::Header(Box::new(head), false)
}

fn chunk(bytes: &'static str) -> HttpTask {
    HttpTask::Body(Some(Bytes::from_static(bytes.as_bytes())), false)
}

async fn write(session: &mut Session, tasks: Vec<HttpTask>) -> Result<bool> {
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
