//! Simulated vLLM responses have the status, head, framing, keys in order, types and fixed values of those of vLLM 0.32.0.
//!
//! The fixtures are raw exchanges with real workers. Each request is sent again, decode's with the params that the
//! simulated prefill worker has given. What the model decides, ids and times differ; nothing else may.

use std::path::PathBuf;
use std::time::Duration;

use mini_lb::sim::{Connector, SimOptions, VllmOptions, Worker};
use serde_json::{Value, json};
use support::sim::{Reply, VllmPair, post, quick_vllm, send};

/// One exchange of a transcript.
struct Exchange {
    /// prefill, decode or single.
    to: String,
    method: String,
    path: String,
    headers: String,
    body: String,
    reply: Reply,
}

fn transcript(name: &str) -> Vec<Exchange> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm-0.32.0");
    let text = std::fs::read_to_string(root.join(format!("{name}.txt"))).unwrap();
    text.split("\n>>> to ").skip(1).map(exchange).collect()
}

fn exchange(text: &str) -> Exchange {
    let (to, rest) = text.split_once('\n').unwrap();
    let (request, reply) = rest.split_once("\n<<< after ").unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut line = head.lines().next().unwrap().split(' ');
    let reply = reply.split_once('\n').unwrap().1;
    let is_json = head.contains("Content-Type: application/json");
    Exchange {
        to: to.split(' ').next().unwrap().to_owned(),
        method: line.next().unwrap().to_owned(),
        path: line.next().unwrap().to_owned(),
        headers: match is_json {
            true => "content-type: application/json\r\n".to_owned(),
            false => String::new(),
        },
        body: body.trim_end_matches('\n').to_owned(),
        reply: Reply::parse(reply.strip_suffix('\n').unwrap_or(reply).as_bytes()),
    }
}

/// The options of the servers that the transcripts were captured from.
fn captured_options() -> SimOptions {
    let mut quick = quick_vllm();
    // Longer than a test: what does not fail at once is seen.
    quick.vllm.as_mut().unwrap().handshake_timeout = Duration::from_secs(3600);
    let mut reported = quick.reported;
    reported.page_size = 32;
    reported.model_path = "/models/tiny".to_owned();
    SimOptions {
        reported,
        model: "tiny".to_owned(),
        // With it no response ends before its length, as in the transcripts.
        seed: 4,
        prefix_cache: true,
        cache_report: true,
        ..quick
    }
}

struct Workers {
    pair: VllmPair,
    single: Worker,
}

impl Workers {
    async fn start() -> Workers {
        let options = captured_options();
        let vllm = options.vllm.clone().unwrap();
        let developed = SimOptions {
            vllm: Some(VllmOptions {
                dev_mode: true,
                ..vllm
            }),
            ..options.clone()
        };
        Workers {
            pair: VllmPair::start(options).await,
            single: Worker::start_ordinary(developed).await.unwrap(),
        }
    }

    async fn send(&self, exchange: &Exchange, body: &str) -> Reply {
        let worker = match exchange.to.as_str() {
            "prefill" => &self.pair.prefill,
            "decode" => &self.pair.decode,
            _ => &self.single,
        };
        let Exchange {
            method,
            path,
            headers,
            ..
        } = exchange;
        let raw = send(worker.address(), method, path, headers, body).await;
        Reply::parse(&raw)
    }
}

/// Fields whose value the model, the tokenizer, the clock or chance decides. Their type is compared.
const VARY: [&str; 37] = [
    "id",
    "request_id",
    "item_id",
    "created",
    "created_at",
    "content",
    "text",
    "delta",
    "token",
    "token_ids",
    "tokens",
    "system_fingerprint",
    "prompt_tokens",
    "total_tokens",
    "cached_tokens",
    "created_cache_tokens",
    "cache_write_tokens",
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "logprob",
    "bytes",
    "token_logprobs",
    "top_logprobs",
    "text_offset",
    "prompt_logprobs",
    "remote_block_ids",
    "remote_engine_id",
    "remote_request_id",
    "remote_port",
    "remote_num_tokens",
    "remote_prefill_cached_tokens",
    "decoded_token",
    "rank",
    "count",
    "prompt",
    "sequence_number",
];

