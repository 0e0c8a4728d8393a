//! More samples than one on an ordinary worker. Source of the texts: responses of a SGLang 0.5.23 server.

use mini_lb::sim::Worker;
use serde_json::{Value, json};
use support::sim::{Reply, post_text, quick};

async fn ordinary() -> Worker {
    Worker::start_ordinary(quick()).await.unwrap()
}

async fn post(worker: &Worker, path: &str, body: &Value) -> Reply {
    post_text(worker, path, &body.to_string()).await
}

#[tokio::test]
async fn what_only_one_sample_may_have_is_refused_as_by_the_real_server() {
    let ordinary = ordinary().await;
    let two = |more: Value| {
        let mut body = json!({"text":["a","b"],"sampling_params":{"max_new_tokens":1,"n":2}});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let list = |name: &str| {
        format!(
            r#"{{"error":{{"message":"Cannot use list {name} with parallel_sample_num > 1"}}}}"#
        )
    };
    let integer = |what: &str| format!(r#"{{"error":"invalid type: {what}, expected i64"}}"#);
    for (body, status, text) in [
        (two(json!({"return_logprob":[true,false]})), 400, list("return_logprob")),
        (two(json!({"logprob_start_len":[0,1]})), 400, list("logprob_start_len")),
        (two(json!({"top_logprobs_num":[1,1]})), 400, list("top_logprobs_num")),
        (two(json!({"token_ids_logprob":[[1],[2]]})), 400, list("token_ids_logprob")),
        (
            two(json!({"sampling_params":[{"n":2},{"n":3}]})),
            400,
            r#"{"error":{"message":"The parallel_sample_num should be the same for all samples in sample params."}}"#.to_owned(),
        ),
        (
            two(json!({"rid":["a"]})),
            400,
            r#"{"error":{"message":"The specified rids length mismatch with the batch_size for batch processing."}}"#.to_owned(),
        ),
        (
            two(json!({"rid":["a","a"]})),
            400,
            r#"{"error":{"message":"Duplicate request IDs detected within the request: ['a']"}}"#.to_owned(),
        ),
        (two(json!({"sampling_params":{"n":2.0}})), 400, integer("floating point `2.0`")),
        (two(json!({"sampling_params":{"n":"2"}})), 400, integer(r#"string \"2\""#)),
        (two(json!({"sampling_params":{"n":null}})), 500, "Internal Server Error".to_owned()),
    ] {
        let reply = post(&ordinary, "/generate", &body).await;
        assert_eq!((reply.status, reply.text()), (status, text), "{body}");
    }
}

#[tokio::test]
async fn the_openai_endpoints_read_n_as_pydantic_does() {
    let ordinary = ordinary().await;
    let path = "/v1/completions";
    for (n, choices) in [
        (json!(2), 2),
        (json!(2.0), 2),
        (json!("2"), 2),
        (json!(true), 1),
        (json!(-1), 1),
    ] {
        let body = json!({"prompt":"a","max_tokens":1,"n":n});
        let reply = post(&ordinary, path, &body).await.json();
        assert_eq!(
            reply["choices"].as_array().map(Vec::len),
            Some(choices),
            "{n}"
        );
    }
    let zero = json!({"prompt":"a","max_tokens":1,"n":0});
    assert_eq!(
        post(&ordinary, path, &zero).await.text(),
        r#"{"object":"error","message":"range() arg 3 must not be zero","type":"BadRequest","param":null,"code":400}"#
    );
    for n in [json!(null), json!(1.5)] {
        let body = json!({"prompt":"a","max_tokens":1,"n":n});
        let reply = post(&ordinary, path, &body).await;
        assert_eq!(reply.status, 400);
        assert!(
            reply.text().contains("'loc': ('body', 'n')"),
            "{}",
            reply.text()
        );
    }
}

#[tokio::test]
async fn chats_finish_chunks_come_after_all_samples_and_have_the_last_ones_id() {
    let ordinary = ordinary().await;
    let body = json!({
        "messages":[{"role":"user","content":"count"}], "max_tokens":3, "n":3, "stream":true,
        "stream_options":{"include_usage":true},
    });
    let reply = post(&ordinary, "/v1/chat/completions", &body).await;
    let chunks: Vec<Value> = reply
        .events()
        .into_iter()
        .filter_map(|(_, data)| serde_json::from_str(&data).ok())
        .collect();
    let finishes = |chunk: &Value| chunk["choices"][0]["finish_reason"].is_string();
    let first = chunks.iter().position(finishes).unwrap();
    let (before, after) = chunks.split_at(first);
    assert_eq!(after.len(), 4, "three finish chunks and the usage");
    assert!(after[..3].iter().all(finishes));
    let mut indexes: Vec<_> = after[..3]
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["index"].as_u64())
        .collect();
    indexes.sort_unstable();
    assert_eq!(indexes, [0, 1, 2]);
    let latest = &before.last().unwrap()["id"];
    assert!(after.iter().all(|chunk| chunk["id"] == *latest));
    assert_eq!(after[3]["usage"]["completion_tokens"], 9);
}
