//! `/workers`: workers come and go while the balancer serves.

use std::net::SocketAddr;

use mini_lb::MiniLbConfig;
use mini_lb::sim::{self, SimOptions};
use serde_json::{Value, json};
use support::sim::quick;
use support::{Answer, Balancer, Client, Pair, Worker, config, mini_lb, soon};

/// The response to a call with a JSON body, on a connection of its own.
pub(crate) async fn call(address: SocketAddr, method: &str, path: &str, body: &Value) -> Answer {
    let mut client = Client::connect(address).await;
    client.send(request(method, path, body)).await;
    client.answer().await
}

fn request(method: &str, path: &str, body: &Value) -> String {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: balancer\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// A URL in the path of a call.
pub(crate) fn path_of(url: &str) -> String {
    format!("/workers/{}", url.replace(':', "%3A").replace('/', "%2F"))
}

/// Two simulated workers and a balancer in front of them.
struct Fleet {
    prefill: sim::Worker,
    decode: sim::Worker,
    balancer: Balancer,
}

impl Fleet {
    async fn start(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let prefill = sim::Worker::start_prefill(quick()).await.unwrap();
        let decode = sim::Worker::start_decode(quick()).await.unwrap();
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            vec![(prefill.url(), prefill.bootstrap_port())],
            vec![decode.url()],
            60,
        );
        Self {
            balancer: Balancer::start(change(config)).await,
            prefill,
            decode,
        }
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        call(self.balancer.address, method, path, &body).await
    }

    /// The entry of a worker; `None` where it is not listed.
    async fn entry(&self, url: &str) -> Option<Value> {
        let answer = self.call("GET", &path_of(url), Value::Null).await;
        (answer.status() == 200).then(|| answer.json())
    }

    async fn generates(&self) -> bool {
        let body = json!({"text": "a b", "sampling_params": {"max_new_tokens": 2}});
        self.call("POST", "/generate", body).await.status() == 200
    }
}

#[tokio::test]
async fn a_worker_that_is_added_serves_in_the_role_that_it_says() {
    let fleet = Fleet::start(|config| config).await;
    for (worker, role) in [
        (
            sim::Worker::start_prefill(quick()).await.unwrap(),
            "prefill",
        ),
        (sim::Worker::start_decode(quick()).await.unwrap(), "decode"),
    ] {
        let answer = fleet
            .call("POST", "/workers?wait=true", json!({"url": worker.url()}))
            .await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let entry = answer.json();
        assert_eq!(entry["worker_type"], role);
        assert_eq!(entry["state"], "serving");
        assert_eq!(entry["sources"], json!(["api"]));
        let port = worker.bootstrap_port().map_or(Value::Null, Value::from);
        assert_eq!(entry["bootstrap_port"], port, "asked from the worker");
        let id = entry["id"].as_str().unwrap();
        assert_eq!(answer.header("location"), Some(&*format!("/workers/{id}")));
        let same = fleet
            .call("GET", &format!("/workers/{id}"), Value::Null)
            .await;
        assert_eq!(same.json()["url"], worker.url().as_str());
        // Only the new worker of the role is left.
        let old = if role == "prefill" {
            &fleet.prefill
        } else {
            &fleet.decode
        };
        let removed = fleet
            .call("DELETE", &path_of(&old.url()), Value::Null)
            .await;
        assert_eq!(removed.status(), 202, "{}", removed.text());
        assert!(fleet.generates().await, "{role}");
        let leg = |event: &sim::Event| matches!(event, sim::Event::RequestHead { path, .. } if path == "/generate");
        assert!(
            worker
                .journal()
                .entries()
                .iter()
                .any(|entry| leg(&entry.event))
        );
        std::mem::forget(worker);
    }
}