/// A value as lines: a key's path, in order, with its value, or its type where it varies. Elements of lists without
/// keys in them are one line.
fn describe(path: &str, value: &Value, lines: &mut Vec<String>) {
    let key = path.rsplit('.').next().unwrap().trim_end_matches("[]");
    match value {
        Value::Object(map)
            if key == "prompt_logprobs"
                || path.contains("top_logprobs[]") && path.contains("logprobs.top") =>
        {
            // Keyed by token.
            map.values()
                .take(1)
                .for_each(|value| describe(&format!("{path}.token"), value, lines));
        }
        Value::Object(map) => {
            for (key, value) in map {
                describe(&format!("{path}.{key}"), value, lines);
            }
        }
        Value::Array(list) => {
            let at = format!("{path}[]");
            let mut inside = Vec::new();
            for element in list {
                let mut one = Vec::new();
                describe(&at, element, &mut one);
                if !inside.contains(&one) {
                    inside.push(one);
                }
            }
            lines.push(format!("{at} of {} kinds", inside.len()));
            lines.extend(inside.into_iter().flatten());
        }
        _ if VARY.contains(&key) && !value.is_null() => lines.push(match value {
            Value::Number(number) if number.as_str().contains(['.', 'e']) => {
                format!("{path}: float")
            }
            Value::Number(_) => format!("{path}: int"),
            _ => format!("{path}: text"),
        }),
        value => lines.push(format!("{path}: {value}")),
    }
}

fn lines(value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    describe("", value, &mut out);
    out
}

