//! `Handle::reload`: the program that a balancer is in gives it another configuration.

use std::error::Error;

use mini_lb::{Handle, MiniLbConfig, MiniLoadBalancer, ReloadError, StartError};
use serde_json::json;
use support::mock_worker::{MockWorker, reply};
use support::program::{get, post_json};
use support::{BODY, soon};
use tokio::task::JoinHandle;

async fn worker() -> String {
    let worker = MockWorker::start(|_| async { reply(200, "application/json", "{}") }).await;
    worker.url
}

fn config(prefill: &str, decodes: &[&String]) -> MiniLbConfig {
    let decodes = decodes.iter().map(|url| (*url).clone()).collect();
    let prefill = vec![(prefill.to_owned(), Some(8998))];
    MiniLbConfig::new("127.0.0.1".into(), 0, prefill, decodes, 60)
}

fn start(config: MiniLbConfig) -> (Handle, JoinHandle<Result<(), StartError>>) {
    let balancer = MiniLoadBalancer::new(config).unwrap();
    (balancer.handle(), tokio::spawn(balancer.start()))
}

#[tokio::test]
async fn a_program_changes_workers_and_limits_while_its_balancer_serves() {
    let (prefill, old, new) = (worker().await, worker().await, worker().await);
    let (handle, _serving) = start(config(&prefill, &[&old]));
    let address = handle.address().await.unwrap();
    let other = config(&prefill, &[&new]).max_payload_size(4).queue_size(7);
    let applied = handle.reload(other).await.unwrap();
    let changed = ["decode", "max_payload_size", "queue_size"];
    assert_eq!(
        (&applied.changed[..], &applied.at_start[..]),
        (&changed[..], &[][..])
    );
    assert_eq!(post_json(address, "/generate", BODY).await.status(), 413);
    let listed = get(address, "/workers").await.json();
    let listed = listed["workers"].as_array().unwrap().iter();
    let urls: Vec<_> = listed.map(|worker| worker["url"].clone()).collect();
    assert_eq!(json!(urls), json!([prefill, new]));
    // The next one is compared with this one, and what it leaves out has its default again.
    let applied = handle.reload(config(&prefill, &[&new])).await.unwrap();
    assert_eq!(applied.changed, ["max_payload_size", "queue_size"]);
    assert_eq!(post_json(address, "/generate", BODY).await.status(), 200);
    let metrics = get(address, "/metrics").await;
    assert!(
        metrics
            .text()
            .contains("mini_lb_config_reloads_total{result=\"applied\"} 2\n")
    );
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_changes_nothing_and_what_needs_another_balancer_is_named()
 {
    let (prefill, decode) = (worker().await, worker().await);
    let (handle, serving) = start(config(&prefill, &[&decode]));
    let address = handle.address().await.unwrap();
    let broken = config(&prefill, &[]).set("queue_sise", 3);
    let error = handle.reload(broken).await.unwrap_err();
    assert!(matches!(error, ReloadError::Config(_)), "{error:?}");
    let said = error.to_string();
    assert!(
        said.contains("queue_sise") && said.contains("decode worker"),
        "{said}"
    );
    assert_eq!(post_json(address, "/generate", BODY).await.status(), 200);
    let moved = config(&prefill, &[&decode]).admin_listen("127.0.0.1:0");
    for _ in 0..2 {
        let applied = handle.reload(moved.clone()).await.unwrap();
        assert_eq!(
            (applied.changed.len(), &applied.at_start[..]),
            (0, &["admin_listen".to_owned()][..])
        );
    }
    handle.stop();
    soon("the balancer ends", serving).await.unwrap().unwrap();
    let error = handle.reload(moved).await.unwrap_err();
    assert!(matches!(error, ReloadError::Ended), "{error:?}");
    let error: &dyn Error = &error;
    assert_eq!(error.to_string(), "the balancer has ended");
}

#[tokio::test]
async fn a_configuration_that_is_given_before_the_start_takes_effect_with_it() {
    let (prefill, decode) = (worker().await, worker().await);
    let balancer = MiniLoadBalancer::new(config(&prefill, &[&decode])).unwrap();
    let handle = balancer.handle();
    let reloading = handle.reload(config(&prefill, &[&decode]).max_payload_size(4));
    let applied = tokio::select! {
        ended = balancer.start() => panic!("{ended:?}"),
        applied = reloading => applied.unwrap(),
    };
    assert_eq!(applied.changed, ["max_payload_size"]);
}
