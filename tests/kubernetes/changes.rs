//! What becomes of the objects: pods that come, get ready, get unready, terminate, lose their address or change labels.

use std::sync::Arc;

use serde_json::{Value, json};
use support::mock_worker::{MockWorker, reply};
use support::program::{get, post_json};
use support::{BODY, Client, post};
use tokio::sync::Semaphore;

use super::cluster::{Cluster, FLAGS, Pod, pod, serve};

#[tokio::test]
async fn requests_go_to_the_pods_that_the_selectors_match() {
    let cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    let mut other = Pod::decode("other").await;
    other.object["metadata"]["labels"]["app"] = json!("nginx");
    let mut elsewhere = Pod::decode("elsewhere").await;
    elsewhere.object["metadata"]["namespace"] = json!("default");
    for pod in [&prefill, &decode, &other, &elsewhere] {
        cluster.api.put("pods", pod.object.clone());
    }
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    serve(address, &[&prefill, &decode]).await;
    assert_eq!(get(address, "/readiness").await.status(), 200);
    let answer = post_json(address, "/generate", BODY).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
}

#[tokio::test]
async fn a_pod_is_a_worker_while_it_is_ready_has_an_address_and_does_not_terminate() {
    let cluster = Cluster::start().await;
    let (prefill, steady) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    let mut changing = Pod::decode("d-1").await;
    for pod in [&prefill, &steady] {
        cluster.api.put("pods", pod.object.clone());
    }
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    serve(address, &[&prefill, &steady]).await;

    let ip = changing.object["status"]["podIP"].take();
    changing.set_ready("False");
    cluster.api.put("pods", changing.object.clone());
    changing.object["status"]["podIP"] = ip.clone();
    cluster.api.put("pods", changing.object.clone());
    changing.set_ready("True");
    cluster.api.put("pods", changing.object.clone());
    serve(address, &[&prefill, &steady, &changing]).await;

    let back = changing.object.clone();
    let mut unready = back.clone();
    unready["status"]["conditions"][0]["status"] = json!("False");
    let mut lost = back.clone();
    lost["status"]["podIP"] = Value::Null;
    let mut relabelled = back.clone();
    relabelled["metadata"]["labels"]["role"] = json!("debug");
    let mut terminating = back.clone();
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T01:00:30Z");
    for (gone, why) in [
        (unready, "it is not ready"),
        (lost, "it has no address"),
        (relabelled, "its labels match no longer"),
        (terminating, "it terminates"),
    ] {
        cluster.api.put("pods", gone);
        let line = balancer.line("pod is no worker any more").await;
        assert!(
            line.contains("role=decode pod=ai/d-1") && line.contains(why),
            "{line}"
        );
        serve(address, &[&prefill, &steady]).await;
        cluster.api.put("pods", back.clone());
        serve(address, &[&prefill, &steady, &changing]).await;
    }
    cluster.api.delete("pods", &changing.object);
    let line = balancer.line("pod is no worker any more").await;
    assert!(line.contains("it is deleted"), "{line}");
    serve(address, &[&prefill, &steady]).await;
}

