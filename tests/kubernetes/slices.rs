//! Workers from the EndpointSlices of services.

use serde_json::{Value, json};
use support::BODY;
use support::program::post_json;

use super::cluster::{Cluster, NAMESPACE, Pod, serve};

const FLAGS: &str = "--service-discovery-kind endpointslices --prefill-selector kubernetes.io/service-name=prefill \
                     --decode-selector kubernetes.io/service-name=decode";

fn endpoint(pod: &Pod) -> Value {
    json!({
        "addresses": [pod.worker.address().ip().to_string()],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "targetRef": {
            "kind": "Pod", "namespace": NAMESPACE,
            "name": pod.object["metadata"]["name"], "uid": pod.object["metadata"]["uid"],
        },
    })
}

/// A slice with one endpoint, because all pods have one address and differ by port.
fn slice(service: &str, pod: &Pod) -> Value {
    let mut ports =
        vec![json!({ "name": "http", "protocol": "TCP", "port": pod.worker.address().port() })];
    if let Some(port) = pod.worker.bootstrap_port() {
        ports.push(json!({ "name": "bootstrap", "protocol": "TCP", "port": port }));
    }
    let name = pod.object["metadata"]["name"].as_str().unwrap();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{name}"), "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4", "endpoints": [endpoint(pod)], "ports": ports,
    })
}

#[tokio::test]
async fn the_endpoints_of_two_services_are_workers_while_they_serve() {
    let mut cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    let changing = Pod::decode("d-1").await;
    cluster
        .api
        .put("endpointslices", slice("prefill", &prefill));
    cluster.api.put("endpointslices", slice("decode", &decode));
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    serve(address, &[&prefill, &decode]).await;
    let asked = cluster.api.asked("watch").await;
    assert_eq!(
        (asked.group.as_str(), asked.resource.as_str()),
        ("discovery.k8s.io", "endpointslices")
    );
    assert_eq!(post_json(address, "/generate", BODY).await.status(), 200);

    let whole = slice("decode", &changing);
    for conditions in [
        json!({ "ready": false, "serving": true, "terminating": true }),
        json!({ "ready": false, "serving": false, "terminating": false }),
    ] {
        cluster.api.put("endpointslices", whole.clone());
        serve(address, &[&prefill, &decode, &changing]).await;
        let mut changed = whole.clone();
        changed["endpoints"][0]["conditions"] = conditions;
        cluster.api.put("endpointslices", changed);
        serve(address, &[&prefill, &decode]).await;
    }
    cluster.api.put("endpointslices", whole.clone());
    serve(address, &[&prefill, &decode, &changing]).await;
    // The service selects nothing any more.
    let mut empty = whole.clone();
    empty["endpoints"] = Value::Null;
    cluster.api.put("endpointslices", empty);
    serve(address, &[&prefill, &decode]).await;
    cluster.api.delete("endpointslices", &whole);
    serve(address, &[&prefill, &decode]).await;
}

#[tokio::test]
async fn an_endpoint_that_moves_to_another_slice_goes_on_serving() {
    let cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    cluster
        .api
        .put("endpointslices", slice("prefill", &prefill));
    let mut old = slice("decode", &decode);
    cluster.api.put("endpointslices", old.clone());
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    serve(address, &[&prefill, &decode]).await;
    balancer.lines();
    let mut new = old.clone();
    new["metadata"]["name"] = json!("decode-new");
    cluster.api.put("endpointslices", new);
    old["endpoints"] = json!([]);
    cluster.api.put("endpointslices", old);
    let last = Pod::decode("d-1").await;
    cluster.api.put("endpointslices", slice("decode", &last));
    serve(address, &[&prefill, &decode, &last]).await;
    let lines = balancer.lines();
    let drains = lines
        .iter()
        .any(|line| line.contains("worker drains") && line.contains(&decode.url()));
    assert!(!drains, "{lines:#?}");
}
