//! Pods and slices as API servers write them.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn rules() -> Rules {
    Rules {
        port: 80,
        port_annotation: "mini-lb/port".to_owned(),
        bootstrap_port_annotation: "sglang.ai/bootstrap-port".to_owned(),
    }
}

fn pod(changes: serde_json::Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": "p-0", "namespace": "ai", "uid": "u-0", "annotations": {} },
        "status": {
            "phase": "Running",
            "podIP": "10.1.0.7",
            "conditions": [{ "type": "PodScheduled", "status": "True" }, { "type": "Ready", "status": "True" }],
        },
    });
    let changes = changes.as_object().unwrap().clone();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value;
    }
    serde_json::from_value(pod).unwrap()
}

fn place(text: &str, bootstrap_port: Option<u16>) -> Result<Place, Why> {
    let address: std::net::SocketAddr = text.parse().unwrap();
    Ok(Place {
        address: address.ip(),
        port: address.port(),
        bootstrap_port,
    })
}

#[test]
fn only_a_pod_that_is_ready_has_an_address_and_does_not_terminate_is_a_worker() {
    for (changes, expected) in [
        (json!({}), place("10.1.0.7:80", None)),
        (
            json!({ "/status/podIP": "fd00::7" }),
            place("[fd00::7]:80", None),
        ),
        (
            // Kubelet reports the pod as ready until its containers have ended.
            json!({ "/metadata/deletionTimestamp": "2026-01-01T00:00:30Z" }),
            Err(Why::Terminating),
        ),
        (
            json!({ "/status/conditions": [{ "type": "Ready", "status": "False" }] }),
            Err(Why::NotReady),
        ),
        (
            // Its node is lost.
            json!({ "/status/conditions": [{ "type": "Ready", "status": "Unknown" }] }),
            Err(Why::NotReady),
        ),
        (json!({ "/status/conditions": null }), Err(Why::NotReady)),
        (json!({ "/status/podIP": null }), Err(Why::NoAddress)),
        (json!({ "/status/podIP": "" }), Err(Why::NoAddress)),
    ] {
        let reading = of_pod(&pod(changes.clone()), &rules());
        assert_eq!(reading.state, expected, "{changes}");
        assert_eq!(
            (reading.name.as_str(), reading.uid.as_str()),
            ("ai/p-0", "u-0")
        );
    }
    let bare: Pod = serde_json::from_str(r#"{"metadata":{"name":"p"},"status":{}}"#).unwrap();
    assert_eq!(of_pod(&bare, &rules()).state, Err(Why::NoAddress));
}

#[test]
fn annotations_name_the_ports_of_a_pod_and_one_that_is_no_port_is_a_mistake() {
    let annotated = |annotations: serde_json::Value| {
        of_pod(
            &pod(json!({ "/metadata/annotations": annotations })),
            &rules(),
        )
        .state
    };
    for (annotations, expected) in [
        (
            json!({ "sglang.ai/bootstrap-port": "8998" }),
            place("10.1.0.7:80", Some(8998)),
        ),
        (
            json!({ "sglang.ai/bootstrap-port": " 1 ", "mini-lb/port": "30000" }),
            place("10.1.0.7:30000", Some(1)),
        ),
        (
            json!({ "vllm.ai/bootstrap-port": "x" }),
            place("10.1.0.7:80", None),
        ),
    ] {
        assert_eq!(annotated(annotations.clone()), expected, "{annotations}");
    }
    for wrong in ["", "0", "-1", "65536", "8998,8999", "port\n"] {
        for key in ["sglang.ai/bootstrap-port", "mini-lb/port"] {
            let why = annotated(json!({ key: wrong })).unwrap_err();
            assert!(why.is_mistake(), "{key} {wrong}");
            assert!(why.to_string().contains(key), "{why}");
            assert!(!why.to_string().contains('\n'), "{why}");
        }
    }
}

/// An event of a watch on EndpointSlices of a cluster of 2023, without `managedFields`.
/// Source: superedge, `TestWatchDecode` of its cache of watches, which was recorded from an API server.
const SLICE: &str = r#"{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"externalnode-proxy-l28pc",
"generateName":"externalnode-proxy-","namespace":"kube-system","uid":"19c23c9e-58c6-4676-ab46-ce85c96ce2d9",
"resourceVersion":"5493506153","generation":2,"creationTimestamp":"2023-11-06T08:58:24Z","labels":{
"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"externalnode-proxy"},
"annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"2023-11-06T08:58:42Z"}},"addressType":"IPv4",
"endpoints":[{"addresses":["172.24.0.7"],"conditions":{"ready":true,"serving":true,"terminating":false},"targetRef":{
"kind":"Pod","namespace":"kube-system","name":"externalnode-proxy-56c4d977d8-zxknh",
"uid":"4d8cffb5-5c4c-4604-9395-b4efe905ddf0"},"nodeName":"10.0.0.29","zone":"540001"}],
"ports":[{"name":"tcp-80","protocol":"TCP","port":80},{"name":"tcp-443","protocol":"TCP","port":443}]}"#;

fn slice(changes: serde_json::Value) -> Vec<Reading> {
    let mut slice: serde_json::Value = serde_json::from_str(SLICE).unwrap();
    for (pointer, value) in changes.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        slice.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    of_slice(&serde_json::from_value(slice).unwrap(), &rules())
}

#[test]
fn the_ports_of_a_slice_are_told_apart_by_their_names() {
    let only = |changes| slice(changes).pop().unwrap();
    let reading = only(json!({}));
    assert_eq!(
        reading.name,
        "kube-system/externalnode-proxy-56c4d977d8-zxknh"
    );
    let why = reading.state.unwrap_err().to_string();
    assert_eq!(
        why,
        "its service has the ports tcp-80, tcp-443: name the one of the API `http`"
    );
    for (ports, expected) in [
        (
            json!([{ "name": "http", "port": 30000 }, { "name": "metrics", "port": 1 }]),
            place("172.24.0.7:30000", None),
        ),
        (
            json!([{ "name": "bootstrap", "port": 8998 }, { "name": "api", "port": 30000 }]),
            place("172.24.0.7:30000", Some(8998)),
        ),
        (
            json!([{ "name": "", "port": 30000 }]),
            place("172.24.0.7:30000", None),
        ),
        (json!([{ "port": 30000 }]), place("172.24.0.7:30000", None)),
        (
            json!([{ "name": "", "port": null }]),
            place("172.24.0.7:80", None),
        ),
        (json!([]), place("172.24.0.7:80", None)),
        (json!(null), place("172.24.0.7:80", None)),
    ] {
        let reading = only(json!({ "/ports": ports }));
        assert_eq!(reading.state, expected, "{ports}");
    }
}

#[test]
fn an_endpoint_that_is_not_ready_not_serving_or_terminating_is_no_worker() {
    let state = |conditions: serde_json::Value| {
        let changes =
            json!({ "/endpoints/0/conditions": conditions, "/ports": [{ "port": 30000 }] });
        slice(changes).pop().unwrap().state
    };
    let serves = place("172.24.0.7:30000", None);
    for (conditions, expected) in [
        (json!({}), serves.clone()),
        (json!({ "ready": null }), serves.clone()),
        (
            json!({ "ready": true, "serving": true, "terminating": false }),
            serves,
        ),
        (
            json!({ "ready": false, "serving": false, "terminating": false }),
            Err(Why::NotReady),
        ),
        // publishNotReadyAddresses.
        (
            json!({ "ready": true, "serving": false }),
            Err(Why::NotReady),
        ),
        (
            json!({ "ready": false, "serving": true, "terminating": true }),
            Err(Why::Terminating),
        ),
        (
            json!({ "ready": true, "serving": true, "terminating": true }),
            Err(Why::Terminating),
        ),
    ] {
        assert_eq!(state(conditions.clone()), expected, "{conditions}");
    }
    assert_eq!(slice(json!({ "/endpoints": null })), []);
    let named = slice(json!({ "/endpoints/0/addresses": ["a.example"], "/ports": [] }));
    assert_eq!(named[0].state, Err(Why::NoAddress));
}

#[test]
fn an_object_that_the_selectors_of_both_roles_match_is_a_mistake() {
    let labels: BTreeMap<_, _> = [("app", "sglang"), ("role", "decode"), ("empty", "")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let state = |others: &[&str]| {
        let readings = vec![of_pod(&pod(json!({})), &rules())];
        of_one_role(readings, Some(&labels), others).remove(0).state
    };
    for fine in [
        &[][..],
        &["app=sglang,role=prefill"],
        &["app=nginx"],
        &["role=deco"],
        &["none="],
    ] {
        assert!(state(fine).is_ok(), "{fine:?}");
    }
    for both in [&["app=sglang"][..], &["x=y", "role=decode"], &["empty="]] {
        let why = state(both).unwrap_err();
        assert!(why.is_mistake(), "{both:?}");
        assert!(why.to_string().contains("of the other role"), "{why}");
    }
}
