//! Faults on purpose, over real sockets: what a client sees of each action, and what the journal says.

use std::time::Duration;

use mini_lb::sim::chaos::Script;
use mini_lb::sim::journal::Violation;
use mini_lb::sim::{Event, SimOptions, Worker};
use serde_json::{Value, json};
use support::sim::{Pair, Reply, SOON, get, open, open_post, post, quick, send};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const JSON: &str = "content-type: application/json\r\n";

fn with(rules: &str) -> SimOptions {
    SimOptions {
        chaos: Script::parse(rules).unwrap(),
        ..quick()
    }
}

/// An ordinary worker whose only rule is `action`.
async fn struck_by(action: &str) -> Worker {
    let options = with(&format!(
        "rules: [{{match: {{path: /generate}}, do: {action}}}]"
    ));
    Worker::start_ordinary(options).await.unwrap()
}

fn body(stream: bool) -> String {
    json!({"text":"hello","stream":stream,"sampling_params":{"max_new_tokens":4,"ignore_eos":true}})
        .to_string()
}

/// All bytes of the answer, and how the connection ended.
async fn raw(worker: &Worker, stream: bool) -> (Vec<u8>, std::io::Result<()>) {
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

async fn read_all(socket: &mut TcpStream) -> (Vec<u8>, std::io::Result<()>) {
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

/// Times `data:` begins a line.
fn events(raw: &[u8]) -> usize {
    String::from_utf8_lossy(raw)
        .lines()
        .filter(|line| line.starts_with("data: "))
        .count()
}

/// Reads until the answer has as many events.
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

fn strikes(worker: &Worker) -> Vec<(u64, String, &'static str)> {
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
            // Before the listener is closed, a connection may still be accepted, or reset.
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
    let struck = |seen: &[mini_lb::sim::Entry]| {
        seen.iter()
            .any(|entry| matches!(entry.event, Event::FaultInjected { .. }))
    };
    worker.journal().wait_for(struck, SOON).await.unwrap();
    // Another request is answered meanwhile, this one is not.
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
        // A whole answer has no event: it is cut behind its head.
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
    let left = |seen: &[mini_lb::sim::Entry]| {
        seen.iter()
            .any(|entry| matches!(entry.event, Event::AbortByDisconnect { .. }))
    };
    worker.journal().wait_for(left, SOON).await.unwrap();
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
    // The last one is [DONE], which is no JSON at all.
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
async fn health_flaps() {
    let options = with("rules: [{match: {path: /health, every: 2}, do: {status: {code: 503}}}]");
    let worker = Worker::start_ordinary(options).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(get(&worker, "/health").await.status);
    }
    assert_eq!(statuses, [200, 503, 200, 503]);
    assert_eq!(get(&worker, "/v1/models").await.status, 200);
}

#[tokio::test]
async fn a_zombie_works_on_for_a_client_that_left() {
    let options = SimOptions {
        kv_slots: 1,
        ..with("rules: [{match: {role: decode, times: 1}, do: zombie}]")
    };
    let pair = Pair::start(options).await;
    let request = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let left = open_post(&pair.decode, "/generate", &pair.with_room(&request, 5)).await;
    let presented = |seen: &[mini_lb::sim::Entry]| {
        seen.iter()
            .any(|entry| matches!(entry.event, Event::RoomPresented { .. }))
    };
    pair.decode
        .journal()
        .wait_for(presented, SOON)
        .await
        .unwrap();
    drop(left);
    let closed = |seen: &[mini_lb::sim::Entry]| {
        seen.iter()
            .any(|entry| matches!(entry.event, Event::ConnectionClosed { .. }))
    };
    pair.decode.journal().wait_for(closed, SOON).await.unwrap();
    assert_eq!(pair.decode.journal().open_rooms(), 1, "the room lives on");
    // Prefill finds its zombie, and is served by it.
    let reply = post(&pair.prefill, "/generate", &pair.with_room(&request, 5)).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn a_lost_transfer_is_decodes_500_and_prefill_hears_of_it() {
    let pair = Pair::start(with("rules: [{match: {role: decode}, do: lose_kv}]")).await;
    let request = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let (prefill, decode) = pair.both("/generate", &request, 6).await;
    assert_eq!((prefill.status, decode.status), (500, 500));
    assert!(
        decode.text().contains("Decode transfer failed"),
        "{}",
        decode.text()
    );
    assert_eq!(pair.decode.journal().open_rooms(), 0);
}

#[tokio::test]
async fn a_prefill_that_dies_in_the_transfer_is_missed_by_decode() {
    let options = SimOptions {
        timers_scale: 0.01,
        ..with("rules: [{match: {role: prefill}, do: crash_in_transfer}]")
    };
    let pair = Pair::start(options).await;
    let request = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let room = pair.with_room(&request, 7);
    let text = room.to_string();
    let (prefill, decode) = tokio::join!(
        send(pair.prefill.address(), "POST", "/generate", JSON, &text),
        post(&pair.decode, "/generate", &room),
    );
    assert!(prefill.is_empty() && pair.prefill.has_crashed());
    assert_eq!(decode.status, 500);
    assert!(
        decode.text().contains("Lost connection with prefill"),
        "{}",
        decode.text()
    );
}

#[tokio::test]
async fn a_worker_out_of_memory_answers_once_and_is_dead() {
    let worker = struck_by("out_of_memory").await;
    let reply = Reply::parse(&raw(&worker, false).await.0);
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (500, "Internal Server Error")
    );
    let dead = |seen: &[mini_lb::sim::Entry]| {
        seen.iter()
            .any(|entry| matches!(entry.event, Event::ConnectionClosed { .. }))
    };
    worker.journal().wait_for(dead, SOON).await.unwrap();
    assert_eq!(get(&worker, "/health").await.status, 503);
    assert!(worker.has_crashed());
    assert_eq!(
        worker.journal().violations().get(&Violation::DuplicateRoom),
        None
    );
}

#[tokio::test]
async fn a_request_asks_for_its_fault_by_header() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/sim/chaos.yaml");
    let options = SimOptions {
        chaos: Script::load(example).unwrap(),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    for (header, status) in [
        ("", 200),
        ("x-sim-fault: busy\r\n", 503),
        ("x-sim-fault: page\r\n", 502),
        ("x-sim-fault: nothing-of-the-kind\r\n", 200),
    ] {
        let headers = format!("{JSON}{header}");
        let raw = send(
            worker.address(),
            "POST",
            "/generate",
            &headers,
            &body(false),
        )
        .await;
        assert_eq!(Reply::parse(&raw).status, status, "{header}");
    }
    let wanted = [
        (2, "status".to_owned(), "status"),
        (3, "status".to_owned(), "status"),
    ];
    assert_eq!(strikes(&worker), wanted);
}

#[tokio::test]
async fn the_same_seed_strikes_the_same_requests_of_two_workers() {
    let script = "{seed: 11, rules: [{name: coin, match: {path: /v1/models, probability: 0.5}, do: {status: {code: 500}}}]}";
    let mut seen = Vec::new();
    for _ in 0..2 {
        let worker = Worker::start_decode(with(script)).await.unwrap();
        for _ in 0..16 {
            get(&worker, "/v1/models").await;
        }
        seen.push(strikes(&worker));
    }
    assert_eq!(seen[0], seen[1]);
    assert!((1..16).contains(&seen[0].len()), "{:?}", seen[0]);
}

#[tokio::test]
async fn a_running_worker_takes_a_script_and_forgets_it() {
    let options = SimOptions {
        api_key: Some("K".into()),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let script = async |method: &str, text: &str| {
        Reply::parse(&send(worker.address(), method, "/sim/chaos", "", text).await)
    };
    let rules = r#"{"rules":[{"match":{"path":"/health"},"do":{"status":{"code":418}}}]}"#;
    assert_eq!(script("POST", rules).await.status, 200);
    assert_eq!(get(&worker, "/health").await.status, 418);
    let refused = script("POST", "rules: [{do: explode}]").await;
    assert_eq!(refused.status, 400);
    let message = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(message.contains("unknown variant `explode`"), "{message}");
    assert_eq!(
        get(&worker, "/health").await.status,
        418,
        "a refused script changes nothing"
    );
    assert_eq!(script("DELETE", "").await.status, 200);
    assert_eq!(get(&worker, "/health").await.status, 200);
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
