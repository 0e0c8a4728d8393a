//! Administration requests that go to several workers: order, honest results, and what is rolled back.

use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::{Value, json};
use support::mock_worker::{GoneWorker, MockWorker, Seen, reply};
use support::soon;
use tokio::sync::Notify;

use crate::hyper_client::{JSON, balancer, request};

const DONE: &str = r#"{"success":true,"message":"done"}"#;
const NOT_DONE: &str = r#"{"success":false,"message":"no such file"}"#;

type Script = Arc<dyn Fn(&Seen) -> (u16, String) + Send + Sync>;

/// A worker with these responses.
async fn worker(script: impl Fn(&Seen) -> (u16, String) + Send + Sync + 'static) -> MockWorker {
    let script: Script = Arc::new(script);
    MockWorker::start(move |seen| {
        let (status, body) = script(&seen);
        async move { reply(status, JSON, body) }
    })
    .await
}

async fn doing(status: u16, body: &'static str) -> MockWorker {
    worker(move |_| (status, body.to_owned())).await
}

/// The paths and bodies that a worker has got.
fn calls(worker: &MockWorker) -> Vec<(String, Value)> {
    let seen = worker.seen().into_iter();
    let body = |seen: &Seen| serde_json::from_slice(&seen.body).unwrap_or(Value::Null);
    seen.map(|seen| (seen.target.clone(), body(&seen)))
        .collect()
}

#[tokio::test]
async fn a_pause_reaches_prefill_before_decode_and_so_does_its_end() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let noting = |role: &'static str| {
        let order = order.clone();
        move |seen: &Seen| {
            order.lock().unwrap().push((role, seen.target.clone()));
            (200, DONE.to_owned())
        }
    };
    let prefill = worker(noting("prefill")).await;
    let decode = worker(noting("decode")).await;
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    for path in ["/pause_generation", "/continue_generation"] {
        let answer = balancer.post(path, r#"{"mode":"in_place"}"#).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["message"].as_str()),
            (200, Some("done"))
        );
        let workers = answer.json()["workers"].clone();
        for (place, (role, url)) in [("prefill", &prefill.url), ("decode", &decode.url)]
            .iter()
            .enumerate()
        {
            let part = &workers[place];
            assert_eq!(
                (part["role"].as_str(), part["url"].as_str()),
                (Some(*role), Some(url.as_str()))
            );
            assert_eq!(
                (&part["status"], &part["done"]),
                (&json!(200), &json!(true))
            );
            assert_eq!(part["answer"]["message"], "done");
        }
    }
    let roles: Vec<_> = order
        .lock()
        .unwrap()
        .iter()
        .map(|(role, _)| *role)
        .collect();
    assert_eq!(roles, ["prefill", "decode", "prefill", "decode"]);
    assert_eq!(calls(&decode)[0].1, json!({"mode": "in_place"}));
}

#[tokio::test]
async fn a_pause_that_one_worker_refuses_is_taken_back_at_the_others() {
    let prefill = doing(200, DONE).await;
    let decode = doing(500, "broken").await;
    let refusing = balancer(&[&prefill.url], &[&decode.url]).await;
    let answer = refusing.post("/pause_generation", "{}").await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-mini-lb-error")),
        (500, "worker_refused")
    );
    let body = answer.json();
    assert_eq!(
        (&body["success"], &body["workers"][0]["rolled_back"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(body["workers"][1]["error"], "broken");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("1 of 2 workers") && message.contains("generation goes on"),
        "{message}"
    );
    let paths: Vec<_> = calls(&prefill).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/pause_generation", "/continue_generation"]);
    let metrics = refusing.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("mini_lb_paused 0"), "{metrics}");
}

#[tokio::test]
async fn decode_is_not_asked_to_pause_when_prefill_did_not() {
    let (prefill, decode) = (GoneWorker::bind(), doing(200, DONE).await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let answer = balancer.post("/pause_generation", "{}").await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-mini-lb-error")),
        (502, "worker_unreachable")
    );
    let second = answer.json()["workers"][1].clone();
    assert_eq!(
        (&second["done"], &second["status"]),
        (&json!(false), &Value::Null)
    );
    assert!(second["error"].as_str().unwrap().contains("not asked"));
    assert!(calls(&decode).is_empty());
}

#[tokio::test]
async fn a_pause_is_carried_out_when_its_client_has_left() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let prefill = {
        let (begun, go) = (begun.clone(), go.clone());
        MockWorker::start(move |_| {
            let (begun, go) = (begun.clone(), go.clone());
            async move {
                begun.notify_one();
                go.notified().await;
                reply(200, JSON, DONE)
            }
        })
        .await
    };
    let reached = Arc::new(Notify::new());
    let decode = {
        let reached = reached.clone();
        worker(move |_| {
            reached.notify_one();
            (200, DONE.to_owned())
        })
        .await
    };
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let mut client = balancer.connect().await;
    let pause = client.send_request(request("POST", "/pause_generation", "{}"));
    tokio::select! {
        _ = pause => panic!("prefill has not answered"),
        () = soon("the pause at prefill", begun.notified()) => {}
    }
    drop(client);
    go.notify_one();
    soon("the pause at decode", reached.notified()).await;
}

