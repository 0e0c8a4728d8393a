//! Errors beside those that SGLang 0.5.23 gave: refused requests, legs alone, workers that are lost.

use mini_lb::sim::journal::RoomState;
use mini_lb::sim::{Event, SimOptions, Worker};
use serde_json::Value;
use support::sim::{Reply, SimPair, open_post, post_text, quick, send, wait_for};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::fidelity::{assert_alike, captured, check_pair, message, request};

#[tokio::test]
async fn bodies_outside_the_schema_are_refused_in_the_same_words() {
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let chat = "/v1/chat/completions";
    for (scenario, path, content_type) in [
        ("single_err_bad_json", "/generate", "application/json"),
        ("single_err_bad_json_chat", chat, "application/json"),
        ("single_err_content_type", chat, "text/plain"),
        ("single_err_gen_content_type", "/generate", "text/plain"),
        ("single_err_not_an_object", "/generate", "application/json"),
        ("single_err_text_type", "/generate", "application/json"),
        ("single_err_stream_type", "/generate", "application/json"),
        ("single_err_no_messages", chat, "application/json"),
        ("single_err_total", "/generate", "application/json"),
        (
            "single_err_total_cmpl",
            "/v1/completions",
            "application/json",
        ),
        ("single_err_messages", "/v1/messages", "application/json"),
        (
            "single_err_messages_type",
            "/v1/messages",
            "application/json",
        ),
        ("single_err_responses", "/v1/responses", "application/json"),
        ("single_err_max_new_type", "/generate", "application/json"),
        ("single_err_text_mixed", "/generate", "application/json"),
        ("single_err_ids_text", "/generate", "application/json"),
        ("single_err_sampling_key", "/generate", "application/json"),
        ("single_err_start_beyond", "/generate", "application/json"),
        ("single_err_return_logprob", "/generate", "application/json"),
        (
            "single_err_return_logprob_yes",
            "/generate",
            "application/json",
        ),
        ("single_err_logprob_list", "/generate", "application/json"),
        ("single_err_role", chat, "application/json"),
        (
            "single_err_prompt_mixed",
            "/v1/completions",
            "application/json",
        ),
        ("single_err_tokenize_mixed", "/tokenize", "application/json"),
    ] {
        let headers = format!("content-type: {content_type}\r\n");
        let raw = send(
            ordinary.address(),
            "POST",
            path,
            &headers,
            &request(scenario),
        )
        .await;
        let (ours, real) = (Reply::parse(&raw), captured(scenario, "single").unwrap());
        assert_alike(scenario, &ours, &real);
        assert_eq!(message(&ours), message(&real), "{scenario}");
    }
}

#[tokio::test]
async fn refusals_have_the_real_shapes_and_words() {
    let chat = "/v1/chat/completions";
    let table = [
        ("err_bad_sampling", "/generate", true),
        ("err_missing_text", "/generate", true),
        ("err_too_long_gen", "/generate", false),
        ("err_too_long_gen_stream", "/generate", false),
        ("err_too_long_chat", chat, false),
        ("err_too_long_chat_stream", chat, false),
        ("err_max_tokens_too_big", chat, true),
        ("err_chat_bad_temp", chat, true),
        ("err_chat_wrong_type", chat, true),
    ];
    let pair = SimPair::start(quick()).await;
    for (scenario, path, same_words) in table {
        let body: Value = serde_json::from_str(&request(scenario)).unwrap();
        let (prefill, decode) = pair.both(path, &body, 1).await;
        for (leg, ours) in [("prefill", prefill), ("decode", decode)] {
            let Some(real) = captured(scenario, leg) else {
                continue;
            };
            assert_alike(&format!("{scenario}/{leg}"), &ours, &real);
            if same_words {
                assert_eq!(message(&ours), message(&real), "{scenario}/{leg}");
            }
        }
    }
    // These messages quote the request, whose room differs.
    check_pair(chat, &["err_chat_missing_messages"]).await;
    check_pair("/v1/completions", &["err_cmpl_missing_prompt"]).await;
}

#[tokio::test]
async fn a_worker_alone_answers_as_the_real_one() {
    let pair = SimPair::start(quick()).await;
    let chat = "/v1/chat/completions";
    for (scenario, path) in [
        ("d_batch_room_len_mismatch", "/generate"),
        ("d_chat_decode_no_bootstrap", chat),
        ("d_chat_prefill_no_bootstrap", chat),
        ("d_decode_fake_host", "/generate"),
        ("d_decode_fake_host_stream", "/generate"),
        ("d_decode_no_bootstrap", "/generate"),
        ("d_prefill_fake_host", "/generate"),
        ("d_prefill_no_bootstrap", "/generate"),
        ("d_room_string", "/generate"),
        ("d_gen_stream_no_bootstrap", "/generate"),
        ("d_batch_no_bootstrap", "/generate"),
        ("d_cmpl_stream_no_bootstrap", "/v1/completions"),
        ("d_responses_no_bootstrap", "/v1/responses"),
        ("d_responses_stream_no_bootstrap", "/v1/responses"),
        ("d_messages_no_bootstrap", "/v1/messages"),
        ("d_messages_stream_no_bootstrap", "/v1/messages"),
        ("d_post_P_abort_request", "/abort_request"),
        ("d_post_D_abort_request", "/abort_request"),
        ("d_post_P_flush_cache", "/flush_cache"),
    ] {
        for (leg, worker) in [("prefill", &pair.prefill), ("decode", &pair.decode)] {
            let Some(real) = captured(scenario, leg) else {
                continue;
            };
            let ours = post_text(worker, path, &request(scenario)).await;
            assert_alike(scenario, &ours, &real);
            if real.status >= 400 {
                assert_eq!(message(&ours), message(&real), "{scenario}");
            }
        }
    }
}