#[tokio::test]
async fn an_addition_is_accepted_at_once_and_its_job_is_seen() {
    let fleet = Fleet::start(|config| config).await;
    let refusing = Worker::refusing().await;
    let answer = fleet
        .call(
            "POST",
            "/workers",
            json!({"url": refusing, "worker_type": "decode"}),
        )
        .await;
    assert_eq!(answer.status(), 202, "{}", answer.text());
    let accepted = answer.json();
    assert_eq!(accepted["status"], "accepted");
    assert_eq!(answer.header("location"), accepted["location"].as_str());
    let entry = fleet.entry(&refusing).await.unwrap();
    assert_eq!(
        (&entry["id"], &entry["state"]),
        (&accepted["worker_id"], &json!("pending"))
    );
    assert_eq!(entry["job_status"]["status"], "processing");
    assert!(fleet.generates().await, "it gets no request");
    let list = fleet.call("GET", "/workers", Value::Null).await.json();
    assert_eq!(list["total"], 3);
    assert_eq!(
        list["stats"],
        json!({"prefill_count": 1, "decode_count": 2, "regular_count": 0})
    );
    let data = fleet
        .call("GET", "/dashboard/data", Value::Null)
        .await
        .json();
    assert_eq!(data["pending"][0]["url"], refusing.as_str());
    // A removal ends it.
    let removed = fleet.call("DELETE", &path_of(&refusing), Value::Null).await;
    assert_eq!(
        (removed.status(), &removed.json()["status"]),
        (202, &json!("removed"))
    );
    assert!(fleet.entry(&refusing).await.is_none());
}

#[tokio::test]
async fn a_role_that_the_worker_contradicts_is_refused() {
    let fleet = Fleet::start(|config| config).await;
    let prefill = sim::Worker::start_prefill(quick()).await.unwrap();
    let ordinary = sim::Worker::start_ordinary(quick()).await.unwrap();
    for (url, role, words) in [
        (prefill.url(), Some("decode"), "says that it is prefill"),
        (ordinary.url(), None, "--disaggregation-mode"),
    ] {
        let body = json!({"url": url, "worker_type": role});
        let answer = fleet.call("POST", "/workers?wait=true", body.clone()).await;
        assert_eq!(
            answer.outcome(),
            (422, Some("worker_mismatch")),
            "{}",
            answer.text()
        );
        assert!(answer.text().contains(words), "{}", answer.text());
        assert!(fleet.entry(&url).await.is_none());
        // Without a wait it is seen until it is added again or removed.
        assert_eq!(fleet.call("POST", "/workers", body).await.status(), 202);
        let failed = async {
            while fleet.entry(&url).await.unwrap()["state"] != "failed" {
                tokio::task::yield_now().await;
            }
        };
        soon("the refusal", failed).await;
        let entry = fleet.entry(&url).await.unwrap();
        assert!(
            entry["job_status"]["message"]
                .as_str()
                .unwrap()
                .contains(words),
            "{entry}"
        );
    }
    assert!(fleet.generates().await);
}

