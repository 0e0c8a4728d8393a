//! The simulated vLLM worker's HTTP: its ids, its errors, and which paths it has.

use std::time::Duration;

use mini_lb::sim::{Event, SimOptions, Worker};
use serde_json::json;
use support::sim::{Reply, VllmPair, get, post, post_text, quick_vllm, wait_for};

use crate::vllm::{CHAT, COMPLETIONS, PROMPT, completion, legs, with_vllm};

#[tokio::test]
async fn a_request_id_names_the_response_and_may_serve_both_legs() {
    let pair = VllmPair::start(quick_vllm()).await;
    let headers = "content-type: application/json\r\nx-request-id: mine\r\n";
    let body = VllmPair::prefill_body(COMPLETIONS, &completion(PROMPT)).to_string();
    let raw = support::sim::send(pair.prefill.address(), "POST", COMPLETIONS, headers, &body).await;
    let reply = Reply::parse(&raw).json();
    assert_eq!(reply["id"], "cmpl-mine");
    let id = reply["kv_transfer_params"]["remote_request_id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        id.starts_with("cmpl-mine-0-") && id.len() == "cmpl-mine-0-".len() + 8,
        "{id}"
    );
    let raw = support::sim::send(
        pair.prefill.address(),
        "POST",
        COMPLETIONS,
        "content-type: application/json\r\nx-data-parallel-rank: 1\r\n",
        &body,
    )
    .await;
    let refused = Reply::parse(&raw);
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.json()["error"]["message"],
        "data_parallel_rank 1 is out of range [0, 1)."
    );
}

#[tokio::test]
async fn errors_have_vllms_words() {
    let worker = Worker::start_prefill(quick_vllm()).await.unwrap();
    let table = [
        (
            json!({"prompt":"a","max_tokens":1,"min_tokens":5}),
            "BadRequestError",
            "min_tokens must be less than or equal to max_tokens=1, got 5.",
        ),
        (
            json!({"prompt":"a","stream_options":{"include_usage":true}}),
            "BadRequestError",
            "Stream options can only be defined when `stream=True`.",
        ),
        (
            json!({"prompt":""}),
            "BadRequestError",
            "Either prompt or prompt_embeds must be provided and non-empty.",
        ),
        (
            json!({"prompt":[]}),
            "BadRequestError",
            "You must pass at least one prompt",
        ),
        (
            json!({"prompt":"a","max_tokens":5000}),
            "BadRequestError",
            "max_tokens=5000 cannot be greater than max_model_len=2048.",
        ),
        (
            json!({"prompt":"a","temperature":"hot"}),
            "Bad Request",
            "1 validation error:\n  {'type': 'float_parsing', 'loc': 'body.temperature'",
        ),
    ];
    for (body, kind, message) in table {
        let reply = post(&worker, COMPLETIONS, &body).await;
        let error = reply.json()["error"].clone();
        assert_eq!(
            (reply.status, &error["type"]),
            (400, &json!(kind)),
            "{body}"
        );
        assert!(
            error["message"].as_str().unwrap().starts_with(message),
            "{error}"
        );
    }
    let raw = support::sim::send(
        worker.address(),
        "POST",
        CHAT,
        "content-type: text/plain\r\n",
        "{}",
    )
    .await;
    let reply = Reply::parse(&raw).json();
    assert_eq!(
        reply["error"]["message"],
        "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    );
}

#[tokio::test]
async fn paths_are_there_by_their_options() {
    let plain = Worker::start_decode(with_vllm(|vllm| vllm.scale_out = false))
        .await
        .unwrap();
    assert_eq!(
        post(&plain, "/inference/v1/generate", &json!({}))
            .await
            .status,
        403
    );
    assert_eq!(get(&plain, "/server_info").await.status, 404);
    assert_eq!(get(&plain, "/get_model_info").await.status, 404);
    let developed = Worker::start_decode(with_vllm(|vllm| vllm.dev_mode = true))
        .await
        .unwrap();
    let info = get(&developed, "/server_info").await.json();
    assert_eq!(
        info["vllm_config"]["kv_transfer_config"]["kv_role"],
        "kv_consumer"
    );
    let paused = |value: bool| json!({"is_paused":value});
    assert_eq!(
        post(&developed, "/pause", &json!({})).await.json(),
        json!({"status":"paused"})
    );
    assert_eq!(get(&developed, "/is_paused").await.json(), paused(true));
    assert_eq!(
        post(&developed, "/resume", &json!({})).await.json(),
        json!({"status":"resumed"})
    );
    assert_eq!(get(&developed, "/is_paused").await.json(), paused(false));
    assert_eq!(
        post(&developed, COMPLETIONS, &completion("a")).await.status,
        200
    );
    let keyed = SimOptions {
        api_key: Some("secret".to_owned()),
        ..quick_vllm()
    };
    let keyed = Worker::start_decode(keyed).await.unwrap();
    assert_eq!(get(&keyed, "/v1/models").await.status, 401);
    assert_eq!(get(&keyed, "/version").await.status, 200);
}

#[tokio::test]
async fn a_request_is_aborted_by_the_id_of_its_response() {
    let options = SimOptions {
        time_per_output_token: Duration::from_millis(10),
        ..quick_vllm()
    };
    let worker = Worker::start_decode(options).await.unwrap();
    let mut body = completion(PROMPT);
    body["max_tokens"] = json!(2000);
    body["ignore_eos"] = json!(true);
    body["request_id"] = json!("mine");
    let waiting = post(&worker, COMPLETIONS, &body);
    let aborting = async {
        wait_for(&worker, |event| matches!(event, Event::RequestBody { .. })).await;
        let ids = json!({"request_ids":["cmpl-mine"]});
        loop {
            assert_eq!(
                post(&worker, "/inference/v1/abort_requests", &ids)
                    .await
                    .status,
                200
            );
            let seen = worker.journal().entries();
            if seen
                .iter()
                .any(|entry| matches!(entry.event, Event::AbortByRid { .. }))
            {
                return;
            }
        }
    };
    let (reply, ()) = tokio::join!(waiting, aborting);
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "abort");
}

