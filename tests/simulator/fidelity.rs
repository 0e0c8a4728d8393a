//! Simulated responses have the status, framing, header names, keys and JSON types of those of SGLang 0.5.23.
//!
//! The fixtures are raw responses of a real pair. Values differ, because the model is another one; shapes must not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use mini_lb::sim::journal::RoomState;
use mini_lb::sim::{Event, Worker};
use serde_json::Value;
use support::sim::{Reply, SimPair, get, open_post, post_text, quick, send, wait_for};

fn fixture(scenario: &str, file: &str) -> Option<Vec<u8>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sglang-0.5.23");
    std::fs::read(root.join(scenario).join(file)).ok()
}

pub(crate) fn request(scenario: &str) -> String {
    String::from_utf8(fixture(scenario, "request.json").unwrap()).unwrap()
}

pub(crate) fn captured(scenario: &str, leg: &str) -> Option<Reply> {
    fixture(scenario, &format!("{leg}.http")).map(|raw| Reply::parse(&raw))
}

/// The JSON type at each path, one line per path.
pub(crate) fn shape(value: &Value) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    describe("", value, &mut lines);
    lines
}

fn describe(path: &str, value: &Value, lines: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::String(_) => "string",
        Value::Number(number) if number.as_str().contains(['.', 'e', 'E']) => "float",
        Value::Number(_) => "int",
        Value::Array(list) => {
            list.iter()
                .for_each(|element| describe(&format!("{path}[]"), element, lines));
            "list"
        }
        Value::Object(map) => {
            // The top logprobs of completions have tokens as keys.
            let by_token = path.ends_with("logprobs.top_logprobs[]");
            for (key, value) in map {
                let key = if by_token { "token" } else { key };
                match key {
                    // The real server had a cache hit or had decoded before, which adds these objects and lists.
                    "cached_tokens_details" | "decode_moments" => {
                        _ = lines.insert(format!("{path}.{key}"))
                    }
                    _ => describe(&format!("{path}.{key}"), value, lines),
                }
            }
            "object"
        }
    };
    lines.insert(format!("{path}: {kind}"));
}

/// The kinds of events per index without repetitions, because the number of tokens depends on the model.
fn event_kinds(reply: &Reply) -> BTreeMap<String, Vec<String>> {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, data) in reply.events() {
        let value: Value = serde_json::from_str(&data).unwrap_or(Value::String(data.clone()));
        let index = value
            .get("index")
            .or_else(|| value["choices"].get(0)?.get("index"));
        let list = kinds
            .entry(index.map_or(String::new(), Value::to_string))
            .or_default();
        let kind = match &value {
            Value::String(done) => done.clone(),
            value => format!("{name:?} {:?}", shape(value)),
        };
        if list.last() != Some(&kind) {
            list.push(kind);
        }
    }
    kinds
}

pub(crate) fn assert_alike(scenario: &str, ours: &Reply, real: &Reply) {
    assert_eq!(ours.status, real.status, "{scenario}: {}", ours.text());
    // It differs because the tests send `connection: close`.
    let names = |reply: &Reply| -> Vec<String> {
        let names = reply
            .header_names()
            .into_iter()
            .filter(|name| *name != "connection");
        names.map(str::to_owned).collect()
    };
    assert_eq!(
        names(ours),
        names(real),
        "{scenario}: header names in order"
    );
    for name in [
        "content-type",
        "server",
        "vary",
        "transfer-encoding",
        "allow",
    ] {
        assert_eq!(ours.header(name), real.header(name), "{scenario}: {name}");
    }
    if real.chunks.is_some() {
        let (ours, real) = (event_kinds(ours), event_kinds(real));
        assert_eq!(ours, real, "{scenario}: kinds of events");
    } else if real.header("content-type") == Some("application/json") {
        let (ours, real) = (shape(&ours.json()), shape(&real.json()));
        let differences: Vec<_> = ours.symmetric_difference(&real).collect();
        assert!(differences.is_empty(), "{scenario}: {differences:?}");
    } else {
        assert_eq!(ours.text(), real.text(), "{scenario}: text");
    }
}

/// The message of an error without random parts and parts that depend on the tokenizer or the installation of SGLang.
pub(crate) fn message(reply: &Reply) -> String {
    let text = reply.text().replace("/opt/sgl/ve", "/usr/local");
    let mut out = String::new();
    let mut hex = String::new();
    for character in text.chars() {
        if character.is_ascii_hexdigit() {
            hex.push(character);
            continue;
        }
        out.push_str(if hex.len() == 32 { "RID" } else { &hex });
        hex.clear();
        out.push(character);
    }
    out + &hex
}

/// Sends the body of a scenario to both workers, as a balancer does, and compares both responses.
pub(crate) async fn check_pair(path: &str, scenarios: &[&str]) {
    let pair = SimPair::start(quick()).await;
    for (number, scenario) in (1..).zip(scenarios) {
        let body: Value = serde_json::from_str(&request(scenario)).unwrap();
        let (prefill, decode) = pair.both(path, &body, number * 100).await;
        for (leg, ours) in [("prefill", prefill), ("decode", decode)] {
            if let Some(real) = captured(scenario, leg) {
                assert_alike(&format!("{scenario}/{leg}"), &ours, &real);
            }
        }
    }
}

