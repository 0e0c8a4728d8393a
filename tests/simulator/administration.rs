//! Administration of simulated workers: the answers of SGLang 0.5.23 on the CPU, and what a pause does to requests.

use std::time::Duration;

use mini_lb::sim::journal::RoomState;
use mini_lb::sim::{SimOptions, Worker};
use serde_json::{Value, json};
use support::sim::{Reply, SimPair, get, open_post, post, post_text, quick};
use tokio::io::AsyncReadExt;

use crate::rendezvous::{generate, wait_for_state};

/// The status and the JSON of a POST.
async fn told(worker: &Worker, path: &str, body: Value) -> (u16, Value) {
    let reply = post(worker, path, &body).await;
    (reply.status, reply.json())
}

#[tokio::test]
async fn a_worker_answers_administration_as_sglang_does() {
    let worker = Worker::start_decode(quick()).await.unwrap();
    let no_lora = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA.";
    let no_lora = json!({"rid":null,"http_worker_ipc":null,"success":false,"error_message":no_lora,"loaded_adapters":null});
    for (path, body, status, answer) in [
        (
            "/pause_generation",
            json!({"mode":"in_place"}),
            200,
            json!({"message":"Generation paused successfully.","status":"ok"}),
        ),
        (
            "/continue_generation",
            json!({}),
            200,
            json!({"message":"Generation continued successfully.","status":"ok"}),
        ),
        (
            "/update_weights_from_disk",
            json!({"model_path":"/m"}),
            200,
            json!({"success":true,"message":"Succeeded to update model weights.","num_paused_requests":0}),
        ),
        (
            "/update_weight_version",
            json!({"new_version":"v2"}),
            200,
            json!({"success":true,"message":"Weight version updated to v2","new_version":"v2"}),
        ),
        (
            "/load_lora_adapter",
            json!({"lora_name":"a","lora_path":"/a"}),
            400,
            no_lora.clone(),
        ),
        (
            "/unload_lora_adapter",
            json!({"lora_name":"a"}),
            400,
            no_lora,
        ),
        (
            "/set_internal_state",
            json!({"server_args":{"pp_max_micro_batch_size":8}}),
            200,
            json!([true]),
        ),
        (
            "/set_internal_state",
            json!({"server_args":{"nope":8}}),
            200,
            json!([false]),
        ),
        (
            "/slow_down",
            json!({"forward_sleep_time":null}),
            200,
            Value::Null,
        ),
    ] {
        assert_eq!(told(&worker, path, body).await, (status, answer), "{path}");
    }
    assert_eq!(
        post_text(&worker, "/pause_generation", "").await.status,
        400
    );
    assert_eq!(
        told(&worker, "/pause_generation", json!({"mode":"x"}))
            .await
            .0,
        400
    );
    assert_eq!(get(&worker, "/ready").await.status, 200);
}

#[tokio::test]
async fn no_worker_with_a_role_stores_responses() {
    let worker = Worker::start_decode(quick()).await.unwrap();
    let body = |param: &str| json!({"input":"a",param:if param == "background" { json!(true) } else { json!("resp_1") }});
    let asked = [
        (get(&worker, "/v1/responses/resp_1").await, "response_id"),
        (
            post_text(&worker, "/v1/responses/resp_1/cancel", "").await,
            "response_id",
        ),
        (
            post(&worker, "/v1/responses", &body("background")).await,
            "background",
        ),
        (
            post(&worker, "/v1/responses", &body("previous_response_id")).await,
            "previous_response_id",
        ),
    ];
    for (reply, param) in asked {
        let error = &reply.json()["error"];
        assert_eq!((reply.status, error["param"].as_str()), (400, Some(param)));
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .starts_with("Response store is disabled.")
        );
    }
}

#[tokio::test]
async fn a_pause_in_place_holds_live_and_new_requests_until_the_worker_continues() {
    let options = SimOptions {
        time_per_output_token: Duration::from_millis(1),
        ..quick()
    };
    let pair = SimPair::start(options).await;
    let body = pair.with_room(&generate(1000), 7);
    let prefill = open_post(&pair.prefill, "/generate", &body).await;
    let mut decode = open_post(&pair.decode, "/generate", &body).await;
    wait_for_state(&pair.prefill, RoomState::Success).await;
    for worker in [&pair.prefill, &pair.decode] {
        assert_eq!(
            told(worker, "/pause_generation", json!({"mode":"in_place"}))
                .await
                .0,
            200
        );
        assert_eq!(get(worker, "/ready").await.status, 503);
    }
    let late = pair.with_room(&generate(2), 8);
    let mut late = open_post(&pair.decode, "/generate", &late).await;
    let mut byte = [0; 1];
    for held in [&mut decode, &mut late] {
        let silence = tokio::time::timeout(Duration::from_millis(100), held.read(&mut byte));
        assert!(silence.await.is_err(), "an answer of a paused worker");
    }
    drop(late);
    for worker in [&pair.prefill, &pair.decode] {
        assert_eq!(told(worker, "/continue_generation", json!({})).await.0, 200);
    }
    let mut raw = vec![0; 9];
    decode.read_exact(&mut raw).await.unwrap();
    assert_eq!(raw, b"HTTP/1.1 ");
    drop(prefill);
}

#[tokio::test]
async fn a_pause_aborts_what_is_live_unless_it_says_otherwise() {
    let slow = SimOptions {
        time_per_output_token: Duration::from_secs(60),
        ..quick()
    };
    let pair = SimPair::start(slow).await;
    let body = pair.with_room(&generate(1000), 9);
    let pausing = async {
        wait_for_state(&pair.prefill, RoomState::Success).await;
        told(&pair.decode, "/pause_generation", json!({})).await
    };
    let (_, decode, paused) = tokio::join!(
        post(&pair.prefill, "/generate", &body),
        post(&pair.decode, "/generate", &body),
        pausing,
    );
    assert_eq!(paused.0, 200);
    let decode: Reply = decode;
    assert_eq!(decode.status, 200);
    assert_eq!(decode.json()["meta_info"]["finish_reason"]["type"], "abort");
}