#[tokio::test]
async fn an_adapter_that_one_worker_cannot_load_is_unloaded_where_it_was() {
    let (prefill, decode) = (doing(200, DONE).await, doing(400, NOT_DONE).await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let body = r#"{"lora_name":"a","lora_path":"/a"}"#;
    let answer = balancer.post("/load_lora_adapter", body).await;
    assert_eq!(answer.status.as_u16(), 400);
    assert_eq!(
        answer.json()["workers"][1]["answer"]["message"],
        "no such file"
    );
    let unloaded = ("/unload_lora_adapter".to_owned(), json!({"lora_name": "a"}));
    assert_eq!(calls(&prefill)[1], unloaded);
    assert_eq!(calls(&decode).len(), 1);
}

#[tokio::test]
async fn weights_that_one_worker_did_not_take_are_reported_and_not_undone() {
    let (prefill, decode) = (doing(200, DONE).await, doing(400, NOT_DONE).await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let answer = balancer
        .post("/update_weights_from_disk", r#"{"model_path":"/m"}"#)
        .await;
    assert_eq!(answer.status.as_u16(), 400);
    let workers = answer.json()["workers"].clone();
    assert_eq!(
        (&workers[0]["done"], &workers[1]["done"]),
        (&json!(true), &json!(false))
    );
    assert!(workers[0]["rolled_back"].is_null());
    assert_eq!(calls(&prefill).len(), 1);
}

#[tokio::test]
async fn a_worker_that_says_no_with_status_200_is_no_success() {
    let (prefill, decode) = (doing(200, "[true]").await, doing(200, "[false]").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let answer = balancer.post("/set_internal_state", "{}").await;
    assert_eq!(answer.status.as_u16(), 502);
    let workers = answer.json()["workers"].clone();
    assert_eq!(
        (&workers[0]["done"], &workers[1]["done"]),
        (&json!(true), &json!(false))
    );
}

/// A worker with so many tensor-parallel ranks.
async fn ranks(tp_size: u64) -> MockWorker {
    worker(move |seen| match seen.target.as_str() {
        "/server_info" => (200, json!({"tp_size": tp_size}).to_string()),
        _ => (200, DONE.to_owned()),
    })
    .await
}

#[tokio::test]
async fn each_worker_joins_the_group_of_a_trainer_with_ranks_of_its_own() {
    let (prefill, one, two) = (ranks(2).await, ranks(4).await, ranks(1).await);
    let balancer = balancer(&[&prefill.url], &[&one.url, &two.url]).await;
    let body =
        r#"{"master_address":"t","master_port":1,"rank_offset":1,"world_size":8,"group_name":"g"}"#;
    let answer = balancer.post("/init_weights_update_group", body).await;
    assert_eq!(answer.status.as_u16(), 200);
    for (place, (worker, offset)) in [(&prefill, 1), (&one, 3), (&two, 7)]
        .into_iter()
        .enumerate()
    {
        assert_eq!(answer.json()["workers"][place]["rank_offset"], offset);
        let (path, sent) = calls(worker).pop().unwrap();
        assert_eq!(path, "/init_weights_update_group");
        assert_eq!(
            (&sent["rank_offset"], &sent["world_size"]),
            (&json!(offset), &json!(8))
        );
    }
    let small = r#"{"rank_offset":1,"world_size":3}"#;
    let answer = balancer.post("/init_weights_update_group", small).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-mini-lb-error")),
        (400, "invalid_option")
    );
    assert!(
        calls(&two)
            .iter()
            .filter(|(path, _)| path != "/server_info")
            .count()
            == 1
    );
}

#[tokio::test]
async fn a_query_narrows_a_broadcast_to_a_role_or_a_worker() {
    let (prefill, one, two) = (
        doing(200, "null").await,
        doing(200, "null").await,
        doing(200, "null").await,
    );
    let balancer = balancer(&[&prefill.url], &[&one.url, &two.url]).await;
    let answer = balancer
        .post("/slow_down?role=decode", r#"{"forward_sleep_time":1}"#)
        .await;
    assert_eq!(answer.json()["workers"].as_array().unwrap().len(), 2);
    let target: &'static str =
        Box::leak(format!("/freeze_gc?worker={}&a=b", two.url).into_boxed_str());
    assert_eq!(balancer.post(target, "").await.status.as_u16(), 200);
    let counts = [&prefill, &one, &two].map(|worker| worker.seen().len());
    assert_eq!(counts, [0, 1, 2]);
    assert_eq!(calls(&two)[1].0, "/freeze_gc?a=b");
    for target in [
        "/slow_down?role=both",
        "/freeze_gc?worker=http://127.0.0.1:1",
        // Of one worker only, and of all workers only.
        "/send_weights_to_remote_instance",
        "/pause_generation?role=decode",
    ] {
        let answer = balancer.post(target, "{}").await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("x-mini-lb-error")),
            (400, "bad_query"),
            "{target}"
        );
    }
}

#[tokio::test]
async fn a_request_with_get_reaches_the_workers_with_its_body() {
    let (prefill, decode) = (doing(200, "[1.0]").await, doing(200, "[1.0]").await);
    let balancer = balancer(&[&prefill.url], &[&decode.url]).await;
    let body: Full<Bytes> = Full::new(Bytes::from_static(br#"{"name":"w"}"#));
    let get = request("GET", "/get_weights_by_name", "").map(|_| body);
    let answer = balancer.send(get).await;
    assert_eq!(answer.json()["workers"][1]["answer"], json!([1.0]));
    assert_eq!(calls(&decode)[0].1, json!({"name": "w"}));
}