#[tokio::test]
async fn scripted_errors_have_vllms_shape() {
    let worker = Worker::start_decode(quick_vllm()).await.unwrap();
    let script = r#"{"rules":[{"match":{"times":1},"do":{"status":{"code":503}}},{"do":{"error_event":{"events":1}}}]}"#;
    assert_eq!(post_text(&worker, "/sim/chaos", script).await.status, 200);
    let reply = post(&worker, COMPLETIONS, &completion(PROMPT)).await;
    let error = json!({"message":"scripted fault","type":"503","param":null,"code":503});
    assert_eq!((reply.status, reply.json()), (503, json!({"error":error})));
    let mut streamed = completion(PROMPT);
    streamed["stream"] = json!(true);
    let events = post(&worker, COMPLETIONS, &streamed).await.events();
    let last: Vec<&str> = events[1..].iter().map(|(_, data)| data.as_str()).collect();
    let error = r#"{"error": {"message": "scripted fault", "type": "InternalServerError", "param": null, "code": 500}}"#;
    assert_eq!(last, [error, "[DONE]"]);
    let script = r#"{"rules":[{"do":"out_of_memory"}]}"#;
    assert_eq!(post_text(&worker, "/sim/chaos", script).await.status, 200);
    let dying = post(&worker, COMPLETIONS, &completion(PROMPT)).await;
    let kind = dying.json()["error"]["type"].clone();
    assert_eq!((dying.status, kind), (500, json!("InternalServerError")));
}

#[tokio::test]
async fn params_name_the_last_sample_or_the_first_prompt() {
    let pair = VllmPair::start(quick_vllm()).await;
    let mut samples = VllmPair::prefill_body(
        CHAT,
        &json!({"messages":[{"role":"user","content":PROMPT}]}),
    );
    samples["n"] = json!(2);
    let prompts = VllmPair::prefill_body(COMPLETIONS, &json!({"prompt":["a b","c d"]}));
    for (path, body, wanted) in [
        (CHAT, samples, "1_chatcmpl-"),
        (COMPLETIONS, prompts, "cmpl-"),
    ] {
        let given = post(&pair.prefill, path, &body).await.json();
        let id = given["kv_transfer_params"]["remote_request_id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(id.starts_with(wanted), "{id}");
        assert!(path == CHAT || id.contains("-0-"), "{id}");
    }
    // The others' blocks are held as well, and no params name them.
    assert_eq!(pair.prefill.journal().open_leases(), 4);
}

#[tokio::test]
async fn a_prompt_that_ends_at_its_first_token_has_params_all_the_same() {
    let pair = VllmPair::start(quick_vllm()).await;
    let body = json!({"token_ids":[5,12,19],"sampling_params":{"max_tokens":4,"temperature":0}});
    let path = "/inference/v1/generate";
    let first = post(&pair.decode, path, &body).await.json();
    let token = first["choices"][0]["token_ids"][0].clone();
    let mut stopped = VllmPair::prefill_body(path, &body);
    stopped["sampling_params"]["stop_token_ids"] = json!([token]);
    let given = post(&pair.prefill, path, &stopped).await.json();
    let choice = &given["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &token)
    );
    assert_eq!(
        given["kv_transfer_params"]["do_remote_prefill"],
        json!(true)
    );
}

#[tokio::test]
async fn a_failed_load_ends_each_stream_as_vllm_does() {
    let pair = VllmPair::start(quick_vllm()).await;
    let messages = json!([{"role":"user","content":PROMPT}]);
    let error = r#"{"error": {"message": "Internal server error", "type": "InternalServerError", "param": null, "code": 500}}"#;
    for (path, body) in [
        (COMPLETIONS, completion(PROMPT)),
        (
            "/inference/v1/generate",
            json!({"token_ids":[5],"sampling_params":{"max_tokens":4}}),
        ),
        (
            "/v1/messages",
            json!({"model":"sim","messages":messages,"max_tokens":4}),
        ),
        (
            "/v1/responses",
            json!({"input":PROMPT,"max_output_tokens":4}),
        ),
    ] {
        let (_, mut second) = legs(&pair, path, &body).await;
        second["kv_transfer_params"]["remote_engine_id"] = json!("another");
        let whole = post(&pair.decode, path, &second).await;
        assert_eq!(whole.status, 500, "{path} {}", whole.text());
        second["stream"] = json!(true);
        let (head, text) = ("content-type: application/json\r\n", second.to_string());
        let raw = support::sim::send(pair.decode.address(), "POST", path, head, &text).await;
        let reply = Reply::parse(&raw);
        let events = reply.events();
        let names: Vec<&str> = events
            .iter()
            .filter_map(|(name, _)| name.as_deref())
            .collect();
        match path {
            "/v1/messages" => assert_eq!(names, ["message_start", "error"]),
            "/v1/responses" => assert_eq!(names, ["response.created", "response.in_progress"]),
            _ => assert_eq!(
                events,
                [(None, error.to_owned()), (None, "[DONE]".to_owned())]
            ),
        }
        // Only the stream of responses is cut.
        assert_eq!(
            raw.ends_with(b"0\r\n\r\n"),
            path != "/v1/responses",
            "{path}"
        );
    }
}