#[tokio::test]
async fn what_is_wrong_with_a_call_is_said_in_one_shape() {
    let fleet = Fleet::start(|config| config).await;
    let decode = fleet.decode.url();
    let id = fleet.entry(&decode).await.unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let worker = |more: Value| {
        let mut body = json!({"url": "http://127.0.0.1:1", "worker_type": "decode"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    for (method, path, body, status, code, words) in [
        (
            "POST",
            "/workers",
            json!({}),
            400,
            "invalid_worker",
            "`url`",
        ),
        (
            "POST",
            "/workers",
            json!({"url": "ftp://a:1"}),
            400,
            "invalid_worker",
            "scheme",
        ),
        (
            "POST",
            "/workers",
            json!({"url": "not a url"}),
            400,
            "invalid_worker",
            "`url`",
        ),
        (
            "POST",
            "/workers",
            worker(json!({"worker_type": "regular"})),
            400,
            "invalid_worker",
            "prefill or decode",
        ),
        (
            "POST",
            "/workers",
            worker(json!({"bootstrap_port": "1"})),
            400,
            "invalid_worker",
            "number",
        ),
        (
            "POST",
            "/workers",
            worker(json!({"weight": 0})),
            400,
            "invalid_worker",
            "`weight`",
        ),
        (
            "POST",
            "/workers",
            worker(json!({"api_key": "a b"})),
            400,
            "invalid_worker",
            "`api_key`",
        ),
        (
            "POST",
            "/workers?maybe=1",
            worker(json!({})),
            400,
            "invalid_worker",
            "drain_seconds",
        ),
        (
            "POST",
            "/workers?probe=false",
            json!({"url": "http://127.0.0.1:1"}),
            400,
            "invalid_worker",
            "worker_type",
        ),
        (
            "POST",
            "/workers",
            json!({"url": decode}),
            409,
            "worker_conflict",
            &*id,
        ),
        (
            "POST",
            "/workers",
            json!({"url": decode, "worker_type": "prefill"}),
            409,
            "worker_conflict",
            &*id,
        ),
        (
            "GET",
            "/workers/nope",
            Value::Null,
            404,
            "unknown_worker",
            "nope",
        ),
        (
            "DELETE",
            "/workers/http%3A%2F%2F127.0.0.1%3A1",
            Value::Null,
            404,
            "unknown_worker",
            "127.0.0.1:1",
        ),
        (
            "PUT",
            "/workers/nope",
            json!({"weight": 2}),
            404,
            "unknown_worker",
            "nope",
        ),
        (
            "PUT",
            &*format!("/workers/{id}"),
            json!({"worker_type": "prefill"}),
            400,
            "invalid_worker",
            "/pd_role_switch",
        ),
        (
            "PUT",
            &*format!("/workers/{id}"),
            json!({"url": "http://127.0.0.1:1"}),
            400,
            "invalid_worker",
            "stays",
        ),
        (
            "PUT",
            &*format!("/workers/{id}"),
            json!({"state": "asleep"}),
            400,
            "invalid_worker",
            "`state`",
        ),
        (
            "PUT",
            &*format!("/workers/{id}"),
            json!({"wieght": 2}),
            400,
            "invalid_worker",
            "weight",
        ),
        (
            "POST",
            &*format!("/workers/{id}"),
            json!({}),
            405,
            "method_not_allowed",
            "DELETE",
        ),
        (
            "POST",
            "/pd_role_switch",
            json!({"new_role": "decode"}),
            400,
            "invalid_worker",
            "`worker_url`",
        ),
        (
            "POST",
            "/pd_role_switch",
            json!({"worker_url": "http://a:1", "new_role": "both"}),
            400,
            "invalid_worker",
            "`new_role`",
        ),
        (
            "POST",
            "/pd_role_switch",
            json!({"worker_url": "http://a:1", "new_role": "decode"}),
            404,
            "unknown_worker",
            "a:1",
        ),
    ] {
        let answer = fleet.call(method, path, body.clone()).await;
        assert_eq!(
            answer.outcome(),
            (status, Some(code)),
            "{method} {path} {body}"
        );
        let message = answer.json()["error"]["message"].clone();
        let message = message.as_str().unwrap();
        assert!(message.contains(words), "{method} {path} {body}: {message}");
    }
    let list = fleet.call("GET", "/workers", Value::Null).await.json();
    assert_eq!(list["total"], 2, "nothing has changed");
}

#[tokio::test]
async fn a_removal_drains_and_says_how_many_requests_still_run() {
    let mut pair = Pair::start().await;
    let address = pair.balancer.address;
    let legs = pair.legs("/generate", "{}").await;
    let name = path_of(&pair.decode.url());
    let removed = call(address, "DELETE", &name, &Value::Null).await.json();
    assert_eq!(
        (&removed["status"], &removed["in_flight"]),
        (&json!("draining"), &json!(1))
    );
    let mut other = pair.balancer.client().await;
    other.send(support::post("/generate", "{}")).await;
    assert_eq!(other.answer().await.outcome(), (503, Some("no_decode")));
    let entry = call(address, "GET", &name, &Value::Null).await.json();
    assert_eq!(
        (&entry["state"], &entry["load"]),
        (&json!("draining"), &json!(1))
    );
    let metrics = support::program::get(address, "/metrics").await;
    let series = format!(
        "mini_lb_worker_up{{role=\"decode\",worker=\"{}\"}} 0",
        pair.decode.url()
    );
    assert!(metrics.text().contains(&series), "{}", metrics.text());
    assert!(
        metrics
            .text()
            .contains(r#"mini_lb_workers{role="decode",state="draining"} 1"#)
    );
    // The request ends as ever, and with it the worker.
    support::pair::serve(legs).await;
    assert_eq!(pair.client.answer().await.status(), 200);
    let gone = async {
        while call(address, "GET", &name, &Value::Null).await.status() != 404 {
            tokio::task::yield_now().await;
        }
    };
    soon("the worker is gone", gone).await;
    let metrics = support::program::get(address, "/metrics").await;
    assert!(
        !metrics.text().contains(&pair.decode.url()),
        "{}",
        metrics.text()
    );
}

#[tokio::test]
async fn a_removal_without_a_drain_cuts_no_request_off() {
    let mut pair = Pair::start().await;
    let address = pair.balancer.address;
    let legs = pair.legs("/generate", "{}").await;
    let name = path_of(&pair.decode.url());
    let removed = call(address, "DELETE", &format!("{name}?now=true"), &Value::Null)
        .await
        .json();
    assert_eq!(
        (&removed["status"], &removed["in_flight"]),
        (&json!("removed"), &json!(1))
    );
    assert_eq!(
        call(address, "GET", &name, &Value::Null).await.status(),
        404
    );
    support::pair::serve(legs).await;
    assert_eq!(pair.client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_worker_is_drained_for_maintenance_and_probed_before_it_serves_again() {
    let fleet = Fleet::start(|config| config).await;
    let name = path_of(&fleet.decode.url());
    let drained = fleet
        .call(
            "PUT",
            &format!("{name}?wait=true"),
            json!({"state": "draining"}),
        )
        .await;
    assert_eq!(
        (drained.status(), &drained.json()["state"]),
        (200, &json!("draining"))
    );
    assert!(!fleet.generates().await);
    let ready = fleet.call("GET", "/readiness", Value::Null).await;
    assert_eq!(ready.outcome(), (503, Some("no_worker")));
    let serves = fleet
        .call(
            "PUT",
            &format!("{name}?wait=true"),
            json!({"state": "serving"}),
        )
        .await;
    assert_eq!(
        (serves.status(), &serves.json()["state"]),
        (200, &json!("serving"))
    );
    assert!(fleet.generates().await);
    let probed = fleet.decode.journal().entries();
    let asked = |entry: &sim::Entry| matches!(&entry.event, sim::Event::RequestHead { path, .. } if path == "/health");
    assert!(probed.iter().any(asked));
}

#[tokio::test]
async fn what_is_changed_about_a_worker_counts_at_once_and_no_key_is_shown() {
    let fleet = Fleet::start(|config| config).await;
    let name = path_of(&fleet.decode.url());
    let body = json!({"weight": 7, "labels": {"zone": "a"}, "priority": 3, "api_key": "sk-new", "model_id": "m"});
    let changed = fleet.call("PUT", &name, body).await;
    assert_eq!(changed.status(), 202, "{}", changed.text());
    let entry = fleet.entry(&fleet.decode.url()).await.unwrap();
    assert_eq!(
        (&entry["weight"], &entry["priority"], &entry["model_id"]),
        (&json!(7), &json!(3), &json!("m"))
    );
    assert_eq!(entry["labels"], json!({"zone": "a"}));
    assert!(fleet.generates().await);
    let keyed = |entry: &sim::Entry| matches!(&entry.event, sim::Event::RequestHead { path, authorization: true, .. } if path == "/generate");
    assert!(fleet.decode.journal().entries().iter().any(keyed));
    for page in [
        "/workers",
        &name,
        "/dashboard/data",
        "/metrics",
        "/debug/requests",
    ] {
        let shown = support::program::get(fleet.balancer.address, page).await;
        assert!(!shown.text().contains("sk-new"), "{page}");
    }
}

#[tokio::test]
async fn callers_at_the_same_time_add_one_worker() {
    let fleet = Fleet::start(|config| config).await;
    let decode = sim::Worker::start_decode(quick()).await.unwrap();
    let body = json!({"url": decode.url()});
    let calls = (0..8).map(|_| fleet.call("POST", "/workers?wait=true", body.clone()));
    let answers = futures_util::future::join_all(calls).await;
    let mut statuses: Vec<_> = answers.iter().map(Answer::status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(
        fleet.call("GET", "/workers", Value::Null).await.json()["total"],
        3
    );
}

#[tokio::test]
async fn workers_are_administered_with_the_key_of_administration() {
    let mut pair = Pair::with(|config| config.admin_api_key("sk-a")).await;
    for (method, path) in [
        ("GET", "/workers"),
        ("POST", "/workers"),
        ("GET", "/workers/a"),
        ("PUT", "/workers/a"),
        ("DELETE", "/workers/a"),
        ("POST", "/pd_role_switch"),
    ] {
        pair.client.send(request(method, path, &Value::Null)).await;
        assert_eq!(pair.client.answer().await.status(), 401, "{method} {path}");
    }
}

#[tokio::test]
async fn workers_that_were_added_are_there_after_a_restart_and_a_broken_file_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("workers.json");
    let decode = sim::Worker::start_decode(quick()).await.unwrap();
    let other = sim::Worker::start_decode(SimOptions {
        api_key: Some("sk-w".into()),
        ..quick()
    })
    .await
    .unwrap();
    let path = file.to_str().unwrap().to_owned();
    let fleet = Fleet::start(|config| config.workers_state_file(&path)).await;
    assert!(!file.exists(), "it is not needed yet");
    let mut ids = Vec::new();
    for (worker, key) in [(&decode, None), (&other, Some("sk-w"))] {
        let body = json!({"url": worker.url(), "api_key": key, "labels": {"a": "b"}});
        let added = fleet.call("POST", "/workers?wait=true", body).await;
        assert_eq!(added.status(), 200, "{}", added.text());
        ids.push(added.json()["id"].clone());
    }
    let written = async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&other.url())) {
            tokio::task::yield_now().await;
        }
    };
    soon("the file", written).await;
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let Fleet {
        prefill,
        decode: first,
        balancer,
    } = fleet;
    balancer.stop().await;
    let again = MiniLbConfig::new(
        "127.0.0.1".into(),
        0,
        vec![(prefill.url(), prefill.bootstrap_port())],
        vec![first.url()],
        60,
    );
    let fleet = Fleet {
        prefill,
        decode: first,
        balancer: Balancer::start(again.workers_state_file(&path)).await,
    };
    for (worker, id) in [(&decode, &ids[0]), (&other, &ids[1])] {
        let serves = async {
            while fleet.entry(&worker.url()).await.unwrap()["state"] != "serving" {
                tokio::task::yield_now().await;
            }
        };
        soon("it serves again", serves).await;
        let entry = fleet.entry(&worker.url()).await.unwrap();
        assert_eq!((&entry["id"], &entry["labels"]["a"]), (id, &json!("b")));
    }
    std::fs::write(&file, "{\"version\":1,\"workers\":[{\"url\":").unwrap();
    let arguments = format!(
        "--host 127.0.0.1 --port 0 --prefill http://127.0.0.1:1 --decode http://127.0.0.1:2 --workers-state-file {path}"
    );
    let mut process = mini_lb!(&arguments.split(' ').collect::<Vec<_>>());
    let line = process.line("workers_state_file").await;
    assert!(
        line.contains(&path) && line.contains("move it away"),
        "{line}"
    );
}

#[tokio::test]
async fn a_name_that_no_worker_has_is_not_a_worker_and_others_are_found_by_any_form_of_their_url() {
    let (prefill, decode) = Worker::pair().await;
    let balancer = Balancer::start(config(&[prefill.url()], &[decode.url()])).await;
    let port = decode.url().rsplit(':').next().unwrap().to_owned();
    for name in [
        format!("HTTP%3A%2F%2F127.0.0.1%3A{port}"),
        format!("http://127.0.0.1:{port}/"),
        format!("127.0.0.1:{port}"),
    ] {
        let found = call(
            balancer.address,
            "GET",
            &format!("/workers/{name}"),
            &Value::Null,
        )
        .await;
        assert_eq!(found.json()["url"], decode.url().as_str(), "{name}");
    }
}
