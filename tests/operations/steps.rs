//! The line with the steps of a request: where the time to the first token went.

use std::net::SocketAddr;

use support::{Client, Worker, mini_lb, post, soon};

/// The value of a field of a log line.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, rest) = line
        .split_once(&format!(" {name}="))
        .unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split_whitespace().next().unwrap()
}

/// Waits until the balancer has read the end of prefill's response.
async fn until_prefill_has_ended(balancer: SocketAddr) {
    let mut observer = Client::connect(balancer).await;
    soon("the end of prefill's leg", async {
        loop {
            let page = "GET /debug/requests HTTP/1.1\r\nhost: b\r\n\r\n";
            observer.send(page).await;
            let page = observer.answer().await.json();
            if page["live"][0]["steps_ms"]["prefill_end"].is_number() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_served_request_has_all_steps_in_order_and_its_sizes() {
    const BODY: &str = r#"{"text":"a","stream":true}"#;
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let line = format!(
        "--host 127.0.0.1 --port 0 --disable-health-check --log-level debug --prefill {} 8998 --decode {}",
        prefill.url(),
        decode.url()
    );
    let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
    let address = process.address().await;
    let mut client = Client::connect(address).await;
    client.send(post("/generate", BODY)).await;
    let (prefill, mut decode) = (prefill.request().await, decode.request().await);
    prefill.answer("200 OK", "{}").await;
    until_prefill_has_ended(address).await;
    decode.begin_stream().await;
    for event in ["data: 1\n\n", "data: 2\n\ndata: [DONE]\n\n"] {
        decode.chunk(event).await;
    }
    decode.send("0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
    let line = loop {
        let line = process.line("request steps").await;
        // The observer's requests have lines as well.
        if line.contains(" route=generate ") {
            break line;
        }
    };
    let sizes = ["route", "rooms", "request_bytes", "events"].map(|name| field(&line, name));
    assert_eq!(sizes, ["generate", "1", &BODY.len().to_string(), "3"]);
    let at = |step: &&str| field(&line, &format!("{step}_ms")).parse::<f64>().unwrap();
    let own: Vec<f64> = [
        "read",
        "selected",
        "sent",
        "decode_head",
        "decode_first",
        "first_byte",
        "ended",
    ]
    .iter()
    .map(at)
    .collect();
    assert!(own.is_sorted(), "{line}");
    let prefill: Vec<f64> = ["sent", "prefill_head", "prefill_end", "ended"]
        .iter()
        .map(at)
        .collect();
    assert!(prefill.is_sorted(), "{line}");
    let parts = [
        "read", "queue", "retry", "send", "prefill", "decode", "relay",
    ];
    let sum: f64 = parts.iter().map(|part| at(&&*format!("ttft_{part}"))).sum();
    // Each of the eight times is rounded to a tenth of a millisecond.
    assert!((sum - at(&"first_byte")).abs() < 0.05 * 8.01, "{line}");
}

#[tokio::test]
async fn a_refused_request_has_the_steps_that_it_reached() {
    let (prefill, decode) = (Worker::refusing().await, Worker::refusing().await);
    let line = format!(
        "--host 127.0.0.1 --port 0 --disable-health-check --log-level debug --prefill {prefill} 8998 --decode {decode}"
    );
    let mut process = mini_lb!(&line.split_whitespace().collect::<Vec<_>>());
    let mut client = Client::connect(process.address().await).await;
    client.send(post("/generate", "{")).await;
    assert_eq!(client.answer().await.status(), 400);
    let line = process.line("request steps").await;
    assert_eq!(field(&line, "rooms"), "0");
    assert!(
        !line.contains("sent_ms") && line.contains("ended_ms"),
        "{line}"
    );
}
