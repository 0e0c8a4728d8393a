//! Contents of simulated responses: the parts of a pair make the response of an ordinary worker, streams make whole
//! responses, keys are checked.

use mini_lb::sim::journal::Violation;
use mini_lb::sim::{Event, SimOptions, Worker};
use serde_json::{Value, json};
use support::sim::{Reply, SimPair, get, post, post_text, quick, send};

/// Keys of `meta_info` with times and ids.
const INCIDENTAL: [&str; 13] = [
    "id",
    "storage_prefetch_wait",
    "storage_staging_wait",
    "forward_entry_time",
    "prefill_finished_time",
    "queue_time",
    "e2e_latency",
    "request_received_ts",
    "first_token_latency",
    "api_server_dispatch_finish_ts",
    "request_finished_ts",
    "decode_throughput",
    "response_sent_to_client_ts",
];

fn essence(answer: &Value) -> Value {
    let mut answer = answer.clone();
    let items = match &mut answer {
        Value::Array(items) => items.iter_mut().collect(),
        one => vec![one],
    };
    for item in items {
        let meta = item["meta_info"].as_object_mut().unwrap();
        meta.retain(|key, _| !INCIDENTAL.contains(&key.as_str()));
    }
    answer
}

/// The merge that a balancer must do, in the most obvious way.
fn merged(prefill: &Value, decode: &Value) -> Value {
    if let (Value::Array(prefill), Value::Array(decode)) = (prefill, decode) {
        return prefill
            .iter()
            .zip(decode)
            .map(|(prefill, decode)| merged(prefill, decode))
            .collect();
    }
    let mut answer = decode.clone();
    for (key, value) in prefill["meta_info"].as_object().unwrap() {
        if key.starts_with("input_") {
            answer["meta_info"][key] = value.clone();
        }
    }
    if let Some(rows) = answer["meta_info"].get_mut("output_token_ids_logprobs") {
        rows[0] = prefill["meta_info"]["output_token_ids_logprobs"][0].clone();
    }
    answer
}

#[tokio::test]
async fn prefills_prompt_and_decodes_answer_make_the_ordinary_answer() {
    let pair = SimPair::start(quick()).await;
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let text = "This program is free software; you can redistribute it";
    let sampling = json!({"max_new_tokens":6,"ignore_eos":true});
    let table = [
        json!({"text":text}),
        json!({"text":text,"return_logprob":true}),
        json!({"text":text,"return_logprob":true,"logprob_start_len":0,"top_logprobs_num":3}),
        json!({"text":text,"return_logprob":true,"logprob_start_len":7,"token_ids_logprob":[1,2,9000]}),
        json!({"text":text,"return_logprob":true,"logprob_start_len":0,"return_text_in_logprobs":true,
            "top_logprobs_num":200}),
        json!({"text":text,"return_logprob":true,"logprob_start_len":0,"top_logprobs_num":2,
            "return_flat_raw_top_logprobs":true,"return_flat_raw_output_top_logprobs":true}),
        json!({"text":[text,"b"],"return_logprob":[true,false],"logprob_start_len":[0,-1],"top_logprobs_num":2}),
        json!({"input_ids":[[1,2,3],[4,5]],"return_logprob":true,"logprob_start_len":1}),
        json!({"input_ids":[1,2,3]}),
    ];
    for (number, mut body) in (0..).zip(table) {
        body["sampling_params"] = sampling.clone();
        let (prefill, decode) = pair.both("/generate", &body, 1000 + number * 10).await;
        let alone = post(&ordinary, "/generate", &body).await;
        let whole = merged(&prefill.json(), &decode.json());
        // Only 128 top logprobs of the first token fit into prefill's transfer.
        if body["top_logprobs_num"] == 200 {
            let rows = &whole["meta_info"]["output_top_logprobs"];
            assert_eq!(
                (
                    rows[0].as_array().unwrap().len(),
                    rows[1].as_array().unwrap().len()
                ),
                (128, 200)
            );
            continue;
        }
        assert_eq!(essence(&whole), essence(&alone.json()), "{body}");
    }
}

#[tokio::test]
async fn echoed_logprobs_of_both_legs_make_the_ordinary_answer() {
    let pair = SimPair::start(quick()).await;
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let body = json!({"model":"sim","prompt":["one two three","é 語"],"echo":true,"logprobs":2,"max_tokens":5,
        "ignore_eos":true});
    let (prefill, decode) = pair.both("/v1/completions", &body, 5).await;
    let (prefill, mut decode) = (prefill.json(), decode.json());
    for index in 0..2 {
        for list in ["text_offset", "token_logprobs", "tokens", "top_logprobs"] {
            let mut whole = prefill["choices"][index]["logprobs"][list]
                .as_array()
                .unwrap()
                .clone();
            whole.pop();
            let rest = &mut decode["choices"][index]["logprobs"][list];
            whole.extend(rest.as_array().unwrap().clone());
            *rest = whole.into();
        }
    }
    assert_eq!(
        decode["choices"],
        post(&ordinary, "/v1/completions", &body).await.json()["choices"]
    );
}

