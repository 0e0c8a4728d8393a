//! The way to the API server: it is away, the token changes, a right is missing, a selector matches nothing.

use support::BODY;
use support::program::{get, post_json};

use super::cluster::{Cluster, FLAGS, Pod, serve};

#[tokio::test]
async fn an_api_server_that_is_away_at_the_start_is_said_once_and_waited_for() {
    let cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    for pod in [&prefill, &decode] {
        cluster.api.put("pods", pod.object.clone());
    }
    cluster.api.set_away(true);
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    let line = balancer.line("Kubernetes cannot be read").await;
    assert!(
        line.contains("WARN")
            && line.contains("why=")
            && line.contains("what_to_do=\"check the address"),
        "{line}"
    );
    assert_eq!(get(address, "/readiness").await.status(), 503);
    assert_eq!(post_json(address, "/generate", BODY).await.status(), 503);
    cluster.api.set_away(false);
    balancer.line("Kubernetes is read again").await;
    serve(address, &[&prefill, &decode]).await;
    assert_eq!(get(address, "/readiness").await.status(), 200);
    let lines = balancer.lines();
    let again = lines.iter().any(|line| line.contains("cannot be read"));
    assert!(!again, "{lines:#?}");
}

#[tokio::test]
async fn the_workers_that_are_known_stay_while_the_api_server_is_away() {
    let mut cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    for pod in [&prefill, &decode] {
        cluster.api.put("pods", pod.object.clone());
    }
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    serve(address, &[&prefill, &decode]).await;
    cluster.api.set_away(true);
    balancer
        .line("Kubernetes cannot be read, the workers that are known stay")
        .await;
    for _ in 0..2 {
        cluster.api.asked("watch").await;
    }
    serve(address, &[&prefill, &decode]).await;
    assert_eq!(post_json(address, "/generate", BODY).await.status(), 200);
    let new = Pod::decode("d-1").await;
    cluster.api.put("pods", new.object.clone());
    cluster.api.set_away(false);
    serve(address, &[&prefill, &decode, &new]).await;
}

#[tokio::test]
async fn a_token_that_has_changed_is_read_again_at_once() {
    let mut cluster = Cluster::start().await;
    let (prefill, decode) = (Pod::prefill("p-0").await, Pod::decode("d-0").await);
    cluster.api.put("pods", prefill.object.clone());
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    serve(address, &[&prefill]).await;
    // The old one is good no longer, and the file has it still.
    cluster.api.set_token("second");
    cluster.api.break_watches();
    let line = balancer.line("Kubernetes cannot be read").await;
    assert!(line.contains("401 Unauthorized"), "{line}");
    assert!(
        !line.contains("first") && !line.contains("second"),
        "{line}"
    );
    cluster.write_token("second");
    loop {
        // A list, because a watch of an old client could not know it.
        let list = cluster.api.asked("list").await;
        if list.token == "second" {
            break;
        }
    }
    balancer.line("Kubernetes is read again").await;
    cluster.api.put("pods", decode.object.clone());
    serve(address, &[&prefill, &decode]).await;
}

#[tokio::test]
async fn a_missing_right_is_said_with_its_verb_and_resource() {
    for (verb, kind, resource) in [
        ("list", "pods", "pods"),
        ("watch", "pods", "pods"),
        ("list", "endpointslices", "endpointslices"),
    ] {
        let cluster = Cluster::start().await;
        cluster.api.deny(verb, resource);
        let mut balancer = cluster.balancer(&format!("{FLAGS} --service-discovery-kind {kind}"));
        let line = balancer.line("Kubernetes cannot be read").await;
        assert!(
            line.contains(&format!("verb={verb} resource={resource}")),
            "{line}"
        );
        assert!(line.contains("in the namespace 'ai'"), "{line}");
        assert!(line.contains("deploy/kubernetes/rbac.yaml"), "{line}");
        cluster.api.allow();
        balancer.line("Kubernetes is read again").await;
    }
}

#[tokio::test]
async fn a_selector_that_matches_nothing_is_said_once_with_what_to_do() {
    let mut cluster = Cluster::start().await;
    let decode = Pod::decode("d-0").await;
    cluster.api.put("pods", decode.object.clone());
    let mut balancer = cluster.balancer(FLAGS);
    let address = balancer.address().await;
    let line = balancer.line("selector matches nothing").await;
    assert!(
        line.contains("role=prefill kind=pods namespace=ai selector=\"app=sglang,role=prefill\""),
        "{line}"
    );
    assert!(
        line.contains("kubectl get pods -n ai --show-labels"),
        "{line}"
    );
    serve(address, &[&decode]).await;
    // Both are listed anew.
    cluster.api.expire_watches();
    for _ in 0..2 {
        cluster.api.asked("watch").await;
    }
    let prefill = Pod::prefill("p-0").await;
    cluster.api.put("pods", prefill.object.clone());
    let line = balancer.line("selector").await;
    assert!(
        line.contains("selector matches again role=prefill"),
        "{line}"
    );
    serve(address, &[&prefill, &decode]).await;
}

#[tokio::test]
async fn a_kubeconfig_that_is_missing_is_said_and_read_when_it_is_there() {
    let directory = tempfile::TempDir::new().unwrap();
    let missing = directory.path().join("config");
    let arguments = format!(
        "--host 127.0.0.1 --port 0 --service-discovery --service-discovery-kubeconfig {} {FLAGS}",
        missing.display()
    );
    let arguments: Vec<_> = arguments.split_whitespace().collect();
    let mut balancer = support::mini_lb!(&arguments);
    let line = balancer.line("Kubernetes cannot be read").await;
    assert!(line.contains(&missing.display().to_string()), "{line}");
    assert!(line.contains("service_discovery_kubeconfig"), "{line}");
}
