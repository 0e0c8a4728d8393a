//! Requests and streams, and everything that a head may say.

use h2::client::Builder;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use support::http2::{Http2, PREFACE, post};
use support::tls::Authority;
use support::{BODY, CHAT, Client, Pair, STREAM};

/// Streams of one connection that are open at the same time.
const STREAMS: usize = 1000;
const WAVE: usize = 50;

#[tokio::test]
async fn a_request_has_two_legs_of_http_1_1() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let head = post("/generate?x=1")
        .header("te", "trailers")
        .header("x-end-to-end", "1");
    let sent = client.send(head, BODY).await;
    let (prefill, decode) = pair.next_legs().await;
    for leg in [&prefill, &decode] {
        let request = &leg.request;
        assert!(
            request.head.starts_with("POST /generate HTTP/1.1\r\n"),
            "{}",
            request.head
        );
        assert_eq!(request.header("x-end-to-end"), Some("1"));
        assert_eq!(request.header("te"), Some("trailers"));
        assert_ne!(request.header("host"), Some("balancer"));
        assert_eq!(request.json()["text"], "a");
    }
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", r#"{"text":"b"}"#).await;
    let (status, headers, body) = sent.answer().await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, r#"{"text":"b"}"#));
    assert_eq!(headers["content-length"], "12");
    assert!(headers.contains_key("x-request-id") && headers.contains_key("date"));
    assert!(!headers.contains_key("transfer-encoding") && !headers.contains_key("connection"));
}

