//! `/debug/requests`: each request is there while it runs and afterwards, with its pair and its time, and nothing that its
//! client has sent.

use serde_json::Value;
use support::pair::{TwoPairs, serve};
use support::samples::{GENERATE, asking, document, event};
use support::{Answer, BODY, Balancer, CHAT, Client, Pair, post};

const STREAMS: &str = r#"{"text":"Tell-me-a-secret","stream":true}"#;

/// A request with this id, and more that must not be shown.
fn named(id: &str, body: &str) -> String {
    let request = post("/generate?key=sk-in-the-query", body);
    let fields = format!("x-request-id: {id}\r\ncookie: a-cookie\r\nuser-agent: a-client\r\n");
    request.replacen("\r\n", &format!("\r\n{fields}"), 1)
}

async fn ask(client: &mut Client, query: &str) -> Answer {
    let target = format!("/debug/requests{query}");
    let request = format!("GET {target} HTTP/1.1\r\nhost: b\r\n\r\n");
    client.send(request).await;
    client.answer().await
}

/// What the page says about this query.
async fn page(balancer: &Balancer, query: &str) -> Value {
    let answer = ask(&mut balancer.client().await, query).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    for secret in ["secret", "sk-in-the-query", "a-cookie", "a-client"] {
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
    answer.json()
}

/// The request with this id, once it shows what is awaited.
async fn row(balancer: &Balancer, id: &str, is_there: impl Fn(&Value) -> bool) -> Value {
    support::soon("the row", async {
        loop {
            let mut client = balancer.client().await;
            let answer = ask(&mut client, &format!("?id={id}")).await;
            if answer.status() == 200 && is_there(&answer.json()["requests"][0]) {
                return answer.json()["requests"][0].clone();
            }
        }
    })
    .await
}

fn names(object: &Value) -> Vec<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn sum(object: &Value) -> f64 {
    let times = object.as_object().unwrap().values();
    times.map(|time| time.as_f64().unwrap()).sum()
}

#[tokio::test]
async fn a_request_is_shown_at_each_of_its_steps_and_when_it_has_finished() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs_of(named("a", STREAMS)).await;
    let at = |step: &'static str| move |row: &Value| row["step"] == step;
    let shown = row(&pair.balancer, "a", at("prefill")).await;
    assert_eq!(shown["state"], "live");
    assert_eq!(shown["prefill"], pair.prefill.url());
    assert_eq!(shown["decode"], pair.decode.url());
    assert_eq!(
        names(&shown["parts_ms"]),
        ["read", "queue", "send", "prefill"]
    );
    assert_eq!(names(&shown["steps_ms"]), ["read", "selected", "sent"]);
    assert_eq!(shown["request_bytes"], STREAMS.len());
    assert!(shown["ended"].is_null() && shown["e2e_ms"].is_null() && shown["status"].is_null());
    prefill.answer("200 OK", "{}").await;
    row(&pair.balancer, "a", at("decode")).await;
    decode.begin_stream().await;
    decode.chunk(&event(GENERATE, "a")).await;
    decode.chunk(&event(GENERATE, "a")).await;
    let shown = row(&pair.balancer, "a", |row| row["events"] == 2).await;
    assert_eq!(shown["step"], "stream");
    assert_eq!(shown["stream"], true);
    let ttft = shown["ttft_ms"].as_f64().unwrap();
    assert!((sum(&shown["parts_ms"]) - ttft).abs() < 0.01, "{shown}");
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    let shown = row(&pair.balancer, "a", |row| row["state"] == "finished").await;
    assert_eq!(shown["ended"], "ok");
    assert_eq!(shown["status"], 200);
    assert_eq!(shown["route"], "generate");
    assert_eq!(shown["path"], "/generate");
    assert_eq!(shown["events"], 3);
    assert!(shown["step"].is_null());
    let all = ["read", "queue", "send", "prefill", "decode", "relay"];
    assert_eq!(names(&shown["parts_ms"]), all);
    let ttft = shown["ttft_ms"].as_f64().unwrap();
    assert!((sum(&shown["parts_ms"]) - ttft).abs() < 0.01, "{shown}");
    let client = pair.client.local_address().to_string();
    assert_eq!(shown["client"], client);
    let page = page(&pair.balancer, "").await;
    assert_eq!(page["last"][0]["id"], "a");
    assert_eq!(page["slowest"]["by_ttft"][0]["id"], "a");
    assert_eq!(page["slowest"]["by_e2e"][0]["id"], "a");
    assert_eq!(page["live"], Value::Array(Vec::new()));
    assert_eq!(page["finished_total"], 1);
}

