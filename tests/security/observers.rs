//! Pages for observers: the key that they need, the listener that serves them, and that no load of clients keeps them
//! from being served.

use support::pair::serve;
use support::{BODY, Client, Pair, post, soon};

/// A request for the metrics with this field of its head.
fn metrics(field: &str) -> String {
    format!("GET /metrics HTTP/1.1\r\nhost: a\r\n{field}\r\n")
}

/// `any:sk-a`, as a browser sends it.
const BASIC: &str = "authorization: Basic YW55OnNrLWE=\r\n";
const BEARER: &str = "authorization: Bearer sk-a\r\n";

async fn outcome(client: &mut Client, request: impl AsRef<[u8]>) -> (u16, Option<String>) {
    client.send(request).await;
    let answer = client.answer().await;
    let challenge = answer.header("www-authenticate").map(str::to_owned);
    (answer.status(), challenge)
}

#[tokio::test]
async fn an_observer_presents_the_admin_key_as_token_or_as_password() {
    let asks = Some("Basic realm=\"mini-lb\"".to_owned());
    let pair = Pair::with(|config| config.api_key("sk-c").admin_api_key("sk-a")).await;
    let mut client = pair.balancer.client().await;
    for (field, expected) in [
        (BASIC, (200, None)),
        (BEARER, (200, None)),
        ("", (401, asks.clone())),
        ("authorization: Bearer sk-c\r\n", (401, asks.clone())),
        ("authorization: Basic YW55OnNrLWM=\r\n", (401, asks.clone())),
    ] {
        assert_eq!(
            outcome(&mut client, metrics(field)).await,
            expected,
            "{field}"
        );
    }
    // A browser sends the password without being asked, so that it opens nothing that acts.
    let flush = post("/flush_cache", "").replacen("\r\n", &format!("\r\n{BASIC}"), 1);
    let refused = (401, Some("Bearer".to_owned()));
    assert_eq!(outcome(&mut client, flush).await, refused);
    assert!(pair.is_idle());
}

#[tokio::test]
async fn pages_are_served_at_the_listener_for_administration_where_there_is_one() {
    let pair = Pair::with(|config| config.admin_listen("127.0.0.1:0").api_key("sk-c")).await;
    let mut client = pair.balancer.client().await;
    for field in ["", "authorization: Bearer sk-c\r\n"] {
        assert_eq!(outcome(&mut client, metrics(field)).await.0, 403);
    }
    let mut admin = pair.balancer.admin().await;
    assert_eq!(outcome(&mut admin, metrics("")).await.0, 401);
    let with_key = metrics("authorization: Basic OnNrLWM=\r\n");
    assert_eq!(outcome(&mut admin, with_key).await.0, 200);

    let open = Pair::with(|config| config.admin_listen("127.0.0.1:0")).await;
    let mut admin = open.balancer.admin().await;
    assert_eq!(outcome(&mut admin, metrics("")).await.0, 200);
    let mut plain = Pair::start().await;
    assert_eq!(outcome(&mut plain.client, metrics("")).await.0, 200);
}

#[tokio::test]
async fn pages_of_other_origins_may_not_read_one() {
    let mut pair = Pair::start().await;
    for (path, allowed) in [("/metrics", None), ("/health", Some("https://other"))] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\norigin: https://other\r\n\r\n");
        pair.client.send(head).await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.status(), 200, "{path}");
        let field = answer.header("access-control-allow-origin");
        assert_eq!(field, allowed, "{path}");
    }
}

#[tokio::test]
async fn requests_that_fill_the_limits_leave_room_for_observers_and_are_not_pushed_out_by_them() {
    let mut pair = Pair::with(|config| config.max_inflight_requests(1)).await;
    // A page that is not complete counts as no request.
    let mut slow = pair.balancer.client().await;
    slow.send(metrics("content-length: 1\r\n")).await;
    let mut client = pair.balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let legs = pair.next_legs().await;
    let mut second = pair.balancer.client().await;
    assert_eq!(outcome(&mut second, post("/generate", BODY)).await.0, 503);
    let mut observer = pair.balancer.client().await;
    assert_eq!(outcome(&mut observer, metrics("")).await.0, 200);
    serve(legs).await;
    assert_eq!(client.answer().await.status(), 200);
    slow.send("x").await;
    assert_eq!(slow.answer().await.status(), 200);
}

#[tokio::test]
async fn pages_are_bounded_among_themselves() {
    let mut pair = Pair::start().await;
    let mut open = Vec::new();
    for _ in 0..32 {
        let mut client = pair.balancer.client().await;
        client.send(metrics("content-length: 1\r\n")).await;
        open.push(client);
    }
    let mut observer = pair.balancer.client().await;
    // Once all of them have been let in.
    soon("one above the limit is refused", async {
        while outcome(&mut observer, metrics("")).await.0 != 503 {}
    })
    .await;
    pair.client.send(post("/generate", BODY)).await;
    serve(pair.next_legs().await).await;
    assert_eq!(pair.client.answer().await.status(), 200);
    for client in &mut open {
        client.send("x").await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert_eq!(outcome(&mut pair.client, metrics("")).await.0, 200);
}
