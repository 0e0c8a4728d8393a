//! Faults on demand: what a client sees of each action, and its entry in the journal.

use std::time::Duration;

use mini_lb::sim::chaos::Script;
use mini_lb::sim::{Event, SimOptions, Worker};
use serde_json::{Value, json};
use support::sim::{Reply, get, open, quick, wait_for};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

pub(crate) const JSON: &str = "content-type: application/json\r\n";

pub(crate) fn with(rules: &str) -> SimOptions {
    SimOptions {
        chaos: Script::parse(rules).unwrap(),
        ..quick()
    }
}

/// An ordinary worker whose only rule is `action`.
pub(crate) async fn struck_by(action: &str) -> Worker {
    let options = with(&format!(
        "rules: [{{match: {{path: /generate}}, do: {action}}}]"
    ));
    Worker::start_ordinary(options).await.unwrap()
}

pub(crate) fn body(stream: bool) -> String {
    json!({"text":"hello","stream":stream,"sampling_params":{"max_new_tokens":4,"ignore_eos":true}})
        .to_string()
}

/// All bytes of the response, and how the connection ended.
pub(crate) async fn raw(worker: &Worker, stream: bool) -> (Vec<u8>, std::io::Result<()>) {
    let headers = format!("connection: close\r\n{JSON}");
    let mut socket = open(
        worker.address(),
        "POST",
        "/generate",
        &headers,
        &body(stream),
    )
    .await;
    read_all(&mut socket).await
}

pub(crate) async fn read_all(socket: &mut TcpStream) -> (Vec<u8>, std::io::Result<()>) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match socket.read(&mut piece).await {
            Ok(0) => return (bytes, Ok(())),
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) => return (bytes, Err(error)),
        }
    }
}

fn split(raw: &[u8]) -> (String, Vec<u8>) {
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    (
        String::from_utf8(raw[..end].to_vec()).unwrap(),
        raw[end..].to_vec(),
    )
}

/// Number of lines that begin with `data: `.
fn events(raw: &[u8]) -> usize {
    String::from_utf8_lossy(raw)
        .lines()
        .filter(|line| line.starts_with("data: "))
        .count()
}

/// Reads until the response has this many events.
async fn read_events(socket: &mut TcpStream, wanted: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while events(&bytes) < wanted || !bytes.ends_with(b"\n\n\r\n") {
        let mut piece = [0; 4096];
        let read = socket.read(&mut piece).await.unwrap();
        assert_ne!(read, 0, "the stream ended early");
        bytes.extend_from_slice(&piece[..read]);
    }
    bytes
}

fn is_reset(end: &std::io::Result<()>) -> bool {
    end.as_ref()
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

pub(crate) fn strikes(worker: &Worker) -> Vec<(u64, String, &'static str)> {
    let entries = worker.journal().entries();
    let strikes = entries.into_iter().filter_map(|entry| match entry.event {
        Event::FaultInjected {
            request,
            rule,
            action,
        } => Some((request, rule, action)),
        _ => None,
    });
    strikes.collect()
}

#[tokio::test]
async fn a_refusing_worker_listens_again_after_its_time() {
    let worker = struck_by("{refuse: {for_ms: 200}}").await;
    let (bytes, end) = raw(&worker, false).await;
    assert!(bytes.is_empty() && is_reset(&end), "{end:?}");
    let mut refused = false;
    loop {
        match TcpStream::connect(worker.address()).await {
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
                refused = true;
            }
            // Until the listener is closed, a connection may be accepted or reset.
            Ok(_) if refused => break,
            Ok(_) => {}
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&worker, "/health").await.status, 200);
}

#[tokio::test]
async fn a_silent_worker_says_nothing_until_the_client_leaves() {
    let worker = struck_by("silence").await;
    let mut socket = open(worker.address(), "POST", "/generate", JSON, &body(false)).await;
    wait_for(&worker, |event| {
        matches!(event, Event::FaultInjected { .. })
    })
    .await;
    // Another request gets a response meanwhile.
    assert_eq!(get(&worker, "/health").await.status, 200);
    let nothing = socket.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    worker.stop().await;
    assert!(read_all(&mut socket).await.0.is_empty());
}

#[tokio::test]
async fn a_late_head_is_a_right_answer() {
    let worker = struck_by("{delay_head: {ms: 30}}").await;
    let started = worker.journal().entries().len();
    assert_eq!(started, 0);
    assert_eq!(Reply::parse(&raw(&worker, false).await.0).status, 200);
    let entries = worker.journal().entries();
    let at = |wanted: fn(&Event) -> bool| {
        entries
            .iter()
            .find(|entry| wanted(&entry.event))
            .unwrap()
            .at_us
    };
    let struck = at(|event| matches!(event, Event::FaultInjected { .. }));
    let head = at(|event| matches!(event, Event::ResponseHead { .. }));
    assert!(head - struck >= 30_000, "{} us", head - struck);
}

