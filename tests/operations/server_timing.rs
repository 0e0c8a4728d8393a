//! `Server-Timing` and the names of the pair: what a response says of its time, and to whom.

use support::samples::{GENERATE, asking, document, event, finish};
use support::{Answer, BODY, Exchange, Pair, STREAM, post};

const ASKS: &str = "x-mini-lb-timing: 1\r\n";

/// A request with these lines in its head.
fn asking_with(lines: &str, body: &str) -> String {
    let request = post("/generate", body);
    request.replacen("\r\n", &format!("\r\n{lines}"), 1)
}

/// The parts that the response names, without the worker's own.
fn parts(head: &str) -> Vec<(String, f64)> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut own = lines.filter(|(name, value)| {
        name.eq_ignore_ascii_case("server-timing") && value.starts_with("read;")
    });
    let Some((_, value)) = own.next() else {
        return Vec::new();
    };
    assert_eq!(own.next(), None, "{head}");
    let metrics = value.split(", ").map(|metric| {
        let (name, millis) = metric.split_once(";dur=").unwrap();
        (name.to_owned(), millis.parse().unwrap())
    });
    metrics.collect()
}

fn names(head: &str) -> Vec<String> {
    parts(head).into_iter().map(|(name, _)| name).collect()
}

/// Sends this request, and has both workers serve it with documents.
async fn served(pair: &mut Pair, request: String) -> (Answer, String) {
    let (prefill, decode) = pair.legs_of(request).await;
    let head = decode.request.head.clone();
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", &document(GENERATE, "x")).await;
    (pair.client.answer().await, head)
}

fn names_the_pair(pair: &Pair, answer: &Answer) -> bool {
    let named = [
        answer.header("x-mini-lb-prefill"),
        answer.header("x-mini-lb-decode"),
    ];
    let (prefill, decode) = (pair.prefill.url(), pair.decode.url());
    match named {
        [None, None] => false,
        named => {
            assert_eq!(named, [Some(&*prefill), Some(&*decode)]);
            true
        }
    }
}

#[tokio::test]
async fn a_stream_and_a_document_say_where_the_time_went_and_name_their_pair() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs_of(asking_with(ASKS, STREAM)).await;
    prefill.answer("200 OK", "{}").await;
    decode
        .send(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nserver-timing: gpu;dur=3\r\n\
             x-mini-lb-decode: another\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await;
    decode.chunk(&event(GENERATE, "a")).await;
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    let answer = pair.client.answer().await;
    let all = ["read", "queue", "send", "prefill", "decode"];
    assert_eq!(names(&answer.head), all);
    assert!(names_the_pair(&pair, &answer));
    // A worker's own timing stays beside it, and its word about the pair does not.
    assert!(answer.head.contains("server-timing: gpu;dur=3"));
    assert!(!answer.head.contains("another"));

    let mut pair = Pair::start().await;
    let (answer, worker) = served(&mut pair, asking_with(ASKS, BODY)).await;
    assert_eq!(names(&answer.head)[..3], all[..3]);
    assert_eq!(names(&answer.head).last().unwrap(), "decode");
    assert!(names_the_pair(&pair, &answer));
    assert!(!worker.contains("x-mini-lb-timing"), "{worker}");
}

#[tokio::test]
async fn only_requests_that_the_setting_allows_learn_the_time_and_the_pair() {
    let client = "x-api-key: sk-client\r\n";
    // Of any user, and the admin key.
    let admin = "authorization: Basic YW55OnNrLWFkbWlu\r\n";
    for (setting, keys, lines, told) in [
        ("observers", false, String::new(), false),
        (
            "observers",
            false,
            "x-mini-lb-timing: 0\r\n".to_owned(),
            false,
        ),
        ("observers", false, ASKS.to_owned(), true),
        ("observers", true, format!("{client}{ASKS}"), false),
        ("observers", true, format!("{client}{admin}"), false),
        ("observers", true, format!("{client}{admin}{ASKS}"), true),
        ("off", false, ASKS.to_owned(), false),
        ("off", true, format!("{client}{admin}{ASKS}"), false),
        ("on_request", true, format!("{client}{ASKS}"), true),
        ("on_request", true, client.to_owned(), false),
        ("always", true, client.to_owned(), true),
    ] {
        let mut pair = Pair::with(|config| {
            let config = config.set("server_timing", setting);
            match keys {
                true => config.api_key("sk-client").admin_api_key("sk-admin"),
                false => config,
            }
        })
        .await;
        let (answer, worker) = served(&mut pair, asking_with(&lines, BODY)).await;
        let case = format!("{setting} {lines}");
        assert_eq!(answer.status(), 200, "{case}");
        assert_eq!(names_the_pair(&pair, &answer), told, "{case}");
        assert_eq!(!names(&answer.head).is_empty(), told, "{case}");
        assert!(!worker.contains("YW55OnNrLWFkbWlu"), "{worker}");
    }
}

