//! The two legs of a request: which response reaches the client, and when each leg is closed.

use mini_lb::pd::Role;
use serde_json::Value;
use support::pair::{ROLES, leg_of};
use support::{BODY, Balancer, CHAT, Pair, STREAM, Worker, config, post};

#[tokio::test]
async fn decodes_answer_passes_with_its_status_headers_and_bytes() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs("/generate", BODY).await;
    let body = "{\"text\":\"\\u00e9\" , \"x\":1e400}\n";
    decode
        .send(format!(
            "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\nx-own: 1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    // Without a merge the response does not wait for prefill.
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (200, body));
    assert_eq!(answer.header("server"), Some("uvicorn"));
    assert_eq!(answer.header("x-own"), Some("1"));
    assert_eq!(
        answer.header("content-length"),
        Some(body.len().to_string().as_str())
    );
    prefill.answer("200 OK", "{}").await;
}

#[tokio::test]
async fn each_piece_of_a_stream_goes_out_when_it_comes_in() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    let pieces = [
        "data: {\"a\":1}\n\n",
        "data: {\"b\":",
        "\"é\"}\n\n: comment\n\n",
        "data: [DONE]\n\n",
    ];
    decode.chunk(pieces[0]).await;
    let head = pair.client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(pair.client.chunk().await.as_deref(), Some(pieces[0]));
    for piece in &pieces[1..] {
        decode.chunk(piece).await;
        assert_eq!(pair.client.chunk().await.as_deref(), Some(*piece));
    }
    decode.chunk("").await;
    assert_eq!(pair.client.chunk().await, None);
    prefill.answer("200 OK", "{}").await;
}

#[tokio::test]
async fn events_that_come_together_go_out_as_one_piece() {
    let mut pair = Pair::start().await;
    let (_prefill, mut decode) = pair
        .legs("/generate", r#"{"text":"a","stream":true}"#)
        .await;
    decode.begin_stream().await;
    decode.chunk("data: 0\n\n").await;
    pair.client.head().await;
    assert_eq!(pair.client.chunk().await.as_deref(), Some("data: 0\n\n"));
    // More than Pingora reads at once.
    decode.send("9\r\ndata: 1\n\n\r\n".repeat(40)).await;
    let piece = pair.client.chunk().await;
    assert_eq!(piece, Some("data: 1\n\n".repeat(40)));
}

#[tokio::test]
async fn an_error_of_one_leg_ends_the_other_and_reaches_the_client_unchanged() {
    for status in [
        "400 Bad Request",
        "503 Service Unavailable",
        "500 Internal Server Error",
    ] {
        for (role, body) in [
            (Role::Prefill, STREAM),
            (Role::Prefill, BODY),
            (Role::Decode, BODY),
        ] {
            let mut pair = Pair::start().await;
            let (failed, other) = leg_of(role, pair.legs("/generate", body).await);
            failed.answer(status, "{\"error\" : \"as it is\"}").await;
            let answer = pair.client.answer().await;
            assert_eq!(answer.outcome(), (status[..3].parse().unwrap(), None));
            assert_eq!(answer.text(), "{\"error\" : \"as it is\"}");
            other.closed().await;
        }
    }
}

#[tokio::test]
async fn prefills_failure_counts_even_after_decodes_head() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs("/generate", STREAM).await;
    decode.begin_stream().await;
    prefill
        .answer("400 Bad Request", "{\"error\":\"too long\"}")
        .await;
    let answer = pair.client.answer().await;
    assert_eq!(
        (answer.status(), answer.text()),
        (400, "{\"error\":\"too long\"}")
    );
    decode.closed().await;
}

#[tokio::test]
async fn a_stream_of_prefill_that_begins_with_an_error_is_that_error() {
    let mut pair = Pair::start().await;
    let (mut prefill, mut decode) = pair.legs("/generate", STREAM).await;
    decode.begin_stream().await;
    prefill.begin_stream().await;
    prefill
        .chunk("data: {\"error\":{\"message\":\"too long\",\"code\":400}}\n\n")
        .await;
    prefill.chunk("data: [DONE]\n\n").await;
    prefill.chunk("").await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json()["error"]["message"], "too long");
    decode.closed().await;
}

#[tokio::test]
async fn a_stream_of_decode_that_begins_with_an_error_is_that_status() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    let event = "data: {\"error\":{\"object\":\"error\",\"message\":\"KV lost\",\"type\":\"INTERNAL_SERVER_ERROR\",\"param\":null,\"code\":500}}\n\n";
    decode.chunk(&event[..20]).await;
    decode.chunk(&event[20..]).await;
    let answer = pair.client.answer().await;
    assert_eq!(
        (answer.status(), answer.json()["message"].as_str()),
        (500, Some("KV lost"))
    );
    prefill.closed().await;
}