/// A worker that serves `/health` and `/model_info`, and generates when the test lets it.
async fn held() -> (MockWorker, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let of_worker = gate.clone();
    let worker = MockWorker::start(move |seen| {
        let gate = of_worker.clone();
        async move {
            if seen.target == "/generate" {
                gate.acquire().await.unwrap().forget();
            }
            reply(200, "application/json", r#"{"text":"held"}"#)
        }
    })
    .await;
    (worker, gate)
}

#[tokio::test]
async fn a_pod_that_terminates_ends_the_request_that_it_has_and_gets_no_other() {
    let cluster = Cluster::start().await;
    let ready = || reply(200, "application/json", r#"{"text":"a"}"#);
    let prefill = MockWorker::start(move |_| async move { ready() }).await;
    let (old, gate) = held().await;
    let object = |name: &str, role: &str, url: &str| {
        pod(
            name,
            role,
            url.trim_start_matches("http://").parse().unwrap(),
            None,
        )
    };
    let mut terminating = object("d-0", "decode", &old.url);
    cluster
        .api
        .put("pods", object("p-0", "prefill", &prefill.url));
    cluster.api.put("pods", terminating.clone());
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    let is_ready = async { while get(address, "/readiness").await.status() != 200 {} };
    support::soon("both serve", is_ready).await;

    let mut client = Client::connect(address).await;
    client.send(post("/generate", BODY)).await;
    let generates = |worker: &MockWorker| {
        let seen = worker.seen();
        seen.iter()
            .filter(|seen| seen.target == "/generate")
            .count()
    };
    while generates(&old) == 0 {
        tokio::task::yield_now().await;
    }
    let new = MockWorker::start(move |_| async move { ready() }).await;
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T01:00:30Z");
    cluster.api.put("pods", terminating);
    balancer.line("pod is no worker any more").await;
    cluster.api.put("pods", object("d-1", "decode", &new.url));
    let answer = async {
        loop {
            let answer = post_json(address, "/generate", BODY).await;
            if answer.status() == 200 {
                return answer;
            }
        }
    };
    let answer = support::soon("the new pod serves", answer).await;
    assert_eq!(answer.json()["text"], "a");
    assert_eq!(generates(&old), 1);
    gate.add_permits(1);
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.json()["text"].as_str()),
        (200, Some("held"))
    );
}

#[tokio::test]
async fn a_pod_whose_label_moves_to_the_other_role_serves_there() {
    let cluster = Cluster::start().await;
    let ready = || reply(200, "application/json", r#"{"text":"a"}"#);
    let mut objects = Vec::new();
    for (name, role) in [("p-0", "prefill"), ("d-0", "decode"), ("x-0", "prefill")] {
        let worker = MockWorker::start(move |_| async move { ready() }).await;
        let address = worker.url.trim_start_matches("http://").parse().unwrap();
        objects.push(pod(name, role, address, None));
        cluster.api.put("pods", objects.last().unwrap().clone());
    }
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    let port = objects[2]["metadata"]["annotations"]["mini-lb/port"].clone();
    let worker = format!("worker=\"http://127.0.0.1:{}\"}} 1", port.as_str().unwrap());
    let has_role = async |role: &str| {
        let line = format!("mini_lb_worker_up{{role=\"{role}\",{worker}");
        let has_role = async { while !get(address, "/metrics").await.text().contains(&line) {} };
        support::soon(&line, has_role).await;
    };
    for role in ["prefill", "decode", "prefill"] {
        objects[2]["metadata"]["labels"]["role"] = json!(role);
        cluster.api.put("pods", objects[2].clone());
        has_role(role).await;
    }
}

#[tokio::test]
async fn a_port_that_is_none_is_said_once_and_its_pod_serves_when_it_is_mended() {
    let cluster = Cluster::start().await;
    let (mut prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    let port = std::mem::replace(
        &mut prefill.object["metadata"]["annotations"]["sglang.ai/bootstrap-port"],
        json!("eighty"),
    );
    cluster.api.put("pods", prefill.object.clone());
    cluster.api.put("pods", decode.object.clone());
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    let line = balancer.line("pod cannot be a worker").await;
    assert!(
        line.contains("role=prefill pod=ai/p-0")
            && line.contains("sglang.ai/bootstrap-port is `eighty`, which is not a port"),
        "{line}"
    );
    serve(address, &[&decode]).await;
    prefill.object["metadata"]["labels"]["x"] = json!("y");
    cluster.api.put("pods", prefill.object.clone());
    prefill.object["metadata"]["annotations"]["sglang.ai/bootstrap-port"] = port;
    cluster.api.put("pods", prefill.object.clone());
    serve(address, &[&prefill, &decode]).await;
    let again = balancer.lines();
    assert!(
        !again.iter().any(|line| line.contains("cannot be a worker")),
        "{again:?}"
    );
}