#[tokio::test]
async fn a_request_that_waits_for_its_pair_is_shown_in_the_queue() {
    let mut pair = Pair::with(|config| config.set("max_concurrent_requests", 1)).await;
    let legs = pair.legs_of(named("first", BODY)).await;
    let mut second = pair.balancer.client().await;
    second.send(named("second", BODY)).await;
    let shown = row(&pair.balancer, "second", |row| row["step"] == "queue").await;
    assert!(shown["prefill"].is_null(), "{shown}");
    let list = page(&pair.balancer, "?live=5").await;
    let order: Vec<_> = list["live"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["id"])
        .collect();
    assert_eq!(order, ["first", "second"]);
    assert_eq!(list["live_total"], 2);
    serve(legs).await;
    serve(pair.next_legs().await).await;
    second.answer().await;
    let shown = row(&pair.balancer, "second", |row| row["state"] == "finished").await;
    assert!(shown["queued_ms"].as_f64().unwrap() > 0.0, "{shown}");
}

#[tokio::test]
async fn attempts_that_failed_are_shown_with_worker_and_cause() {
    let mut pairs = TwoPairs::with(|config| config).await;
    pairs.client.send(named("a", BODY)).await;
    let ((_, prefill), (index, decode)) = pairs.next_legs().await;
    let failed = pairs.decodes[index].url();
    decode.answer("503 Unavailable", "{}").await;
    drop(prefill);
    let ((_, prefill), (index, decode)) = pairs.next_legs().await;
    serve((prefill, decode)).await;
    pairs.client.answer().await;
    let shown = row(&pairs.balancer, "a", |row| row["state"] == "finished").await;
    assert_eq!(shown["attempts"], 2);
    assert_eq!(shown["failed"][0]["worker"], failed);
    assert_eq!(shown["failed"][0]["role"], "decode");
    assert_eq!(shown["failed"][0]["cause"], "rejected_503");
    assert_eq!(shown["decode"], pairs.decodes[index].url());
    assert!(names(&shown["parts_ms"]).contains(&"retry"), "{shown}");
}

#[tokio::test]
async fn a_request_for_samples_is_shown_with_them() {
    let mut pair = Pair::start().await;
    pair.client
        .send(named("a", &asking(GENERATE, 2, false)))
        .await;
    let legs = pair.next_samples(2).await;
    let both = |row: &Value| {
        row["samples"]
            .as_array()
            .is_some_and(|list| list.len() == 2)
    };
    let shown = row(&pair.balancer, "a", |row| {
        both(row) && row["step"] == "prefill"
    })
    .await;
    assert_eq!(shown["state"], "live");
    assert_eq!(shown["samples"][1]["sample"], 1);
    for (prefill, decode) in legs {
        prefill.answer("200 OK", "{}").await;
        decode.answer("200 OK", &document(GENERATE, "x")).await;
    }
    assert_eq!(pair.client.answer().await.status(), 200);
    let shown = row(&pair.balancer, "a", |row| row["state"] == "finished").await;
    assert_eq!(shown["samples_asked"], 2);
    assert_eq!(shown["samples"][0]["decode"], pair.decode.url());
    assert_eq!(shown["samples"][0]["ended"], "ok");
    assert_eq!(page(&pair.balancer, "").await["finished_total"], 1);
}

