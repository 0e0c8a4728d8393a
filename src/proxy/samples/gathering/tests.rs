#![allow(clippy::unwrap_used)]

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::*;

/// The gathering of one streamed completion, and of that sample the end that sends and the end that is read.
fn gathering() -> (Gathering, mpsc::Sender<HttpTask>, SubrequestHandle) {
    let (engine, route) = (Engine::Sglang, Route::Completions);
    let facts = engine
        .parse(route, br#"{"prompt":"a","stream":true}"#)
        .unwrap();
    let recipe = Recipe {
        engine,
        route,
        gather: engine.gather(route, &facts),
        limit: 1 << 20,
    };
    let (sample, rx) = mpsc::channel(4);
    let handle = SubrequestHandle {
        tx: mpsc::channel(1).0,
        rx,
        subreq_wants_body: oneshot::channel().1,
        subreq_proxy_error: oneshot::channel().1,
    };
    (Gathering::new(1, false, recipe), sample, handle)
}

fn head() -> HttpTask {
    let mut head = ResponseHeader::build(200, None).unwrap();
    let stream = "text/event-stream; charset=utf-8";
    head.insert_header("content-type", stream).unwrap();
    HttpTask::Header(Box::new(head), false)
}

#[test]
fn a_response_is_taken_until_its_sample_is_gone_without_being_told() {
    let (gathering, sample, handle) = gathering();
    sample.try_send(head()).unwrap();
    let done = Bytes::from_static(b"data: [DONE]\n\n");
    sample.try_send(HttpTask::Body(Some(done), true)).unwrap();
    drop(sample);
    assert_eq!(gathering.take(0, handle).now_or_never(), Some(()));
    assert!(!gathering.is_closed());
}
