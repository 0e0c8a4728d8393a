//! `/pd_role_switch`: a worker gets the other role while requests run.

use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::sim::{self, Role, SimOptions};
use serde_json::{Value, json};
use support::sim::quick;
use support::{Answer, Balancer, soon};

use crate::workers_api::{call, path_of};

fn switchable() -> SimOptions {
    SimOptions {
        role_switch: true,
        ..quick()
    }
}

/// Two simulated workers of each role whose role can be switched.
struct Fleet {
    workers: Vec<sim::Worker>,
    balancer: Balancer,
}

impl Fleet {
    async fn start(options: SimOptions) -> Self {
        let mut workers = Vec::new();
        for role in [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode] {
            workers.push(sim::Worker::start(role, options.clone()).await.unwrap());
        }
        let prefills = workers[..2].iter();
        let prefills = prefills.map(|worker| (worker.url(), worker.bootstrap_port()));
        let decodes = workers[2..].iter().map(sim::Worker::url);
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            prefills.collect(),
            decodes.collect(),
            60,
        );
        Self {
            balancer: Balancer::start(config).await,
            workers,
        }
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        call(self.balancer.address, method, path, &body).await
    }

    async fn entry(&self, worker: usize) -> Value {
        let path = path_of(&self.workers[worker].url());
        self.call("GET", &path, Value::Null).await.json()
    }

    async fn generate(&self, tokens: u32) -> Answer {
        let body = json!({"text": "a b", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": true}});
        self.call("POST", "/generate", body).await
    }

    fn generations(&self, worker: usize) -> usize {
        let entries = self.workers[worker].journal().entries();
        let leg = |entry: &&sim::Entry| matches!(&entry.event, sim::Event::RequestHead { path, .. } if path == "/generate");
        entries.iter().filter(leg).count()
    }
}

#[tokio::test]
async fn a_worker_serves_in_its_new_role_and_back_in_the_old_one() {
    let fleet = Fleet::start(switchable()).await;
    for (worker, role) in [(2, "prefill"), (2, "decode"), (0, "decode"), (0, "prefill")] {
        let id = fleet.entry(worker).await["id"].clone();
        let body = json!({"worker_url": fleet.workers[worker].url(), "new_role": role});
        let switched = fleet.call("POST", "/pd_role_switch", body).await;
        assert_eq!(switched.status(), 200, "{}", switched.text());
        let told = switched.json();
        assert_eq!(
            (&told["success"], &told["new_role"]),
            (&json!(true), &json!(role))
        );
        assert_eq!(told["state"], "serving", "{told}");
        let entry = fleet.entry(worker).await;
        assert_eq!((&entry["worker_type"], &entry["id"]), (&json!(role), &id));
        if role == "prefill" {
            let port = fleet.workers[worker].bootstrap_port();
            assert_eq!(entry["bootstrap_port"], json!(port.unwrap()));
        }
        let before = fleet.generations(worker);
        let used = async {
            while fleet.generations(worker) == before {
                let answer = fleet.generate(2).await;
                assert_eq!(answer.status(), 200, "{}", answer.text());
            }
        };
        soon("a request in the new role", used).await;
    }
    for worker in &fleet.workers {
        assert!(worker.journal().violations().is_empty());
        assert_eq!(worker.journal().open_rooms(), 0);
    }
}

#[tokio::test]
async fn requests_that_run_end_before_the_engine_is_switched() {
    let slow = SimOptions {
        time_per_output_token: Duration::from_millis(2),
        ..switchable()
    };
    let fleet = Fleet::start(slow).await;
    let requests = (0..8).map(|_| fleet.generate(60));
    let body = json!({"worker_urls": [fleet.workers[3].url()], "new_role": "prefill"});
    let switching = async {
        let busy = async {
            while fleet.generations(3) == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon("a request on the worker", busy).await;
        fleet.call("POST", "/pd_role_switch", body).await
    };
    let (answers, switched) = tokio::join!(futures_util::future::join_all(requests), switching);
    for answer in answers {
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    assert_eq!(switched.status(), 200, "{}", switched.text());
    assert_eq!(switched.json()["results"][0]["success"], true);
    assert_eq!(fleet.entry(3).await["worker_type"], "prefill");
}

#[tokio::test]
async fn an_engine_that_refuses_is_left_as_it_was() {
    let fleet = Fleet::start(quick()).await;
    let body = json!({"worker_urls": [fleet.workers[2].url(), fleet.workers[3].url()], "new_role": "prefill"});
    let refused = fleet.call("POST", "/pd_role_switch", body).await;
    assert_eq!(refused.status(), 400, "{}", refused.text());
    let results = &refused.json()["results"];
    assert!(
        results[0]["message"]
            .as_str()
            .unwrap()
            .contains("--enable-pd-role-switch")
    );
    assert_eq!(results[0]["state"], "serving");
    assert!(
        results[1]["message"]
            .as_str()
            .unwrap()
            .contains("not tried")
    );
    for worker in 0..4 {
        assert_eq!(fleet.entry(worker).await["state"], "serving");
    }
    assert_eq!(fleet.generate(2).await.status(), 200);
}

#[tokio::test]
async fn the_last_worker_of_a_role_is_not_switched_unasked() {
    let fleet = Fleet::start(switchable()).await;
    let urls: Vec<_> = fleet.workers[2..].iter().map(sim::Worker::url).collect();
    let body = json!({"worker_urls": urls, "new_role": "prefill"});
    let refused = fleet.call("POST", "/pd_role_switch", body).await;
    assert_eq!(refused.status(), 409, "{}", refused.text());
    let results = &refused.json()["results"];
    assert_eq!(
        (&results[0]["success"], &results[1]["success"]),
        (&json!(true), &json!(false))
    );
    assert!(results[1]["message"].as_str().unwrap().contains("force"));
    assert_eq!(fleet.generate(2).await.status(), 200);
}

#[tokio::test]
async fn a_drain_that_takes_too_long_leaves_the_worker_as_it_was() {
    let slow = SimOptions {
        time_per_output_token: Duration::from_millis(20),
        ..switchable()
    };
    let fleet = Fleet::start(slow).await;
    let requests = futures_util::future::join_all((0..8).map(|_| fleet.generate(50)));
    let body = json!({"worker_url": fleet.workers[3].url(), "new_role": "prefill", "drain_timeout_secs": 0});
    let switching = async {
        let busy = async {
            while fleet.entry(3).await["load"] == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon("a request on the worker", busy).await;
        fleet.call("POST", "/pd_role_switch", body).await
    };
    let (answers, refused) = tokio::join!(requests, switching);
    assert!(answers.iter().all(|answer| answer.status() == 200));
    assert_eq!(refused.status(), 504, "{}", refused.text());
    assert_eq!(fleet.entry(3).await["state"], "serving");
}
