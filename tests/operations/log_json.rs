//! `--log-json`: every line of a process is one object, whatever happens to its requests.

use serde_json::{Map, Value};
use support::samples::{GENERATE, asking, document};
use support::{BODY, Client, Process, Signal, Worker, mini_lb, post};

/// An id that a client may choose.
const STRANGE: &str = r#"a"b\c={d}"#;

/// A line as an object, with the members that every line has.
fn object(line: &str) -> Map<String, Value> {
    let Ok(Value::Object(object)) = serde_json::from_str(line) else {
        panic!("no object: {line}");
    };
    let levels = ["error", "warn", "info", "debug", "trace"];
    assert!(levels.contains(&text(&object, "level")), "{line}");
    let time = text(&object, "time");
    assert!(time.ends_with('Z') && time.contains('T'), "{line}");
    assert!(!text(&object, "target").is_empty(), "{line}");
    assert!(!text(&object, "message").is_empty(), "{line}");
    object
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> &'a str {
    object[name].as_str().unwrap()
}

async fn start(line: &str) -> (Process, std::net::SocketAddr) {
    let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
    let listening = process.line("listening").await;
    let message = text(&object(&listening), "message").to_owned();
    let (_, address) = message.split_once('=').unwrap();
    (process, address.parse().unwrap())
}

fn with_id(id: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /generate HTTP/1.1\r\nhost: b\r\nx-request-id: {id}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn each_line_is_one_object_whatever_happens_to_the_requests() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let (prefill_url, decode_url) = (prefill.url(), decode.url());
    let (mut process, address) = start(&format!(
        "--host 127.0.0.1 --port 0 --disable-health-check --disable-abort-requests --log-json --log-level trace --retry-max-retries 0 \
         --prefill {prefill_url} 8998 --decode {decode_url}"
    ))
    .await;
    let client = async || Client::connect(address).await;
    // Errors that quote bytes: of the client's body, and of a worker.
    for refused in [r#"{"text":"\u"#, "{\"a\u{1}\u{2028}\\\": 1}"] {
        let mut refused_client = client().await;
        refused_client.send(post("/generate", refused)).await;
        assert_eq!(refused_client.answer().await.status(), 400);
    }
    let mut lost = client().await;
    lost.send(post("/generate", BODY)).await;
    let (_prefill, mut leg) = (prefill.request().await, decode.request().await);
    leg.send("HTTP/1.1 200 \"\\\u{1}\r\nno field\r\n\r\n").await;
    assert_eq!(lost.answer().await.status(), 502);
    // Samples.
    let mut samples = client().await;
    samples
        .send(post(GENERATE, &asking(GENERATE, 2, false)))
        .await;
    for _ in 0..2 {
        prefill.request().await.answer("200 OK", "{}").await;
        let leg = decode.request().await;
        leg.answer("200 OK", &document(GENERATE, "x")).await;
    }
    assert_eq!(samples.answer().await.status(), 200);
    // A stream with a strange id, whose connections stay open.
    let mut stream = client().await;
    let body = r#"{"text":"a","stream":true}"#;
    stream.send(with_id(STRANGE, body)).await;
    let (first, mut second) = (prefill.request().await, decode.request().await);
    first.answer("200 OK", "{}").await;
    second.begin_stream().await;
    second.chunk("data: {}\n\ndata: [DONE]\n\n").await;
    second.send("0\r\n\r\n").await;
    assert_eq!(stream.answer().await.status(), 200);
    // A path with strange characters, and no HTTP.
    for odd in [
        "GET /a\"%5C{} HTTP/1.1\r\nhost: b\r\n\r\n",
        "no http\r\n\r\n",
    ] {
        let mut client = client().await;
        client.send(odd).await;
        client.answer().await;
    }
    process.signal(Signal::Terminate).await;
    process.line("shut").await;
    let ended = process.end().await;
    let lines: Vec<_> = ended.lines.iter().map(|line| object(line)).collect();
    let of = |message: &str| -> Vec<_> {
        let lines = lines.iter();
        lines.filter(|line| line["message"] == message).collect()
    };
    assert_eq!(of("request finished").len(), 6, "{}", ended.text());
    assert_eq!(of("sample finished").len(), 2);
    let finished = of("request finished");
    let line = finished
        .iter()
        .find(|line| line["request_id"] == STRANGE)
        .unwrap();
    assert_eq!(line["prefill"], prefill_url.as_str());
    assert_eq!(line["decode"], decode_url.as_str());
    assert_eq!(line["status"].as_u64(), Some(200));
    assert!(line["sent_bytes"].is_u64() && line["e2e_ms"].is_f64());
    let steps = of("request steps");
    let steps = steps
        .iter()
        .find(|line| line["request_id"] == STRANGE)
        .unwrap();
    assert_eq!(steps["events"].as_u64(), Some(2));
    assert!(steps["ttft_prefill_ms"].is_number(), "{steps:?}");
}

#[tokio::test]
async fn an_error_that_ends_the_process_is_an_object_too() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let line = format!(
        "--host 127.0.0.1 --port {port} --log-json --prefill http://127.0.0.1:1 8998 --decode http://127.0.0.1:2"
    );
    let process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
    let ended = process.end().await;
    assert_eq!(ended.code, Some(1));
    let last = object(ended.lines.last().unwrap());
    assert!(text(&last, "message").starts_with("mini-lb: "), "{last:?}");
    for line in &ended.lines {
        object(line);
    }
}