#[tokio::test]
async fn a_worker_that_refuses_is_a_502_that_names_it_and_the_other_leg_ends() {
    for role in ROLES {
        let mut worker = Worker::listen().await;
        let gone = Worker::refusing().await;
        let config = match role {
            Role::Prefill => config(std::slice::from_ref(&gone), &[worker.url()]),
            Role::Decode => config(&[worker.url()], std::slice::from_ref(&gone)),
        };
        let balancer = Balancer::start(config).await;
        let mut client = balancer.client().await;
        client.send(post(CHAT, BODY)).await;
        let answer = client.answer().await;
        let code = format!("{role}_unreachable");
        assert_eq!(answer.outcome(), (502, Some(code.as_str())));
        let text = answer.json()["message"].to_string();
        assert!(text.contains(&gone), "{text}");
        if worker.has_request() {
            worker.request().await.closed().await;
        }
    }
}

#[tokio::test]
async fn a_leg_that_is_lost_before_its_answer_ends_the_other() {
    for role in ROLES {
        for is_reset in [true, false] {
            let mut pair = Pair::start().await;
            let (lost, other) = leg_of(role, pair.legs("/generate", BODY).await);
            match is_reset {
                true => lost.reset(),
                false => drop(lost),
            }
            pair.bad_gateway("", &format!("{role}_lost")).await;
            other.closed().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_both_legs() {
    let mut pair = Pair::start().await;
    let (prefill, decode) = pair.legs("/generate", BODY).await;
    drop(pair.client);
    prefill.closed().await;
    decode.closed().await;
    pair.balancer.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream_ends_both_legs() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    pair.client.head().await;
    pair.client.chunk().await;
    drop(pair.client);
    prefill.closed().await;
    decode.closed().await;
    pair.balancer.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_the_merge_waits_for_prefill_ends_both_legs() {
    let mut pair = Pair::start().await;
    let body = r#"{"text":"a","return_logprob":true,"logprob_start_len":0}"#;
    let (prefill, mut decode) = pair.legs("/generate", body).await;
    decode
        .send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        .await;
    drop(pair.client);
    prefill.closed().await;
    decode.closed().await;
}

#[tokio::test]
async fn a_prefill_that_dies_after_decodes_first_byte_does_not_end_the_stream() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    pair.client.head().await;
    pair.client.chunk().await;
    prefill.reset();
    decode.chunk("data: [DONE]\n\n").await;
    assert_eq!(
        pair.client.chunk().await.as_deref(),
        Some("data: [DONE]\n\n")
    );
    decode.chunk("").await;
    assert_eq!(pair.client.chunk().await, None);
}

#[tokio::test]
async fn a_decode_that_dies_in_the_middle_of_an_event_leaves_a_whole_error_event_and_no_done() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\ndata: {\"b\"").await;
    pair.client.head().await;
    pair.client.chunk().await;
    decode.reset();
    let event = pair.client.chunk().await.unwrap();
    let data = event
        .strip_prefix("\n\nevent: error\ndata: ")
        .unwrap()
        .strip_suffix("\n\n")
        .unwrap();
    let error: Value = serde_json::from_str(data).unwrap();
    assert_eq!(error["error"]["code"], 502);
    // Neither the stream nor the chunked body ends: the client sees that the response is incomplete.
    assert_eq!(pair.client.rest().await, b"");
    prefill.closed().await;
}

#[tokio::test]
async fn an_error_of_decode_that_comes_in_pieces_ends_prefill_and_stays_the_answer() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs("/generate", BODY).await;
    decode
        .send("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n")
        .await;
    prefill.closed().await;
    decode.send(r#"{"error":""}"#).await;
    let answer = pair.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (400, r#"{"error":""}"#));
}

/// SGLang before 0.5.23 streams for every value that Pydantic takes for true.
#[tokio::test]
async fn the_heads_of_both_legs_say_whether_their_bodies_are_merged_as_streams() {
    let mut pair = Pair::start().await;
    let body = r#"{"text":"a","stream":1,"return_logprob":true,"logprob_start_len":0}"#;
    let (mut prefill, mut decode) = pair.legs("/generate", body).await;
    for (leg, logprobs) in [(&mut prefill, "[[null,1,null]]"), (&mut decode, "[]")] {
        leg.begin_stream().await;
        let event = format!(r#"{{"meta_info":{{"input_token_logprobs":{logprobs}}}}}"#);
        leg.chunk(&format!("data: {event}\n\ndata: [DONE]\n\n"))
            .await;
        leg.chunk("").await;
    }
    let answer = pair.client.answer().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(
        answer.text().contains("[[null,1,null]]"),
        "{}",
        answer.text()
    );
}