#[tokio::test]
async fn a_request_that_failed_is_shown_with_its_error_and_one_without_legs_is_not() {
    let mut pair = Pair::start().await;
    pair.client.send(named("wrong", "{")).await;
    assert_eq!(pair.client.answer().await.status(), 400);
    for path in ["/health", "/nothing", "/debug/requests"] {
        pair.client
            .send(format!("GET {path} HTTP/1.1\r\nhost: b\r\n\r\n"))
            .await;
        pair.client.answer().await;
    }
    let page = page(&pair.balancer, "?last=9").await;
    assert_eq!(page["last"].as_array().unwrap().len(), 1);
    assert_eq!(page["last"][0]["ended"], "invalid_json");
    assert_eq!(page["last"][0]["status"], 400);
    assert!(page["last"][0]["error"].is_string());
    // Lists that were not asked for are not there.
    assert!(page.get("live").is_none() && page.get("slowest").is_none());
}

#[tokio::test]
async fn rows_can_be_limited_to_the_pair_that_served_them() {
    let mut pairs = TwoPairs::with(|config| config).await;
    let mut served = Vec::new();
    for id in ["a", "b", "c", "d", "e", "f"] {
        pairs.client.send(named(id, BODY)).await;
        let ((prefill_index, prefill), (decode_index, decode)) = pairs.next_legs().await;
        serve((prefill, decode)).await;
        pairs.client.answer().await;
        row(&pairs.balancer, id, |row| row["state"] == "finished").await;
        served.insert(0, (id, prefill_index, decode_index));
    }
    for (prefill, decode) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let query = format!(
            "?last=9&prefill={}&decode={}",
            pairs.prefills[prefill].url().replace(':', "%3A"),
            pairs.decodes[decode].url()
        );
        let list = page(&pairs.balancer, &query).await;
        let found: Vec<_> = list["last"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| &row["id"])
            .collect();
        let theirs = served
            .iter()
            .filter(|(_, p, d)| (*p, *d) == (prefill, decode));
        assert_eq!(found, theirs.map(|(id, _, _)| *id).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_wrong_query_and_an_unknown_id_get_an_error_that_says_why() {
    let mut pair = Pair::with(|config| config.set("debug_requests_capacity", 1)).await;
    let client = &mut pair.balancer.client().await;
    for (query, status, code, words) in [
        ("?slowest=many", 400, "bad_query", "`slowest` is a number"),
        ("?page=2", 400, "bad_query", "no parameter `page`"),
        ("?id=", 400, "bad_query", "`id` is the id"),
        ("?prefill=http://a:1", 400, "bad_query", "http://127.0.0.1"),
        ("?id=none", 404, "unknown_request", "since the start"),
    ] {
        let answer = ask(client, query).await;
        assert_eq!(answer.outcome(), (status, Some(code)), "{query}");
        assert!(answer.text().contains(words), "{}", answer.text());
    }
    // More than the list of the slowest can hold.
    for index in 0..130 {
        pair.client.send(named(&format!("id-{index}"), "{")).await;
        assert_eq!(pair.client.answer().await.status(), 400);
    }
    let page = page(&pair.balancer, "?last=9").await;
    assert_eq!(page["remembered"], 1);
    assert_eq!(page["finished_total"], 130);
    let answer = ask(client, "?id=none").await;
    assert_eq!(answer.outcome(), (404, Some("unknown_request")));
    assert!(
        answer.text().contains("before the last 1 requests"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn the_page_needs_the_key_of_administration_and_can_be_turned_off() {
    let keyed = Pair::with(|config| config.api_key("sk-client").admin_api_key("sk-admin")).await;
    for (key, status) in [
        ("", 401),
        ("Bearer sk-client", 401),
        ("Bearer sk-admin", 200),
    ] {
        let mut client = keyed.balancer.client().await;
        let head =
            format!("GET /debug/requests HTTP/1.1\r\nhost: b\r\nauthorization: {key}\r\n\r\n");
        client.send(head).await;
        assert_eq!(client.answer().await.status(), status, "{key}");
    }
    let mut off = Pair::with(|config| config.set("debug_requests_capacity", 0)).await;
    let legs = off.legs(CHAT, "{\"messages\":[]}").await;
    let answer = ask(&mut off.balancer.client().await, "").await;
    assert_eq!(answer.outcome(), (404, Some("not_found")));
    assert!(answer.text().contains("debug_requests_capacity"));
    drop(legs);
}