#[tokio::test]
async fn the_admin_key_of_a_request_that_needs_no_other_goes_to_no_worker() {
    let mut pair = Pair::with(|config| config.admin_api_key("sk-admin")).await;
    let lines = format!("authorization: Bearer sk-admin\r\n{ASKS}");
    let (answer, worker) = served(&mut pair, asking_with(&lines, BODY)).await;
    assert!(names_the_pair(&pair, &answer));
    assert!(!worker.contains("sk-admin"), "{worker}");
}

#[tokio::test]
async fn an_error_says_what_is_known_by_then() {
    // No abort comes between the legs.
    let quiet = |config: mini_lb::MiniLbConfig| config.set("disable_abort_requests", true);
    let mut pair = Pair::with(|config| quiet(config).set("retry_max_retries", 0)).await;
    pair.client.send(asking_with(ASKS, "{")).await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.status(), 400);
    assert!(names(&answer.head).is_empty() && !names_the_pair(&pair, &answer));

    let (prefill, decode) = pair.legs_of(asking_with(ASKS, BODY)).await;
    decode.reset();
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (502, Some("decode_lost")));
    assert_eq!(names(&answer.head), ["read", "queue", "send"]);
    assert!(names_the_pair(&pair, &answer));
    drop(prefill);

    let (prefill, decode) = pair.legs_of(asking_with(ASKS, BODY)).await;
    prefill.answer("500 Internal Server Error", "{}").await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.status(), 500);
    assert_eq!(names(&answer.head), ["read", "queue", "send", "prefill"]);
    drop(decode);

    // A worker's own error, without a body.
    let (_prefill, mut decode) = pair.legs_of(asking_with(ASKS, BODY)).await;
    decode
        .send("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        .await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.status(), 404);
    assert_eq!(names(&answer.head)[..3], ["read", "queue", "send"]);
    assert!(names_the_pair(&pair, &answer));
}

#[tokio::test]
async fn a_response_of_samples_has_the_parts_of_the_one_that_came_first() {
    for stream in [true, false] {
        let mut pair = Pair::start().await;
        let body = asking(GENERATE, 2, stream);
        pair.client.send(asking_with(ASKS, &body)).await;
        let legs = pair.next_samples(2).await;
        let head = match stream {
            true => {
                let mut legs = begin(legs).await;
                // The other one first.
                legs[1].1.chunk(&event(GENERATE, "b")).await;
                let head = pair.client.head().await;
                finish(legs).await;
                head
            }
            false => {
                for (prefill, decode) in legs {
                    prefill.answer("200 OK", "{}").await;
                    decode.answer("200 OK", &document(GENERATE, "x")).await;
                }
                pair.client.answer().await.head
            }
        };
        let names = names(&head);
        assert_eq!(names[..3], ["read", "queue", "send"], "{head}");
        assert_eq!(names.last().unwrap(), "decode", "{head}");
        assert!(head.contains(&format!("x-mini-lb-decode: {}", pair.decode.url())));
    }
}

/// Both responses of decode begin, and wait.
async fn begin(legs: Vec<(Exchange, Exchange)>) -> Vec<(Exchange, Exchange)> {
    let mut begun = Vec::new();
    for (prefill, mut decode) in legs {
        decode.begin_stream().await;
        begun.push((prefill, decode));
    }
    begun
}

#[tokio::test]
async fn a_head_that_a_comment_sends_early_says_what_is_known_by_then() {
    let mut pair = Pair::with(|config| config.set("stream_keepalive_secs", 0.05)).await;
    let body = r#"{"messages":[],"stream":true}"#;
    let request = post("/v1/chat/completions", body);
    let request = request.replacen("\r\n", &format!("\r\n{ASKS}"), 1);
    let (_prefill, mut decode) = pair.legs_of(request).await;
    let head = pair.client.head().await;
    assert_eq!(names(&head), ["read", "queue", "send"]);
    assert!(head.contains(&format!("x-mini-lb-prefill: {}", pair.prefill.url())));
    decode.begin_stream().await;
    decode.chunk("data: [DONE]\n\n").await;
    while !pair.client.chunk().await.unwrap().contains("DONE") {}
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_can_read_the_time_and_the_pair() {
    let page = "origin: https://app.example\r\n";
    for (origins, allowed) in [("*", true), ("https://other.example", false)] {
        let mut pair = Pair::with(|config| config.set("cors_allowed_origins", origins)).await;
        let (answer, _) = served(&mut pair, asking_with(&format!("{page}{ASKS}"), BODY)).await;
        let may = answer.header("timing-allow-origin");
        assert_eq!(may, allowed.then_some("https://app.example"), "{origins}");
        if allowed {
            let exposed = answer.header("access-control-expose-headers").unwrap();
            for name in ["server-timing", "x-mini-lb-prefill", "x-mini-lb-decode"] {
                assert!(exposed.contains(name), "{exposed}");
            }
        }
    }
}