#[tokio::test]
async fn the_record_of_a_request_has_its_version_of_http() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let sent = client.send(post("/generate"), BODY).await;
    let (prefill, decode) = pair.next_legs().await;
    let mut asked = pair.balancer.client().await;
    asked
        .send("GET /debug/requests HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let page = asked.answer().await.json();
    assert_eq!(page["live"][0]["http"], "2", "{page}");
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", r#"{"text":"b"}"#).await;
    assert_eq!(sent.answer().await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_stream_arrives_event_by_event_and_ends() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let sent = client.post(CHAT, STREAM).await;
    let (prefill, mut decode) = pair.next_legs().await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    decode.chunk("data: 1\n\n").await;
    let mut begun = sent.head().await;
    assert_eq!(
        begun.headers["content-type"],
        "text/event-stream; charset=utf-8"
    );
    for next in ["data: 2\n\n", "data: [DONE]\n\n"] {
        assert!(begun.piece().await.unwrap().is_ok());
        decode.chunk(next).await;
    }
    assert_eq!(begun.piece().await.unwrap().unwrap(), "data: [DONE]\n\n");
    decode.chunk("").await;
    assert!(begun.piece().await.is_none(), "the end, and no reset");
}

#[tokio::test]
async fn a_thousand_streams_of_one_connection_are_served_at_once() {
    let mut pair = Pair::with(|config| config.max_inflight_requests(2 * STREAMS)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let (mut streams, mut decodes) = (Vec::new(), Vec::new());
    // In waves: all workers' connections at once are more than a listener's backlog.
    for _ in 0..STREAMS / WAVE {
        let mut sent = Vec::new();
        for _ in 0..WAVE {
            sent.push(client.post(CHAT, STREAM).await);
        }
        for _ in 0..WAVE {
            let (prefill, mut decode) = pair.next_legs().await;
            prefill.answer("200 OK", "{}").await;
            decode.begin_stream().await;
            decode.chunk("data: 1\n\n").await;
            decodes.push(decode);
        }
        for sent in sent {
            let mut begun = sent.head().await;
            assert_eq!(begun.piece().await.unwrap().unwrap(), "data: 1\n\n");
            streams.push(begun);
        }
    }
    // Wave by wave too: this client bounds the small frames that it holds unread.
    for (decodes, streams) in decodes.chunks_mut(WAVE).zip(streams.chunks_mut(WAVE)) {
        for decode in decodes {
            // In one write: the end of a body is not awaited for long.
            decode.send("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await;
        }
        for begun in streams {
            assert_eq!(begun.piece().await.unwrap().unwrap(), "data: [DONE]\n\n");
            let rest = begun.piece().await;
            assert!(rest.is_none(), "{rest:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let head = post("/generate").header("expect", "100-continue");
    let mut sent = client.begin(head, false).await;
    assert_eq!(sent.informed().await, Some(StatusCode::CONTINUE));
    sent.send(BODY, true);
    support::pair::serve(pair.next_legs().await).await;
    assert_eq!(sent.answer().await.0, StatusCode::OK);
}

#[tokio::test]
async fn trailers_of_a_request_are_read_and_go_nowhere() {
    let mut pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let mut sent = client.begin(post("/generate"), false).await;
    sent.send(BODY, false);
    sent.trailers(HeaderMap::from_iter(
        [("x-sum", HeaderValue::from_static("1"))]
            .map(|(name, value)| (http::HeaderName::from_static(name), value)),
    ));
    let legs = pair.next_legs().await;
    assert_eq!(legs.1.request.header("x-sum"), None);
    support::pair::serve(legs).await;
    assert_eq!(sent.answer().await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_response_to_head_has_no_body() {
    let pair = Pair::start().await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let head = Request::head("http://balancer/health");
    let (status, headers, body) = client.send(head, "").await.answer().await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
    assert!(headers.contains_key("content-length"));
}

#[tokio::test]
async fn errors_are_those_of_http_1_1() {
    let pair = Pair::with(|config| config.max_payload_size(1 << 20)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let mut many = post("/generate");
    for _ in 0..=100 {
        many = many.header("x-many", "1");
    }
    let large = post("/generate").header("content-length", 2 << 20);
    for (head, body, status, code) in [
        (post("/absent"), BODY, 404, "not_found"),
        (
            Request::get("http://balancer/generate"),
            "",
            405,
            "method_not_allowed",
        ),
        (post("/generate"), "{", 400, "invalid_json"),
        (many, BODY, 431, "request_head_too_large"),
        (
            post("/generate").header("x-long", "x".repeat(40 << 10)),
            BODY,
            431,
            "request_head_too_large",
        ),
        (
            post("/generate").header("host", "other"),
            BODY,
            400,
            "bad_request_head",
        ),
        (
            post("/generate").header("content_length", "1"),
            BODY,
            400,
            "bad_request_head",
        ),
        (
            Request::connect("balancer:80"),
            "",
            405,
            "method_not_allowed",
        ),
    ] {
        let (found, headers, body) = client.send(head, body).await.answer().await;
        let found = (found.as_u16(), headers["x-mini-lb-error"].to_str().unwrap());
        assert_eq!(found, (status, code), "{body}");
        assert!(
            body.starts_with('{') && headers.contains_key("x-request-id"),
            "{body}"
        );
    }
    let begun = client.begin(large, false).await.head().await;
    assert_eq!(begun.status.as_u16(), 413, "before the body has come");
    assert!(pair.is_idle());
}

#[tokio::test]
async fn http_2_can_be_turned_off() {
    let pair = Pair::with(|config| config.set("http2", false)).await;
    let mut client = Client::connect(pair.balancer.address).await;
    client.send(PREFACE).await;
    let refused = client.answer().await;
    assert_eq!(refused.outcome(), (400, Some("bad_request_head")));
}

#[tokio::test]
async fn with_tls_the_protocol_is_negotiated() {
    let authority = Authority::generate();
    let signed = authority.sign(&["localhost"]);
    let (certificate, key) = signed.paths();
    for http2 in [true, false] {
        let mut pair = Pair::with(|config| {
            let config = config
                .set("tls_cert_path", certificate)
                .set("tls_key_path", key);
            config.set("http2", http2)
        })
        .await;
        let address = pair.balancer.address;
        let old = authority.connect(address, &["http/1.1"]).await.unwrap();
        assert_eq!(old.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let connected = authority
            .connect(address, &["h2", "http/1.1"])
            .await
            .unwrap();
        let chosen = connected.get_ref().1.alpn_protocol();
        if !http2 {
            assert_eq!(chosen, Some(&b"http/1.1"[..]));
            continue;
        }
        assert_eq!(chosen, Some(&b"h2"[..]));
        let mut client = Http2::over(connected, &Builder::new()).await;
        let sent = client.post("/generate", BODY).await;
        support::pair::serve(pair.next_legs().await).await;
        assert_eq!(sent.answer().await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let mut pair = Pair::with(|config| config.set("stream_keepalive_secs", 0.2)).await;
    let mut client = Http2::connect(pair.balancer.address).await;
    let sent = client.post(CHAT, STREAM).await;
    let (prefill, mut decode) = pair.next_legs().await;
    prefill.answer("200 OK", "{}").await;
    let mut begun = sent.head().await;
    assert_eq!(begun.piece().await.unwrap().unwrap(), ": keepalive\n\n");
    decode.begin_stream().await;
    decode.chunk("data: 1\n\n").await;
    let mut rest = String::new();
    while !rest.ends_with("data: 1\n\n") {
        rest += &begun.piece().await.unwrap().unwrap();
    }
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    while let Some(piece) = begun.piece().await {
        rest += &piece.unwrap();
    }
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
}

#[tokio::test]
async fn a_slow_preface_is_one_all_the_same() {
    let mut pair = Pair::start().await;
    let (near, mut far) = tokio::io::duplex(1);
    let address = pair.balancer.address;
    // One byte at a time.
    tokio::spawn(async move {
        let mut balancer = tokio::net::TcpStream::connect(address).await.unwrap();
        balancer.set_nodelay(true).unwrap();
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut far, &mut balancer, 1, 1).await;
    });
    let mut client = Http2::over(near, &Builder::new()).await;
    let sent = client.post("/generate", BODY).await;
    support::pair::serve(pair.next_legs().await).await;
    assert_eq!(sent.answer().await.0, StatusCode::OK);
}
