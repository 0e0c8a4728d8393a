//! The fields of a worker's response: which reach the client, and which end at the proxy.

use mini_lb::pd::Role;
use support::pair::{ROLES, leg_of};
use support::{Answer, BODY, CHAT, Exchange, Pair, STREAM};

/// Fields that concern a worker's connection alone.
const HOPS: &str = "connection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: a\r\n\
                    upgrade: h2c\r\nte: trailers\r\ntrailer: x-sum\r\n";

#[tokio::test]
async fn fields_of_the_connection_to_decode_and_of_its_trailers_do_not_reach_the_client() {
    let mut pair = Pair::start().await;
    for (path, body, content_type, text) in [
        ("/generate", BODY, "application/json", "{}"),
        (CHAT, STREAM, "text/event-stream", "data: [DONE]\n\n"),
    ] {
        let (prefill, mut decode) = pair.legs(path, body).await;
        prefill.answer("200 OK", "{}").await;
        decode
            .send(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{HOPS}x-end: 1\r\ntransfer-encoding: chunked\r\n\r\n\
                 {:x}\r\n{text}\r\n0\r\nx-sum: 1\r\n\r\n",
                text.len()
            ))
            .await;
        let answer = pair.client.answer().await;
        assert_eq!((answer.status(), answer.text()), (200, text));
        assert_eq!(answer.header("x-end"), Some("1"));
        for name in [
            "x-hop",
            "keep-alive",
            "proxy-connection",
            "upgrade",
            "te",
            "trailer",
            "x-sum",
        ] {
            assert_eq!(answer.header(name), None, "{name}");
        }
    }
}

/// Fields that tell a client what to do about an error.
const HINTS: [(&str, &str); 6] = [
    ("retry-after", "7"),
    ("www-authenticate", "Bearer realm=\"w\""),
    ("x-should-retry", "false"),
    ("access-control-allow-origin", "https://a.example"),
    ("x-ratelimit-remaining-requests", "0"),
    ("server", "uvicorn"),
];

/// [`HINTS`] as lines of a head, with fields of the connection between them.
fn hints() -> String {
    let lines = HINTS.map(|(name, value)| format!("{name}: {value}\r\n"));
    lines.concat() + HOPS
}

/// Waits until the leg that is not of this role has been cancelled, and its worker was told so.
async fn cancelled(pair: &mut Pair, role: Role, other: Exchange) {
    other.closed().await;
    let worker = match role {
        Role::Prefill => &mut pair.decode,
        Role::Decode => &mut pair.prefill,
    };
    let abort = worker.request().await;
    assert!(abort.request.head.contains("/abort_request"));
    abort.answer("200 OK", "").await;
}

/// The client's response to a refusal, with its end-to-end fields in order.
fn refusal(answer: &Answer) -> (u16, String, Vec<String>) {
    let fields = answer.head.lines().skip(1);
    let fields = fields.filter(|line| !line.is_empty());
    let mut fields: Vec<String> = fields.map(str::to_ascii_lowercase).collect();
    // Each response has an id and a time of its own.
    fields.retain(|line| !line.starts_with("x-request-id") && !line.starts_with("date:"));
    fields.sort();
    (answer.status(), answer.text().to_owned(), fields)
}

#[tokio::test]
async fn a_refusal_has_the_same_fields_and_leaves_the_same_connection_whichever_leg_gave_it() {
    for status in [
        "400 Bad Request",
        "401 Unauthorized",
        "429 Too Many",
        "500 Internal",
    ] {
        for (path, body) in [("/generate", BODY), (CHAT, STREAM)] {
            let mut refusals = Vec::new();
            for role in ROLES {
                let mut pair = Pair::start().await;
                // Two on one connection: the second would fail on one that was closed.
                for _ in 0..2 {
                    let (mut one, other) = leg_of(role, pair.legs(path, body).await);
                    let text = r#"{"message":"no"}"#;
                    let head = format!(
                        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{}content-length: {}\r\n\r\n",
                        hints(),
                        text.len()
                    );
                    one.send(head + text).await;
                    let answer = pair.client.answer().await;
                    refusals.push(refusal(&answer));
                    for (name, value) in HINTS {
                        assert_eq!(answer.header(name), Some(value), "{role} {status}");
                    }
                    cancelled(&mut pair, role, other).await;
                }
            }
            let first = &refusals[0];
            assert!(refusals.iter().all(|other| other == first), "{refusals:#?}");
        }
    }
}

#[tokio::test]
async fn an_error_inside_a_stream_has_the_fields_of_the_stream_whichever_leg_gave_it() {
    let event = r#"{"object":"error","message":"full","code":503}"#;
    let mut refusals = Vec::new();
    for role in ROLES {
        let mut pair = Pair::start().await;
        for _ in 0..2 {
            let (mut one, other) = leg_of(role, pair.legs(CHAT, STREAM).await);
            one.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{}content-encoding: identity\r\n\
                 transfer-encoding: chunked\r\n\r\n",
                hints()
            ))
            .await;
            one.chunk(&format!("data: {{\"error\":{event}}}\n\n")).await;
            one.chunk("").await;
            let answer = pair.client.answer().await;
            for (name, value) in HINTS {
                assert_eq!(answer.header(name), Some(value), "{role}");
            }
            refusals.push(refusal(&answer));
            cancelled(&mut pair, role, other).await;
        }
    }
    assert_eq!(refusals[0].0, 503);
    assert!(
        refusals.iter().all(|other| *other == refusals[0]),
        "{refusals:#?}"
    );
}

#[tokio::test]
async fn the_connection_survives_an_error_of_the_proxy_about_a_leg() {
    let mut pair = Pair::start().await;
    for role in ROLES {
        let (mut one, other) = leg_of(role, pair.legs("/generate", BODY).await);
        one.send("no HTTP\r\n\r\n").await;
        let answer = pair
            .bad_gateway("no HTTP", &format!("{role}_bad_answer"))
            .await;
        assert_ne!(answer.header("connection"), Some("close"));
        cancelled(&mut pair, role, other).await;
    }
    let (prefill, decode) = pair.legs("/generate", BODY).await;
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
    assert_eq!(pair.client.answer().await.status(), 200);
}