#[tokio::test]
async fn the_events_of_a_stream_make_the_whole_answer() {
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let incremental = Worker::start_ordinary(SimOptions {
        incremental_streaming: true,
        ..quick()
    })
    .await
    .unwrap();
    let mut body = json!({"text":["a b","c"],"return_logprob":true,"top_logprobs_num":1,
        "sampling_params":{"max_new_tokens":40,"ignore_eos":true}});
    let whole = post(&ordinary, "/generate", &body).await.json();
    body["stream"] = json!(true);
    let (cumulative, deltas) = (
        post(&ordinary, "/generate", &body).await,
        post(&incremental, "/generate", &body).await,
    );
    for index in 0..2 {
        let of_index = |reply: &Reply| -> Vec<Value> {
            reply
                .event_values()
                .into_iter()
                .filter(|event| event["index"] == index)
                .collect()
        };
        let mut last = of_index(&cumulative).pop().unwrap();
        last.as_object_mut().unwrap().remove("index");
        assert_eq!(essence(&last), essence(&whole[index]));
        let deltas = of_index(&deltas);
        let text: String = deltas
            .iter()
            .map(|event| event["text"].as_str().unwrap())
            .collect();
        let ids: Vec<&Value> = deltas
            .iter()
            .flat_map(|event| event["output_ids"].as_array().unwrap())
            .collect();
        let rows = deltas
            .iter()
            .flat_map(|e| e["meta_info"]["output_token_logprobs"].as_array().unwrap());
        assert_eq!(text, whole[index]["text"].as_str().unwrap());
        assert_eq!(json!(ids), whole[index]["output_ids"]);
        assert_eq!(
            json!(rows.collect::<Vec<_>>()),
            whole[index]["meta_info"]["output_token_logprobs"]
        );
    }
}

