//! Stored responses: what asks for one goes to the workers that have made it.

use support::{Client, TwoPairs, Worker, post};

const PATH: &str = "/v1/responses";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n")
}

/// Makes a response with this id. The indices of its workers.
async fn make(pairs: &mut TwoPairs, id: &str, stream: bool) -> (usize, usize) {
    let body = format!(r#"{{"input":"a","stream":{stream}}}"#);
    pairs.client.send(post(PATH, &body)).await;
    let ((prefill, one), (decode, mut two)) = pairs.next_legs().await;
    one.answer("200 OK", r#"{"id":"resp_of_prefill"}"#).await;
    if stream {
        two.begin_stream().await;
        // Cut within the id.
        let event =
            format!("event: response.created\ndata: {{\"response\":{{\"id\":\"{id}\"}}}}\n\n");
        let (begin, end) = event.split_at(event.find(id).unwrap() + 7);
        two.chunk(begin).await;
        two.chunk(end).await;
        pairs.client.head().await;
        let mut got = String::new();
        while got.len() < event.len() {
            got += &pairs.client.chunk().await.unwrap();
        }
        assert_eq!(got, event);
        let end = "event: response.completed\ndata: {}\n\n";
        two.chunk(end).await;
        assert_eq!(pairs.client.chunk().await.as_deref(), Some(end));
        two.chunk("").await;
        assert_eq!(pairs.client.chunk().await, None);
        two.keep();
    } else {
        let document = format!(r#"{{"id":"{id}","object":"response"}}"#);
        two.answer("200 OK", &document).await;
        assert_eq!(pairs.client.answer().await.text(), document);
    }
    (prefill, decode)
}

async fn ask(client: &mut Client, request: String, worker: &mut Worker) -> String {
    client.send(request).await;
    let exchange = worker.request().await;
    let head = exchange.request.head.lines().next().unwrap().to_owned();
    exchange
        .answer(
            "400 Bad Request",
            r#"{"error":{"message":"Response store is disabled."}}"#,
        )
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.outcome(), (400, None));
    assert_eq!(
        answer.json()["error"]["message"],
        "Response store is disabled."
    );
    head
}

#[tokio::test]
async fn a_response_is_asked_for_and_cancelled_at_the_decode_worker_that_made_it() {
    let mut pairs = TwoPairs::with(|config| config).await;
    for (number, stream) in [false, true, false, true].into_iter().enumerate() {
        let id = format!("resp_{number}aaaaaaaa");
        let (_, decode) = make(&mut pairs, &id, stream).await;
        let worker = &mut pairs.decodes[decode];
        let path = format!("{PATH}/{id}");
        let head = ask(&mut pairs.client, get(&format!("{path}?include=a")), worker).await;
        assert_eq!(head, format!("GET {path}?include=a HTTP/1.1"));
        let cancel = format!("{path}/cancel");
        let head = ask(&mut pairs.client, post(&cancel, ""), worker).await;
        assert_eq!(head, format!("POST {cancel} HTTP/1.1"));
    }
}

#[tokio::test]
async fn a_request_that_continues_a_response_goes_to_the_pair_that_made_it() {
    let mut pairs = TwoPairs::with(|config| config).await;
    let made = make(&mut pairs, "resp_1aaaaaaaa", false).await;
    for _ in 0..6 {
        let body = r#"{"input":"a","previous_response_id":"resp_1aaaaaaaa"}"#;
        pairs.client.send(post(PATH, body)).await;
        let ((prefill, one), (decode, two)) = pairs.next_legs().await;
        assert_eq!((prefill, decode), made);
        one.answer("200 OK", "{}").await;
        two.answer("200 OK", "{}").await;
        assert_eq!(pairs.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_response_that_is_not_known_is_a_404_with_a_reason() {
    let mut pairs = TwoPairs::with(|config| config).await;
    for request in [
        get("/v1/responses/resp_unknown"),
        post("/v1/responses/resp_unknown/cancel", ""),
    ] {
        pairs.client.send(request).await;
        let answer = pairs.client.answer().await;
        assert_eq!(answer.outcome(), (404, Some("unknown_response")));
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains("resp_unknown"), "{message}");
    }
    assert!(
        pairs
            .decodes
            .iter()
            .chain(&pairs.prefills)
            .all(|worker| !worker.has_request())
    );
}
