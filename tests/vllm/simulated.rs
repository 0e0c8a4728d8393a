//! A simulated pair behind the balancer, beside a simulated ordinary server: what the client gets, and what the workers'
//! journals say about the legs.

use mini_lb::sim::{SimOptions, Worker};
use serde_json::{Value, json};
use support::sim::quick_vllm;
use support::{Balancer, CHAT, config, post};

use super::vllm;

const PROMPT: &str = "the quick brown fox jumps over the lazy dog and runs into the deep dark wood";

struct Simulated {
    prefill: Worker,
    decode: Worker,
    ordinary: Worker,
    balancer: Balancer,
}

impl Simulated {
    async fn start(options: SimOptions) -> Self {
        let prefill = Worker::start_prefill(options.clone()).await.unwrap();
        let decode = Worker::start_decode(options.clone()).await.unwrap();
        let ordinary = Worker::start_ordinary(options).await.unwrap();
        let config = vllm(config(&[prefill.url()], &[decode.url()]));
        Self {
            balancer: Balancer::start(config).await,
            prefill,
            decode,
            ordinary,
        }
    }

    /// What the balancer and the ordinary server respond to one request.
    async fn both(&self, path: &str, body: &Value) -> [Value; 2] {
        let text = body.to_string();
        let mut client = self.balancer.client().await;
        client.send(post(path, &text)).await;
        let through_balancer = client.answer().await;
        let mut client = support::Client::connect(self.ordinary.address()).await;
        client.send(post(path, &text)).await;
        let ordinary = client.answer().await;
        [through_balancer, ordinary].map(|answer| {
            assert_eq!(answer.status(), 200, "{path} {body} {}", answer.text());
            said(answer.text())
        })
    }

    /// The workers have seen nothing that a balancer must not send, and hold no blocks.
    fn assert_clean(&self) {
        for worker in [&self.prefill, &self.decode] {
            assert_eq!(
                worker.journal().violations().len(),
                0,
                "{:?}",
                worker.journal().violations()
            );
            assert_eq!(worker.journal().open_leases(), 0);
        }
    }
}

/// A response without what differs between two servers, and without the tokens that a cache had.
pub(crate) fn said(text: &str) -> Value {
    let events = text.split("\n\n").filter_map(|event| {
        let data = event.lines().find_map(|line| line.strip_prefix("data: "))?;
        Some(serde_json::from_str(data).unwrap_or_else(|_| data.into()))
    });
    let mut said = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(_) => Value::Array(events.collect()),
    };
    strip(&mut said);
    said
}

fn strip(value: &mut Value) {
    const DIFFERS: [&str; 11] = [
        "id",
        "item_id",
        "request_id",
        "created",
        "created_at",
        "system_fingerprint",
        "prompt_tokens_details",
        "input_tokens_details",
        "input_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
    ];
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !DIFFERS.contains(&name.as_str()));
            members.values_mut().for_each(strip);
        }
        Value::Array(elements) => elements.iter_mut().for_each(strip),
        _ => {}
    }
}

#[tokio::test]
async fn a_client_gets_what_an_ordinary_server_responds_on_every_endpoint() {
    let simulated = Simulated::start(quick_vllm()).await;
    let messages = json!([{"role":"user","content":PROMPT}]);
    for (path, body) in [
        (CHAT, json!({"messages":messages,"max_tokens":9})),
        (
            CHAT,
            json!({"messages":messages,"max_completion_tokens":7,"max_tokens":3}),
        ),
        (
            CHAT,
            json!({"messages":messages,"max_tokens":9,"logprobs":true,"top_logprobs":2}),
        ),
        (
            CHAT,
            json!({"messages":messages,"max_tokens":9,"min_tokens":5}),
        ),
        (
            CHAT,
            json!({"messages":messages,"max_tokens":9,"kv_transfer_params":{"do_remote_prefill":true,"remote_host":"10.0.0.1"}}),
        ),
        (
            "/v1/completions",
            json!({"prompt":PROMPT,"max_tokens":9,"logprobs":2}),
        ),
        (
            "/v1/completions",
            json!({"prompt":[PROMPT],"max_tokens":9,"stop":["e"]}),
        ),
        (
            "/v1/completions",
            json!({"prompt":[5,12,19,26],"max_tokens":9}),
        ),
        (
            "/v1/completions",
            json!({"prompt":["one","two"],"max_tokens":6}),
        ),
        (
            "/v1/completions",
            json!({"prompt":PROMPT,"max_tokens":9,"echo":true,"logprobs":1}),
        ),
        (
            "/v1/responses",
            json!({"input":PROMPT,"max_output_tokens":9}),
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
            let [through_balancer, ordinary] = simulated.both(path, &body).await;
            assert_eq!(through_balancer, ordinary, "{path} {body}");
        }
    }
    simulated.assert_clean();
}

#[tokio::test]
async fn samples_of_a_request_are_those_of_an_ordinary_server() {
    let simulated = Simulated::start(quick_vllm()).await;
    let body = json!({"prompt":PROMPT,"max_tokens":9,"n":3,"seed":7});
    let [through_balancer, ordinary] = simulated.both("/v1/completions", &body).await;
    assert_eq!(through_balancer, ordinary);
    simulated.assert_clean();
}
