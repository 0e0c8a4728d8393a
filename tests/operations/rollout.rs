//! `mini-lb rollout`: a command for each worker, drained before and probed after.

use mini_lb::MiniLbConfig;
use mini_lb::sim;
use serde_json::Value;
use support::sim::quick;
use support::{Balancer, mini_lb};

use crate::workers_api::path_of;

struct Fleet {
    prefills: [sim::Worker; 2],
    _decode: sim::Worker,
    balancer: Balancer,
}

impl Fleet {
    async fn start() -> Self {
        let prefill = || async { sim::Worker::start_prefill(quick()).await.unwrap() };
        let prefills = [prefill().await, prefill().await];
        let decode = sim::Worker::start_decode(quick()).await.unwrap();
        let urls = prefills
            .iter()
            .map(|worker| (worker.url(), worker.bootstrap_port()));
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            urls.collect(),
            vec![decode.url()],
            60,
        );
        let config = config.admin_api_key("sk-a");
        Self {
            prefills,
            _decode: decode,
            balancer: Balancer::start(config).await,
        }
    }

    fn rollout(&self, role: &str, command: &str, key: &str) -> support::Process {
        let url = format!("http://{}", self.balancer.address);
        let mut process = std::process::Command::new(env!("CARGO_BIN_EXE_mini-lb"));
        process.args([
            "rollout",
            "--role",
            role,
            "--url",
            &url,
            "--command",
            command,
        ]);
        process.args(["--admin-api-key-file", key]);
        support::Process::of(process)
    }

    async fn state(&self, prefill: usize) -> Value {
        let path = path_of(&self.prefills[prefill].url());
        let mut client = self.balancer.client().await;
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-a\r\n\r\n"
            ))
            .await;
        client.answer().await.json()["state"].clone()
    }
}

fn key(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[tokio::test]
async fn the_command_runs_for_each_worker_of_the_role_and_all_serve_afterwards() {
    let fleet = Fleet::start().await;
    let key = key("sk-a");
    let command = "echo command for $1 = $MINI_LB_WORKER_URL as $MINI_LB_WORKER_ROLE";
    let process = fleet.rollout("prefill", command, key.path().to_str().unwrap());
    let ended = process.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.text());
    for worker in &fleet.prefills {
        let url = worker.url();
        let line = format!("command for {url} = {url} as prefill");
        assert!(ended.lines.contains(&line), "{}", ended.text());
    }
    assert!(ended.text().contains("all 2 prefill workers serve"));
    assert_eq!(fleet.state(0).await, "serving");
    assert_eq!(fleet.state(1).await, "serving");
}

#[tokio::test]
async fn the_first_failure_ends_it_and_says_where() {
    let fleet = Fleet::start().await;
    let key = key("sk-a");
    let key = key.path().to_str().unwrap();
    let ended = fleet.rollout("prefill", "exit 3", key).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.text());
    let text = ended.text();
    assert!(
        text.contains(&fleet.prefills[0].url()) && text.contains("command failed"),
        "{text}"
    );
    assert_eq!(fleet.state(0).await, "draining");
    assert_eq!(fleet.state(1).await, "serving");
    // One of the two is drained now, and the other is needed.
    let ended = fleet.rollout("prefill", "true", key).end().await;
    assert!(ended.text().contains("--force"), "{}", ended.text());
    let ended = fleet.rollout("decode", "true", key).end().await;
    assert!(ended.text().contains("--force"), "{}", ended.text());
}

#[tokio::test]
async fn a_wrong_key_and_a_balancer_that_is_not_there_are_said() {
    let fleet = Fleet::start().await;
    let wrong = key("sk-x");
    let ended = fleet
        .rollout("prefill", "true", wrong.path().to_str().unwrap())
        .end()
        .await;
    assert!(
        ended.text().contains("--admin-api-key-file"),
        "{}",
        ended.text()
    );
    let ended = mini_lb!(&[
        "rollout",
        "--role",
        "decode",
        "--command",
        "true",
        "--url",
        "http://127.0.0.1:1"
    ]);
    let ended = ended.end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.text());
    assert!(ended.text().contains("127.0.0.1:1"), "{}", ended.text());
}
