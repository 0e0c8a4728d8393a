//! `kv_connector: mooncake`: the balancer names the transfer, and asks prefill's bootstrap server for its engine.

use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::sim::{Entry, Worker as SimWorker};
use serde_json::{Value, json};
use support::sim::quick_mooncake;
use support::{Answer, Balancer, CHAT, Exchange, Worker, post};

use super::simulated::said;
use super::{BODY, text, vllm};

/// A response of prefill with Mooncake, which has no parameters.
const PREFILLED: &str =
    r#"{"choices":[{"index":0,"finish_reason":"length"}],"kv_transfer_params":null}"#;
const QUERIED: &str = r#"{"0":{"engine_id":"35864234-7f1f","worker_addr":{}}}"#;

/// A balancer of scripted workers with a scripted bootstrap server.
struct Scripted {
    prefill: Worker,
    decode: Worker,
    bootstrap: Worker,
    balancer: Balancer,
}

impl Scripted {
    async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let [prefill, decode, bootstrap] = [
            Worker::listen().await,
            Worker::listen().await,
            Worker::listen().await,
        ];
        let config = configured((prefill.url(), port(&bootstrap.url())), decode.url());
        Self {
            balancer: Balancer::start(change(config)).await,
            prefill,
            decode,
            bootstrap,
        }
    }

    async fn start() -> Self {
        Self::with(|config| config).await
    }

    /// Serves one question for the engine.
    async fn tell(&mut self, response: &str) {
        let asked = self.bootstrap.request().await;
        assert!(asked.request.head.starts_with("GET /query "));
        asked.answer("200 OK", response).await;
    }

    /// Sends a request and serves prefill's leg. The id of its transfer.
    async fn prefilled(
        &mut self,
        path: &str,
        body: &str,
        response: &str,
    ) -> (support::Client, String) {
        let mut client = self.balancer.client().await;
        client.send(post(path, body)).await;
        let prefill = self.prefill.request().await;
        let params = prefill.request.json()["kv_transfer_params"].clone();
        let id = params["transfer_id"].as_str().unwrap().to_owned();
        let wanted = json!({"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":id});
        assert_eq!(params, wanted);
        prefill.answer("200 OK", response).await;
        (client, id)
    }
}

fn configured(prefill: (String, u16), decode: String) -> MiniLbConfig {
    let prefills = vec![(prefill.0, Some(prefill.1))];
    let config = MiniLbConfig::new("127.0.0.1".into(), 0, prefills, vec![decode], 60)
        .health_check_interval(None);
    vllm(config).set("kv_connector", "mooncake")
}

fn port(url: &str) -> u16 {
    url.rsplit_once(':').unwrap().1.parse().unwrap()
}

fn params(exchange: &Exchange) -> Value {
    exchange.request.json()["kv_transfer_params"].clone()
}