#[tokio::test]
async fn a_chat_stream_says_what_the_whole_answer_says() {
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let mut body = json!({"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":300,"ignore_eos":true});
    let whole = post(&ordinary, "/v1/chat/completions", &body).await.json();
    body["stream"] = json!(true);
    let events = post(&ordinary, "/v1/chat/completions", &body).await;
    let said: String = events
        .event_values()
        .iter()
        .filter_map(|event| {
            event["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(
        said,
        whole["choices"][0]["message"]["content"].as_str().unwrap()
    );
    assert_eq!(
        events.chunks.unwrap().len(),
        1 + 300 + 1 + 1,
        "one chunk per event"
    );
}

#[tokio::test]
async fn answers_end_at_stops() {
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let mut body =
        json!({"text":"tell me","sampling_params":{"max_new_tokens":64,"ignore_eos":true}});
    let whole = post(&ordinary, "/generate", &body).await.json();
    let text = whole["text"].as_str().unwrap();
    let stop: String = text.chars().skip(20).take(5).collect();
    body["sampling_params"]["stop"] = json!([stop, "never said"]);
    let stopped = post(&ordinary, "/generate", &body).await.json();
    assert_eq!(
        stopped["meta_info"]["finish_reason"],
        json!({"type":"stop","matched":stop})
    );
    assert!(text.starts_with(stopped["text"].as_str().unwrap()));
    assert!(!stopped["text"].as_str().unwrap().contains(&stop));

    body["sampling_params"]["stop"] = Value::Null;
    body["sampling_params"]["stop_token_ids"] = json!([whole["output_ids"][9]]);
    let stopped = post(&ordinary, "/generate", &body).await.json();
    assert_eq!(stopped["meta_info"]["finish_reason"]["type"], "stop");
    assert!(stopped["meta_info"]["completion_tokens"].as_u64().unwrap() <= 10);
}

#[tokio::test]
async fn keys_open_what_they_should() {
    let options = SimOptions {
        api_key: Some("K".into()),
        admin_api_key: Some("A".into()),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let status = async |method: &str, path: &str, key: Option<&str>| {
        let authorization = key.map_or(String::new(), |key| format!("authorization: {key}\r\n"));
        Reply::parse(&send(worker.address(), method, path, &authorization, "").await).status
    };
    for (method, path, key, wanted) in [
        ("GET", "/v1/models", None, 401),
        ("GET", "/v1/models", Some("Bearer wrong"), 401),
        ("GET", "/v1/models", Some("Basic K"), 401),
        ("GET", "/v1/models", Some("bearer K"), 200),
        ("GET", "/unknown", None, 401),
        ("GET", "/health", None, 200),
        ("GET", "/metrics", None, 200),
        ("POST", "/flush_cache", Some("Bearer K"), 401),
        ("POST", "/flush_cache", Some("Bearer A"), 200),
        ("POST", "/abort_request", None, 401),
    ] {
        assert_eq!(
            status(method, path, key).await,
            wanted,
            "{method} {path} {key:?}"
        );
    }
    let refused = get(&worker, "/v1/models").await;
    assert_eq!(refused.text(), r#"{"error":"Unauthorized"}"#);
}

#[tokio::test]
async fn tokenizing_and_detokenizing_are_inverse() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let tokens = post(
        &worker,
        "/tokenize",
        &json!({"prompt":"Hello, wide é world"}),
    )
    .await
    .json();
    let text = post(&worker, "/detokenize", &json!({"tokens":tokens["tokens"]}))
        .await
        .json();
    assert_eq!(text["text"], "Hello, wide é world");
    let messages = json!({"messages":[{"role":"user","content":"Hello"}]});
    let counted = post(&worker, "/v1/messages/count_tokens", &messages)
        .await
        .json();
    assert!(counted["input_tokens"].as_u64() > Some(0));
    assert_eq!(get(&worker, "/v1/models/sim").await.json()["id"], "sim");
    assert_eq!(get(&worker, "/v1/models/other").await.status, 404);
}

#[tokio::test]
async fn the_journal_shows_requests_and_their_bodies_hashes() {
    let pair = SimPair::start(quick()).await;
    let body = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let (prefill, decode) = pair.both("/generate", &body, 77).await;
    assert_eq!((prefill.status, decode.status), (200, 200));
    let of = async |worker: &Worker| get(worker, "/sim/journal").await.json();
    let (prefill, decode) = (of(&pair.prefill).await, of(&pair.decode).await);
    let find = |journal: &Value, event: &str| -> Value {
        let entries = journal["entries"].as_array().unwrap();
        entries
            .iter()
            .find(|entry| entry["event"] == event)
            .unwrap()
            .clone()
    };
    assert_eq!(
        find(&prefill, "request_body")["sha256"],
        find(&decode, "request_body")["sha256"]
    );
    assert_eq!(
        find(&decode, "room_presented")["port"],
        json!(pair.prefill.bootstrap_port())
    );
    let head = find(&prefill, "request_head");
    assert_eq!(
        (&head["method"], &head["path"], &head["authorization"]),
        (&json!("POST"), &json!("/generate"), &json!(false))
    );
    assert!(
        head["headers"]
            .as_array()
            .unwrap()
            .contains(&json!("content-length"))
    );

    let cleared = send(pair.prefill.address(), "DELETE", "/sim/journal", "", "").await;
    assert_eq!(Reply::parse(&cleared).status, 200);
    let heads = pair.prefill.journal().entries();
    assert!(
        !heads
            .iter()
            .any(|entry| matches!(entry.event, Event::RequestBody { bytes, .. } if bytes > 0))
    );
}

#[tokio::test]
async fn put_generates_as_post_does() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let body = r#"{"text":"hello","sampling_params":{"max_new_tokens":3}}"#;
    let put = Reply::parse(&send(worker.address(), "PUT", "/generate", "", body).await);
    let post = post_text(&worker, "/generate", body).await;
    assert_eq!(put.json()["text"], post.json()["text"]);
}

#[tokio::test]
async fn decode_shows_prefills_row_when_no_token_is_asked_for() {
    let pair = SimPair::start(quick()).await;
    let body = json!({"text":"a b","return_logprob":true,"top_logprobs_num":2,
        "sampling_params":{"max_new_tokens":0}});
    let (_, decode) = pair.both("/generate", &body, 91).await;
    let answer = decode.json();
    let meta = &answer["meta_info"];
    assert_eq!(answer["output_ids"], json!([]));
    assert_eq!(meta["completion_tokens"], 0);
    assert_eq!(meta["output_token_logprobs_length"], 1);
    assert_eq!(meta["output_token_logprobs"].as_array().unwrap().len(), 1);
    assert_eq!(meta["output_top_logprobs"][0].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_logprob_start_below_minus_one_is_refused_and_noted() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let mut body =
        json!({"text":"a","logprob_start_len":-2,"sampling_params":{"max_new_tokens":1}});
    assert_eq!(post(&worker, "/generate", &body).await.status, 200);
    body["return_logprob"] = json!(true);
    let refused = post(&worker, "/generate", &body).await;
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (
            400,
            r#"{"error":{"message":"logprob_start_len must be at least -1, got -2."}}"#
        )
    );
    assert_eq!(
        worker
            .journal()
            .violations()
            .get(&Violation::LogprobStartOutOfRange),
        Some(&1)
    );
    assert_eq!(get(&worker, "/health").await.status, 200);
}