#[tokio::test]
async fn generate_answers_have_the_real_shapes() {
    let scenarios = [
        "gen_nonstream",
        "gen_stream",
        "gen_batch",
        "gen_batch_stream",
        "gen_input_ids",
        "gen_max_new_1",
        "gen_stream_max_new_1",
        "gen_rid",
        "gen_max_new_0_stream",
    ];
    check_pair("/generate", &scenarios).await;
}

#[tokio::test]
async fn generate_logprobs_have_the_real_shapes() {
    let scenarios = [
        "gen_logprob",
        "gen_logprob_batch",
        "gen_logprob_batch_stream",
        "gen_logprob_default_start",
        "gen_logprob_stream",
        "gen_logprob_text",
        "gen_logprob_mid",
        "gen_token_ids_and_top",
        "gen_token_ids_and_top_stream",
        "gen_flat_and_ids",
        "gen_flat_stream",
    ];
    check_pair("/generate", &scenarios).await;
}

#[tokio::test]
async fn chat_answers_have_the_real_shapes() {
    let scenarios = [
        "chat_nonstream",
        "chat_stream",
        "chat_logprobs",
        "chat_stream_logprobs",
        "chat_stream_usage",
        "chat_continuous_usage",
        "err_wrong_model",
    ];
    check_pair("/v1/chat/completions", &scenarios).await;
}

#[tokio::test]
async fn completions_answers_have_the_real_shapes() {
    let scenarios = [
        "cmpl_nonstream",
        "cmpl_stream",
        "cmpl_logprobs",
        "cmpl_echo_logprobs",
        "cmpl_echo_stream",
        "cmpl_prompt_ids",
        "cmpl_prompt_list",
        "cmpl_prompt_list_stream",
        "cmpl_prompt_list_echo_stream",
        "cmpl_continuous_usage",
    ];
    check_pair("/v1/completions", &scenarios).await;
}

#[tokio::test]
async fn messages_and_responses_have_the_real_shapes() {
    check_pair("/v1/messages", &["messages_nonstream", "messages_stream"]).await;
    check_pair(
        "/v1/responses",
        &["responses_nonstream", "responses_stream"],
    )
    .await;
}

#[tokio::test]
async fn an_ordinary_worker_answers_as_the_real_one() {
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let chat = "/v1/chat/completions";
    let table = [
        ("single_gen", "/generate"),
        ("single_gen_stream", "/generate"),
        ("single_gen_n2", "/generate"),
        ("single_batch_rid", "/generate"),
        ("single_empty_batch", "/generate"),
        ("single_chat_n2", chat),
        ("single_chat_n2_stream", chat),
        ("single_cmpl_n2", "/v1/completions"),
        ("single_unknown", "/nothing"),
        ("single_tokenize", "/tokenize"),
        ("single_tokenize_list", "/tokenize"),
        ("single_err_start_beyond_stream", "/generate"),
    ];
    for (scenario, path) in table {
        let ours = post_text(&ordinary, path, &request(scenario)).await;
        assert_alike(scenario, &ours, &captured(scenario, "single").unwrap());
    }
    let ours = Reply::parse(&send(ordinary.address(), "GET", "/generate", "", "").await);
    assert_alike(
        "single_method",
        &ours,
        &captured("single_method", "single").unwrap(),
    );
}

#[tokio::test]
async fn management_answers_have_the_real_shapes() {
    let pair = SimPair::start(quick()).await;
    for (scenario, path) in [
        ("d_get_P_get_load", "/get_load"),
        ("d_get_P_health", "/health"),
        ("d_get_D_health", "/health"),
        ("d_get_P_model_info", "/model_info"),
        ("d_get_D_model_info", "/get_model_info"),
        ("d_get_P_v1_models", "/v1/models"),
        ("d_get_P_v1_loads", "/v1/loads"),
        ("d_get_D_v1_loads", "/v1/loads"),
        ("d_get_P_server_info", "/server_info"),
    ] {
        for (leg, worker) in [("prefill", &pair.prefill), ("decode", &pair.decode)] {
            let Some(real) = captured(scenario, leg) else {
                continue;
            };
            assert_alike(scenario, &get(worker, path).await, &real);
        }
    }
}

#[tokio::test]
async fn a_busy_worker_refuses_to_flush_as_the_real_one() {
    let pair = SimPair::start(quick()).await;
    let body = pair.with_room(
        &serde_json::json!({"text":"a","sampling_params":{"max_new_tokens":2}}),
        5,
    );
    let _waiting = open_post(&pair.decode, "/generate", &body).await;
    let waits = |event: &Event| {
        matches!(
            event,
            Event::RoomState {
                state: RoomState::WaitingForInput,
                ..
            }
        )
    };
    wait_for(&pair.decode, waits).await;
    let ours = post_text(&pair.decode, "/flush_cache", "{}").await;
    assert_alike(
        "d_post_D_flush_cache",
        &ours,
        &captured("d_post_D_flush_cache", "decode").unwrap(),
    );
}
