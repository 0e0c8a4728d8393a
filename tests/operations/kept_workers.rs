//! `workers_state_file` at the end of a process: nothing that was added last is lost.

use std::fs;

use serde_json::{Value, json};
use support::Signal;
use tempfile::TempDir;

use crate::process_pair::ProcessPair;
use crate::workers_api::call;

/// The flag for a file in this directory.
fn flag(directory: &TempDir) -> String {
    let file = directory.path().join("workers.json");
    format!("--workers-state-file {}", file.display())
}

/// The URLs in the file.
fn kept(directory: &TempDir) -> Vec<String> {
    let text = fs::read_to_string(directory.path().join("workers.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let workers = file["workers"].as_array().unwrap().iter();
    workers
        .map(|worker| worker["url"].as_str().unwrap().to_owned())
        .collect()
}

/// Adds decode workers at these ports, which need not be there.
async fn add(pair: &ProcessPair, ports: &[u16]) -> Vec<String> {
    let mut urls = Vec::new();
    for port in ports {
        let url = format!("http://127.0.0.1:{port}");
        let body = json!({"url": url, "worker_type": "decode"});
        let added = call(pair.address, "POST", "/workers?probe=false", &body).await;
        assert_eq!(added.status(), 202, "{}", added.text());
        urls.push(url);
    }
    urls
}

#[tokio::test]
async fn the_last_addition_before_the_end_of_a_process_is_kept() {
    for signal in [Signal::Interrupt, Signal::Terminate] {
        let directory = TempDir::new().unwrap();
        let more = format!("{} --drain-settle-secs 0", flag(&directory));
        let mut pair = ProcessPair::start(&more).await;
        let urls = add(&pair, &[1, 2, 3]).await;
        pair.process.signal(signal).await;
        assert!(pair.process.ended().await.success());
        assert_eq!(kept(&directory), urls, "{signal:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_successor_has_the_workers_that_its_predecessor_was_given_while_it_waited() {
    let directory = TempDir::new().unwrap();
    let flag = flag(&directory);
    let mut pair = ProcessPair::start(&flag).await;
    let mut urls = add(&pair, &[1]).await;
    // It has begun before the second one is added.
    let workers = (format!("{} 8998", pair.prefill.url()), pair.decode.url());
    let workers = (workers.0.as_str(), workers.1.as_str());
    let more = format!("--disable-health-check --upgrade {flag}");
    let mut new = pair.directory.start(pair.address.port(), workers, &more);
    new.line("waiting for the sockets of the old process").await;
    urls.extend(add(&pair, &[2]).await);
    pair.process.signal(Signal::Quit).await;
    pair.process.line("successor listens").await;
    assert_eq!(new.address().await, pair.address);
    assert!(pair.process.ended().await.success());
    let list = call(pair.address, "GET", "/workers", &Value::Null).await;
    let list = list.json();
    let listed = list["workers"].as_array().unwrap().iter();
    let of_api = listed.filter(|worker| worker["sources"] == json!(["api"]));
    let listed: Vec<_> = of_api.map(|worker| worker["url"].clone()).collect();
    assert_eq!(json!(listed), json!(urls));
    urls.extend(add(&pair, &[3]).await);
    new.signal(Signal::Interrupt).await;
    assert!(new.ended().await.success());
    assert_eq!(kept(&directory), urls);
}