/// The recorded run had a timeout of 10 s and other ports.
fn lonely_message(reply: &Reply) -> String {
    let text = message(reply).replace("\": ", "\":").replace(", \"", ",\"");
    text.replace("timed out after 10.0s", "timed out after 0.3s")
}

fn in_a_hurry() -> SimOptions {
    SimOptions {
        timers_scale: 0.001,
        ..quick()
    }
}

fn assert_lonely(scenario: &str, ours: &Reply, real: &Reply) {
    assert_alike(scenario, ours, real);
    let (ours_text, real_text) = (lonely_message(ours), lonely_message(real));
    let why = |text: &str| {
        text.split("Error(bootstrap_room")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(why(&ours_text), why(&real_text), "{scenario}");
}

#[tokio::test]
async fn a_leg_without_its_peer_fails_as_the_real_one() {
    for (leg, scenario, path) in [
        ("prefill", "x_prefill_lonely_timeout_gen", "/generate"),
        (
            "prefill",
            "x_prefill_lonely_timeout_gen_stream",
            "/generate",
        ),
        (
            "prefill",
            "x_prefill_lonely_timeout_chat",
            "/v1/chat/completions",
        ),
        (
            "prefill",
            "x_prefill_lonely_timeout_chat_stream",
            "/v1/chat/completions",
        ),
        ("decode", "x_decode_lonely_timeout_gen", "/generate"),
        ("decode", "x_decode_lonely_timeout_gen_stream", "/generate"),
        (
            "decode",
            "x_decode_lonely_timeout_chat",
            "/v1/chat/completions",
        ),
        (
            "decode",
            "x_decode_lonely_timeout_chat_stream",
            "/v1/chat/completions",
        ),
    ] {
        let pair = SimPair::start(in_a_hurry()).await;
        let port = pair.prefill.bootstrap_port().unwrap();
        let body = request(scenario).replace(":31900", &format!(":{port}"));
        let worker = if leg == "prefill" {
            &pair.prefill
        } else {
            &pair.decode
        };
        let ours = post_text(worker, path, &body).await;
        assert_lonely(scenario, &ours, &captured(scenario, leg).unwrap());
    }
}

#[tokio::test]
async fn decode_gives_up_on_a_registry_that_nobody_serves() {
    let decode = Worker::start_decode(in_a_hurry()).await.unwrap();
    // The listener is dropped at the end of the line, so the port refuses connections.
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut body: Value =
        serde_json::from_str(&request("x_decode_bad_bootstrap_port_gen")).unwrap();
    body["bootstrap_port"] = closed.into();
    let ours = post_text(&decode, "/generate", &body.to_string()).await;
    assert_lonely(
        "x_decode_bad_bootstrap_port_gen",
        &ours,
        &captured("x_decode_bad_bootstrap_port_gen", "decode").unwrap(),
    );
}

#[tokio::test]
async fn decode_notices_that_its_prefill_died() {
    for (scenario, path) in [
        ("x_kill_prefill_while_decode_waits_gen", "/generate"),
        ("x_kill_prefill_while_decode_waits_gen_stream", "/generate"),
        (
            "x_kill_prefill_while_decode_waits_chat",
            "/v1/chat/completions",
        ),
        (
            "x_kill_prefill_while_decode_waits_chat_stream",
            "/v1/chat/completions",
        ),
    ] {
        let SimPair { prefill, decode } = SimPair::start(in_a_hurry()).await;
        let port = prefill.bootstrap_port().unwrap();
        let body: Value =
            serde_json::from_str(&request(scenario).replace(":31900", &format!(":{port}")))
                .unwrap();
        let mut waiting = open_post(&decode, path, &body).await;
        let waits = |event: &Event| {
            matches!(
                event,
                Event::RoomState {
                    state: RoomState::WaitingForInput,
                    ..
                }
            )
        };
        wait_for(&decode, waits).await;
        prefill.stop().await;
        let finished = |event: &Event| matches!(event, Event::ResponseFinished { .. });
        wait_for(&decode, finished).await;
        drop(decode);
        let mut raw = Vec::new();
        waiting.read_to_end(&mut raw).await.unwrap();
        let real = captured(scenario, "decode").unwrap();
        let real = Reply {
            body: real
                .text()
                .replace(":31900", &format!(":{port}"))
                .into_bytes(),
            ..real
        };
        assert_lonely(scenario, &Reply::parse(&raw), &real);
    }
}