#[tokio::test]
async fn decode_gets_the_transfer_of_prefill_and_the_engine_that_its_bootstrap_server_names() {
    let mut workers = Scripted::start().await;
    let mut ids = Vec::new();
    for round in 0..3 {
        let (mut client, id) = workers.prefilled(CHAT, BODY, PREFILLED).await;
        if round == 0 {
            workers.tell(QUERIED).await;
        }
        let decode = workers.decode.request().await;
        let server = format!("http://127.0.0.1:{}", port(&workers.bootstrap.url()));
        let wanted = json!({"do_remote_decode":false,"do_remote_prefill":true,
            "remote_bootstrap_addr":server,"remote_engine_id":"35864234-7f1f","transfer_id":id});
        assert_eq!(params(&decode), wanted);
        assert!(text(&decode).starts_with(BODY.strip_suffix('}').unwrap()));
        decode.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.status(), 200);
        ids.push(id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each request has a transfer of its own");
    assert!(!workers.bootstrap.has_request(), "it is asked once");
}

#[tokio::test]
async fn a_prompt_that_ends_with_its_first_token_has_no_blocks_and_decode_computes_it() {
    let mut workers = Scripted::start().await;
    let stopped = PREFILLED.replace("length", "stop");
    let (mut client, _) = workers.prefilled(CHAT, BODY, &stopped).await;
    let decode = workers.decode.request().await;
    assert_eq!(text(&decode), BODY);
    decode.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
    assert!(!workers.bootstrap.has_request());
}

#[tokio::test]
async fn an_engine_that_decode_does_not_reach_is_asked_for_again() {
    let mut workers = Scripted::start().await;
    let (mut client, _) = workers.prefilled(CHAT, BODY, PREFILLED).await;
    workers.tell(QUERIED).await;
    let failed = workers.decode.request().await;
    failed.answer("500 Internal Server Error", "{}").await;
    let alone = workers.decode.request().await;
    assert_eq!(text(&alone), BODY);
    alone.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
    let (mut client, _) = workers.prefilled(CHAT, BODY, PREFILLED).await;
    workers.tell(&QUERIED.replace("35864234", "new")).await;
    let decode = workers.decode.request().await;
    assert_eq!(params(&decode)["remote_engine_id"], "new-7f1f");
    decode.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_request_to_one_of_several_ranks_names_that_ranks_engine() {
    let two = r#"{"0":{"engine_id":"a","worker_addr":{}},"1":{"engine_id":"b","worker_addr":{}}}"#;
    let mut workers = Scripted::start().await;
    let mut client = workers.balancer.client().await;
    let named = post(CHAT, BODY).replacen("\r\n", "\r\nX-data-parallel-rank: 1\r\n", 1);
    client.send(named).await;
    let prefill = workers.prefill.request().await;
    assert!(
        prefill
            .request
            .head
            .to_lowercase()
            .contains("x-data-parallel-rank: 1\r\n")
    );
    prefill.answer("200 OK", PREFILLED).await;
    workers.tell(two).await;
    let decode = workers.decode.request().await;
    assert_eq!(params(&decode)["remote_engine_id"], "b");
    decode.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
    let (mut client, _) = workers.prefilled(CHAT, BODY, PREFILLED).await;
    assert_eq!(
        client.answer().await.outcome(),
        (502, Some("prefill_bad_answer"))
    );
}

#[tokio::test]
async fn a_bootstrap_server_that_names_no_engine_is_a_clear_error() {
    let mut workers = Scripted::start().await;
    let (mut client, _) = workers.prefilled(CHAT, BODY, PREFILLED).await;
    workers.tell(r#"{"detail":"Not Found"}"#).await;
    let answer: Answer = client.answer().await;
    assert_eq!(answer.outcome(), (502, Some("prefill_bad_answer")));
    assert!(
        answer.text().contains("bootstrap server 127.0.0.1:"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn without_a_bootstrap_server_decode_computes_the_prompt_where_it_may() {
    for (alone, status) in [("true", 200), ("false", 502)] {
        let mut workers = Scripted::with(|config| config.set("vllm_decode_alone", alone)).await;
        workers.bootstrap.stop_listening().await;
        let (mut client, _) = workers.prefilled(CHAT, BODY, PREFILLED).await;
        if status == 200 {
            let decode = workers.decode.request().await;
            assert_eq!(text(&decode), BODY);
            decode.answer("200 OK", "{}").await;
        }
        assert_eq!(client.answer().await.status(), status, "{alone}");
    }
}

#[tokio::test]
async fn a_simulated_pair_answers_as_an_ordinary_server_on_every_endpoint() {
    let options = quick_mooncake();
    let prefill = SimWorker::start_prefill(options.clone()).await.unwrap();
    let decode = SimWorker::start_decode(options.clone()).await.unwrap();
    let ordinary = SimWorker::start_ordinary(options).await.unwrap();
    let bootstrap = prefill.bootstrap_port().unwrap();
    let config = configured((prefill.url(), bootstrap), decode.url());
    let balancer = Balancer::start(config).await;
    let messages = json!([{"role":"user","content":"the quick brown fox jumps over it"}]);
    let mut transfers = 0;
    for (path, body) in [
        (CHAT, json!({"messages":messages,"max_tokens":9})),
        (
            "/v1/completions",
            json!({"prompt":"the quick brown fox","max_tokens":9}),
        ),
        (
            "/v1/responses",
            json!({"input":"the quick brown fox","max_output_tokens":9}),
        ),
        (
            "/v1/messages",
            json!({"model":"sim","messages":messages,"max_tokens":9}),
        ),
        (
            "/inference/v1/generate",
            json!({"token_ids":[5,12,19,26,33],"sampling_params":{"max_tokens":9,"temperature":0}}),
        ),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = json!(stream);
            let mut answers = Vec::new();
            for address in [balancer.address, ordinary.address()] {
                let mut client = support::Client::connect(address).await;
                client.send(post(path, &body.to_string())).await;
                let answer = client.answer().await;
                assert_eq!(answer.status(), 200, "{path} {body} {}", answer.text());
                answers.push(said(answer.text()));
            }
            assert_eq!(answers[0], answers[1], "{path} {body}");
            transfers += 1;
        }
    }
    for worker in [&prefill, &decode] {
        let violations = worker.journal().violations();
        assert!(violations.is_empty(), "{violations:?}");
    }
    let read = |entries: &[Entry]| {
        let leases = entries.iter().filter(|entry| is_read(entry));
        leases.count() == transfers
    };
    let journal = prefill.journal();
    journal
        .wait_for(read, Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(journal.open_leases(), 0);
}

fn is_read(entry: &Entry) -> bool {
    let told = serde_json::to_value(entry).unwrap();
    told["event"] == "lease" && told["state"] == "read"
}