#[tokio::test]
async fn a_connection_ends_before_the_head_as_asked() {
    let (bytes, end) = raw(&struck_by("reset").await, false).await;
    assert!(bytes.is_empty() && is_reset(&end), "{end:?}");
    let (bytes, end) = raw(&struck_by("close").await, false).await;
    assert!(bytes.is_empty() && end.is_ok(), "{end:?}");
}

#[tokio::test]
async fn a_body_is_cut_after_as_many_bytes_as_asked() {
    for stream in [false, true] {
        for (end_word, reset) in [("reset", true), ("close", false)] {
            let action = format!("{{cut_after_bytes: {{bytes: 40, end: {end_word}}}}}");
            let (bytes, end) = raw(&struck_by(&action).await, stream).await;
            assert_eq!(split(&bytes).1.len(), 40, "{action}");
            assert_eq!(is_reset(&end), reset, "{action}: {end:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_cut_after_as_many_events_as_asked() {
    for (end_word, reset) in [("reset", true), ("close", false)] {
        let action = format!("{{cut_after_event: {{events: 2, end: {end_word}}}}}");
        let worker = struck_by(&action).await;
        let (bytes, end) = raw(&worker, true).await;
        assert_eq!(events(&bytes), 2, "{action}");
        assert!(!bytes.ends_with(b"0\r\n\r\n"), "no last chunk");
        assert_eq!(is_reset(&end), reset, "{action}: {end:?}");
        // A document has no event, so it is cut after its head.
        let (bytes, _) = raw(&worker, false).await;
        assert!(split(&bytes).1.is_empty());
    }
}

#[tokio::test]
async fn a_stalled_stream_stays_open_and_silent() {
    let worker = struck_by("{stall_after_event: {events: 2}}").await;
    let mut socket = open(worker.address(), "POST", "/generate", JSON, &body(true)).await;
    assert_eq!(events(&read_events(&mut socket, 2).await), 2);
    assert_eq!(get(&worker, "/health").await.status, 200);
    let nothing = socket.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    drop(socket);
    wait_for(&worker, |event| {
        matches!(event, Event::AbortByDisconnect { .. })
    })
    .await;
}

#[tokio::test]
async fn a_status_comes_instead_of_an_answer() {
    let worker = struck_by("{status: {code: 503, retry_after: 2}}").await;
    let reply = Reply::parse(&raw(&worker, true).await.0);
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (503, Some("2"))
    );
    assert_eq!(reply.json()["code"], 503);
    let worker = struck_by("{status: {code: 502, body: <p>, content_type: text/html}}").await;
    let reply = Reply::parse(&raw(&worker, false).await.0);
    assert_eq!((reply.status, reply.text().as_str()), (502, "<p>"));
    assert_eq!(reply.header("content-type"), Some("text/html"));
}

#[tokio::test]
async fn half_a_head_is_no_head() {
    let (bytes, end) = raw(&struck_by("half_head").await, false).await;
    assert!(bytes.starts_with(b"HTTP/1.1 200"), "{bytes:?}");
    assert!(!bytes.windows(4).any(|w| w == b"\r\n\r\n"));
    assert!(end.is_ok());
}

#[tokio::test]
async fn a_head_lies_about_type_or_length() {
    let (bytes, _) = raw(&struck_by("{content_type: text/html}").await, false).await;
    let reply = Reply::parse(&bytes);
    assert_eq!(reply.header("content-type"), Some("text/html"));
    assert_eq!(reply.json()["meta_info"]["completion_tokens"], 4);
    for add in [7i64, -7] {
        let (bytes, end) = raw(
            &struck_by(&format!("{{content_length: {{add: {add}}}}}")).await,
            false,
        )
        .await;
        let reply = Reply::parse(&bytes);
        let told: i64 = reply.header("content-length").unwrap().parse().unwrap();
        assert_eq!(told - reply.body.len() as i64, add);
        assert!(end.is_ok(), "{end:?}");
    }
}

#[tokio::test]
async fn json_is_broken_and_framed_well() {
    let worker = struck_by("invalid_json").await;
    let reply = Reply::parse(&raw(&worker, false).await.0);
    let told: usize = reply.header("content-length").unwrap().parse().unwrap();
    assert_eq!(told, reply.body.len());
    assert!(serde_json::from_slice::<Value>(&reply.body).is_err());
    let reply = Reply::parse(&raw(&worker, true).await.0);
    let broken: Vec<bool> = reply
        .events()
        .iter()
        .map(|(_, data)| serde_json::from_str::<Value>(data).is_err())
        .collect();
    // The last one is [DONE], which is not JSON.
    assert_eq!(broken, [true, false, false, false, true]);
}

#[tokio::test]
async fn a_chunk_without_a_size_is_written() {
    let (bytes, _) = raw(&struck_by("bad_chunk").await, true).await;
    let (_, body) = split(&bytes);
    assert!(body.starts_with(b"ZZZ\r\ndata: {"), "{:?}", &body[..20]);
    assert!(body.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn an_answer_in_single_bytes_is_the_answer() {
    let worker = struck_by("{dribble: {bytes: 1}}").await;
    let reply = Reply::parse(&raw(&worker, true).await.0);
    assert_eq!(reply.events().len(), 5);
    assert_eq!(
        Reply::parse(&raw(&worker, false).await.0).json()["output_ids"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
}

#[tokio::test]
async fn an_error_event_ends_a_stream_in_order() {
    let worker = struck_by("{error_event: {events: 1, message: out of luck}}").await;
    let reply = Reply::parse(&raw(&worker, true).await.0);
    let events = reply.events();
    assert_eq!(events.len(), 3);
    assert_eq!(reply.event_values()[1]["error"]["message"], "out of luck");
    assert_eq!(events[2].1, "[DONE]");
}

#[tokio::test]
async fn a_stream_can_lack_its_last_event() {
    let reply = Reply::parse(&raw(&struck_by("missing_done").await, true).await.0);
    assert_eq!((reply.events().len(), reply.event_values().len()), (4, 4));
}

#[tokio::test]
async fn an_aborted_answer_says_so() {
    let worker = struck_by("{abort_finish: {tokens: 2}}").await;
    for stream in [false, true] {
        let reply = Reply::parse(&raw(&worker, stream).await.0);
        let last = match stream {
            false => reply.json(),
            true => reply.event_values().pop().unwrap(),
        };
        let meta = &last["meta_info"];
        assert_eq!(meta["finish_reason"]["type"], "abort");
        assert_eq!(meta["completion_tokens"], 2);
    }
}

#[tokio::test]
async fn split_and_giant_events_say_what_the_right_ones_say() {
    let plain = Reply::parse(
        &raw(&Worker::start_ordinary(quick()).await.unwrap(), true)
            .await
            .0,
    );
    let texts = |reply: &Reply| -> Vec<Value> {
        let values = reply.event_values();
        values
            .into_iter()
            .map(|event| event["text"].clone())
            .collect()
    };
    let reply = Reply::parse(
        &raw(&struck_by("{split_events: {bytes: 1}}").await, true)
            .await
            .0,
    );
    assert!(reply.chunks.as_ref().unwrap().iter().all(|c| c.len() == 1));
    assert_eq!(texts(&reply), texts(&plain));
    let worker = struck_by("{giant_event: {bytes: 300000}}").await;
    let reply = Reply::parse(&raw(&worker, true).await.0);
    let sizes: Vec<usize> = reply
        .chunks
        .as_ref()
        .unwrap()
        .iter()
        .map(Vec::len)
        .collect();
    assert_eq!(sizes[0], 300_000);
    assert_eq!(texts(&reply), texts(&plain));
}

#[tokio::test]
async fn the_next_answer_on_a_mangled_connection_is_whole() {
    let worker = Worker::start_ordinary(with(
        "rules: [{match: {times: 2}, do: {dribble: {bytes: 3}}}]",
    ))
    .await
    .unwrap();
    let mut socket = open(worker.address(), "POST", "/generate", JSON, &body(true)).await;
    for request in 0..3 {
        if request > 0 {
            let next = format!(
                "POST /generate HTTP/1.1\r\nhost: x\r\n{JSON}content-length: {}\r\n\r\n{}",
                body(true).len(),
                body(true)
            );
            tokio::io::AsyncWriteExt::write_all(&mut socket, next.as_bytes())
                .await
                .unwrap();
        }
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n0\r\n\r\n") {
            let mut piece = [0; 512];
            let read = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut piece))
                .await
                .unwrap()
                .unwrap();
            assert_ne!(read, 0);
            bytes.extend_from_slice(&piece[..read]);
        }
        assert_eq!(Reply::parse(&bytes).events().len(), 5, "answer {request}");
    }
    assert_eq!(strikes(&worker).len(), 2);
}