/// The kinds of events in order, without repetitions: how many tokens an event has is chance.
fn kinds(reply: &Reply) -> Vec<String> {
    let mut kinds = Vec::new();
    for (name, data) in reply.events() {
        let value: Value = serde_json::from_str(&data).unwrap_or(Value::String(data));
        let completion = |line: &String| !line.contains("usage.completion_tokens");
        let lines: Vec<String> = lines(&value).into_iter().filter(completion).collect();
        let kind = format!("{name:?} {lines:#?}");
        if kinds.last() != Some(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

fn assert_alike(name: &str, ours: &Reply, real: &Reply) {
    assert_eq!(ours.status, real.status, "{name}: {}", ours.text());
    assert_eq!(
        ours.header_names(),
        real.header_names(),
        "{name}: header names"
    );
    let fixed = [
        "content-type",
        "server",
        "vary",
        "transfer-encoding",
        "allow",
        "connection",
    ];
    for header in fixed {
        assert_eq!(ours.header(header), real.header(header), "{name}: {header}");
    }
    if real.chunks.is_some() {
        let (ours, real) = (kinds(ours), kinds(real));
        // Where the real stream has coalesced all of its tokens, it has no event without a reason of the end.
        let mut left = ours.iter();
        let missing: Vec<_> = real
            .iter()
            .filter(|kind| !left.any(|ours| ours == *kind))
            .collect();
        assert!(missing.is_empty(), "{name}: {missing:#?}\nours: {ours:#?}");
        assert!(
            ours.len() <= real.len() + 1,
            "{name}: more kinds of events: {ours:#?}"
        );
    } else if real.header("content-type") == Some("application/json") && !real.body.is_empty() {
        assert_eq!(lines(&ours.json()), lines(&real.json()), "{name}");
    } else {
        assert_eq!(ours.text(), real.text().trim_end(), "{name}: text");
    }
}

/// Replays a transcript on a pair and an ordinary worker.
async fn check(name: &str) {
    let workers = Workers::start().await;
    let mut given = Value::Null;
    for exchange in transcript(name) {
        let mut body = exchange.body.clone();
        if exchange.to == "decode" && body.contains("remote_request_id") {
            let mut sent: Value = serde_json::from_str(&body).unwrap();
            sent["kv_transfer_params"] = given.clone();
            body = sent.to_string();
        }
        let ours = workers.send(&exchange, &body).await;
        assert_alike(&format!("{name}, {}", exchange.to), &ours, &exchange.reply);
        // HEAD has no body of its length.
        if exchange.to == "prefill" && !ours.body.is_empty() && ours.status == 200 {
            given = serde_json::from_slice::<Value>(&ours.body).unwrap_or_default()["kv_transfer_params"].clone();
        }
    }
}

macro_rules! replayed {
    ($($test:ident: $($name:literal),+;)+) => {
        $(#[tokio::test]
        async fn $test() {
            for name in [$($name),+] {
                check(name).await;
            }
        })+
    };
}

replayed! {
    chat_is_answered_as_by_the_real_workers: "01-chat", "02-chat-stream", "06-logprobs";
    completions_are_answered_as_by_the_real_workers: "03-completion-stream", "20-decode-without-params";
    a_list_of_prompts_is_answered_as_by_the_real_workers: "04-prompt-list";
    samples_are_answered_as_by_the_real_workers: "05-n2", "05c-n2-greedy";
    logprobs_of_prompts_are_answered_as_by_the_real_workers: "07-prompt-logprobs", "08-echo";
    responses_are_answered_as_by_the_real_workers: "10-responses", "10-responses-stream";
    messages_are_answered_as_by_the_real_workers: "11-messages", "11-messages-stream";
    token_ids_are_answered_as_by_the_real_workers: "12-generate", "12-generate-stream";
    a_batch_of_chats_is_answered_as_by_the_real_workers: "13-batch-chat";
    errors_are_those_of_the_real_workers: "24-error-bad-json", "24-error-empty-messages", "24-error-too-long",
        "24-error-unknown-model";
    management_is_answered_as_by_the_real_workers: "30-management";
}

/// The servers of this transcript did not count created tokens, so that the details of usage are compared apart.
#[tokio::test]
async fn a_transfer_of_mooncake_is_answered_as_by_the_real_workers() {
    let captured = captured_options();
    let vllm = captured.vllm.clone().unwrap();
    let pair = VllmPair::start(SimOptions {
        vllm: Some(VllmOptions {
            connector: Connector::Mooncake,
            ..vllm
        }),
        ..captured
    })
    .await;
    let exchanges = transcript("40-mooncake");
    let [query, prefill, decode] = &exchanges[..] else {
        unreachable!("a question and two legs")
    };
    let port = pair.prefill.bootstrap_port().unwrap();
    let raw = send(([127, 0, 0, 1], port).into(), "GET", &query.path, "", "").await;
    let told = Reply::parse(&raw).json();
    let keys = |told: &Value| {
        let engine = &told["0"];
        assert!(engine["worker_addr"]["0"]["0"].is_string(), "{told}");
        let keys = engine.as_object().unwrap().keys();
        keys.cloned().collect::<Vec<_>>()
    };
    assert_eq!(keys(&told), keys(&query.reply.json()));
    for (worker, exchange) in [(&pair.prefill, prefill), (&pair.decode, decode)] {
        let mut body: Value = serde_json::from_str(&exchange.body).unwrap();
        let params = &mut body["kv_transfer_params"];
        if params["do_remote_prefill"] == true {
            params["remote_engine_id"] = told["0"]["engine_id"].clone();
            params["remote_bootstrap_addr"] = json!(format!("http://127.0.0.1:{port}"));
        }
        let reply = post(worker, &exchange.path, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let without_details = |mut document: Value| {
            let usage = document["usage"].as_object_mut().unwrap();
            let details = usage.remove("prompt_tokens_details").unwrap();
            let all_cached = details["cached_tokens"] == usage["prompt_tokens"];
            (all_cached, lines(&document))
        };
        let (ours, real) = (reply.json(), exchange.reply.json());
        assert_eq!(without_details(ours), without_details(real));
    }
    assert_eq!(pair.prefill.journal().violations().len(), 0);
    assert_eq!(pair.decode.journal().violations().len(), 0);
}

/// The params name a side channel where nothing listens.
#[tokio::test]
async fn a_side_channel_that_cannot_be_reached_is_the_real_error_after_the_timeout() {
    let options = captured_options();
    let vllm = options.vllm.clone().unwrap();
    let timeout = Duration::from_millis(50);
    let pair = VllmPair::start(SimOptions {
        vllm: Some(VllmOptions {
            handshake_timeout: timeout,
            ..vllm
        }),
        ..options
    })
    .await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    for name in ["23-dead-prefill", "23-dead-prefill-stream"] {
        let exchange = transcript(name).remove(0);
        let body = exchange.body.replace("35999", &port.to_string());
        let raw = send(
            pair.decode.address(),
            "POST",
            &exchange.path,
            &exchange.headers,
            &body,
        )
        .await;
        assert_alike(name, &Reply::parse(&raw), &exchange.reply);
    }
}

/// Prefill dies between the legs, after a request of which decode has met it.
#[tokio::test]
async fn a_prefill_that_died_after_a_handshake_is_the_real_error_at_once() {
    let Workers { pair, single: _ } = Workers::start().await;
    let exchange = transcript("25-prefill-killed-after-handshake").remove(0);
    let body: Value = serde_json::from_str(&exchange.body).unwrap();
    assert_eq!(pair.both(&exchange.path, &body).await.status, 200);
    let first = VllmPair::prefill_body(&exchange.path, &body);
    let first = support::sim::post(&pair.prefill, &exchange.path, &first).await;
    let second = VllmPair::decode_body(&body, &first).to_string();
    let VllmPair { prefill, decode } = pair;
    prefill.stop().await;
    let Exchange { path, headers, .. } = &exchange;
    let sending = send(decode.address(), "POST", path, headers, &second);
    let raw = support::soon("the error, without a handshake", sending).await;
    assert_alike("25", &Reply::parse(&raw), &exchange.reply);
}
