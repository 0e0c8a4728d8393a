//! One real generation through a pair: a balancer of its own for these two workers, on a free port of this machine, gets
//! a short streamed request. So the legs are those of every request, with the keys and the trust of the configuration.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::ask::Asker;
use super::report::{Check, Times};
use crate::addresses::Addresses;
use crate::config::{ClientKeys, Config, MiniLbConfig, WorkerSpec};
use crate::endpoint::ERROR_CODE;
use crate::net::{Client, Reuse, Target};
use crate::pd::{Engine, sse};
use crate::server::MiniLoadBalancer;

pub(super) const NAME: &str = "generation";

/// The tokens that are asked for: enough that decode makes some of its own behind prefill's first one.
const TOKENS: u32 = 8;

/// The longest response that is read, in bytes.
const RESPONSE_LIMIT: usize = 1 << 20;

/// The time after the deadline of the request in which the balancer can report that it has passed.
const MARGIN: Duration = Duration::from_secs(2);

/// Between two health checks, where there are any: the first one asks the worker for its ranks.
const ONCE: Duration = Duration::from_secs(3600);

/// What the workers need in a request.
#[derive(Clone, Copy)]
pub(super) struct Needs {
    /// The ids of the prompt, instead of its text.
    pub(super) ids: bool,
    /// The rank of prefill, of which the balancer must ask the worker.
    pub(super) rank: bool,
}

/// Generates through this pair.
pub(super) async fn generate(
    config: &Config,
    (prefill, decode): (&WorkerSpec, &WorkerSpec),
    asker: &Asker,
    needs: Needs,
) -> (Check, Option<Times>) {
    let (client, patience, engine) = (&asker.client, asker.patience, asker.engine);
    let config = match restricted(config, (prefill, decode), patience, needs) {
        Ok(mut config) => {
            config.engine = Some(engine);
            config
        }
        Err(why) => return (failed(why, "this is a defect of mini-lb: report it"), None),
    };
    let balancer = MiniLoadBalancer::from_config(config).waits(patience);
    let handle = balancer.handle();
    // Ended by `stop` below, and aborted where that takes too long.
    let mut serving = tokio::spawn(balancer.start());
    let Some(address) = handle.address().await else {
        let why = match serving.await {
            Ok(Err(error)) => error.to_string(),
            _ => "the balancer of the pair ended".to_owned(),
        };
        let advice = "the server would not start either";
        return (failed(why, advice), None);
    };
    let addresses = Addresses::new(Some(address));
    if needs.rank {
        // So that the time of the question does not count as that of the request.
        let _ = timeout(patience, until_it_serves(client, &addresses)).await;
    }
    let exchange = exchange(client, &addresses, engine, needs.ids);
    let ended = match timeout(patience + MARGIN, exchange).await {
        Ok(ended) => ended,
        Err(_) => Err(Refusal::late(patience)),
    };
    handle.stop();
    if timeout(MARGIN, &mut serving).await.is_err() {
        serving.abort();
    }
    match ended {
        Ok((times, tokens)) => {
            let message = format!(
                "first token after {:.0} ms, {tokens} tokens in {:.0} ms",
                times.ttft_ms, times.total_ms
            );
            (Check::ok(NAME, message), Some(times))
        }
        Err(refusal) => (failed(refusal.message, refusal.advice), None),
    }
}

fn failed(message: impl Into<String>, advice: &str) -> Check {
    Check::fail(NAME, message, advice)
}

/// A configuration for these two workers alone, with every setting at its default that does not concern the way to them.
fn restricted(
    config: &Config,
    (prefill, decode): (&WorkerSpec, &WorkerSpec),
    patience: Duration,
    needs: Needs,
) -> Result<Config, String> {
    let workers = (
        vec![(prefill.url.to_string(), None)],
        vec![decode.url.to_string()],
    );
    let own = MiniLbConfig::new("127.0.0.1".to_owned(), 0, workers.0, workers.1, 1)
        .health_check_interval(needs.rank.then_some(ONCE))
        // A path without a generation, which would be beside that of the request.
        .set("health_check_endpoint", "/model_info")
        .retries(0);
    let mut own = own.resolve().map_err(|problems| problems.to_string())?;
    // A prefill worker that fails must show.
    own.requests.vllm_decode_alone = false;
    own.requests.kv_connector = config.requests.kv_connector;
    own.prefill = vec![prefill.clone()];
    own.decode = vec![decode.clone()];
    own.client_keys = ClientKeys {
        api: Vec::new(),
        admin: None,
    };
    own.tls.client = config.tls.client.clone();
    own.tls.roots = config.tls.roots.clone();
    own.workers.connect_timeout = config.workers.connect_timeout.min(patience);
    own.server.ca_file = config.server.ca_file.clone();
    own.server.client_bind_to_ipv4 = config.server.client_bind_to_ipv4.clone();
    own.server.client_bind_to_ipv6 = config.server.client_bind_to_ipv6.clone();
    own.resilience.disable_abort_requests = config.resilience.disable_abort_requests;
    own.requests.first_token_timeout = patience;
    own.requests.stream_idle_timeout = patience;
    // Later than the deadline above, whose error says more.
    own.requests.stream_timeout = Some(patience + MARGIN / 2);
    Ok(own)
}

/// Why there was no generation.
struct Refusal {
    message: String,
    advice: &'static str,
}

impl Refusal {
    fn late(patience: Duration) -> Self {
        Self {
            message: format!("no complete response within {} s", patience.as_secs_f64()),
            advice: NOT_MET,
        }
    }

    fn of(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            advice: "see the logs of both workers at this time",
        }
    }
}

const NOT_MET: &str = "the two workers do not meet, or one is busy or paused: check that decode reaches the bootstrap address and the \
                       other ports of prefill, and see both logs; --timeout gives them longer";

fn to(addresses: &Addresses) -> Target<'_> {
    static HOST: HeaderValue = HeaderValue::from_static("doctor");
    Target {
        addresses,
        server_name: None,
        host: &HOST,
        authorization: None,
    }
}

/// Waits for a response of the balancer.
async fn until_it_serves(client: &Client, addresses: &Addresses) {
    if let Ok(mut head) = RequestHeader::build_no_case(Method::GET, b"/liveness", Some(1)) {
        let _ = head.insert_header(CONNECTION, HeaderValue::from_static("close"));
        let _ = client
            .fetch(to(addresses), &head, &Bytes::new(), RESPONSE_LIMIT)
            .await;
    }
}

/// The times and the number of tokens.
async fn exchange(
    client: &Client,
    addresses: &Addresses,
    engine: Engine,
    takes_ids: bool,
) -> Result<(Times, u64), Refusal> {
    let defect = |error: String| Refusal::of(format!("the request was not sent ({error})"));
    let (path, body) = match engine {
        Engine::Sglang => ("/generate", body(takes_ids)),
        Engine::Vllm => ("/v1/completions", vllm_body()),
    };
    let mut head = RequestHeader::build_no_case(Method::POST, path.as_bytes(), Some(1))
        .map_err(|error| defect(error.to_string()))?;
    head.insert_header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .map_err(|error| defect(error.to_string()))?;
    // The balancer ends at once when it has no connection.
    head.insert_header(CONNECTION, HeaderValue::from_static("close"))
        .map_err(|error| defect(error.to_string()))?;
    let begun = Instant::now();
    let body = Bytes::from(body.to_string());
    let mut reply = client
        .send_once(to(addresses), &head, &body, Reuse::Never)
        .await
        .map_err(|failure| defect(failure.to_string()))?;
    if reply.head().status != StatusCode::OK {
        let code = reply.head().headers.get(ERROR_CODE).cloned();
        let status = reply.head().status;
        let body = reply.collect(RESPONSE_LIMIT).await.unwrap_or_default();
        return Err(refusal(status, code.as_ref(), &body));
    }
    let mut first = None;
    let mut whole = BytesMut::new();
    loop {
        match reply.chunk().await {
            Ok(None) => break,
            Ok(Some(chunk)) if whole.len() + chunk.len() <= RESPONSE_LIMIT => {
                first.get_or_insert_with(|| begun.elapsed());
                whole.extend_from_slice(&chunk);
            }
            Ok(Some(_)) => return Err(Refusal::of("the response is too long")),
            Err(failure) => return Err(Refusal::of(format!("the stream broke: {failure}"))),
        }
    }
    let total = begun.elapsed();
    let tokens = tokens(whole.freeze())?;
    let milliseconds = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
    let times = Times {
        ttft_ms: milliseconds(first.unwrap_or(total)),
        total_ms: milliseconds(total),
    };
    Ok((times, tokens))
}

fn body(takes_ids: bool) -> Value {
    let mut body = json!({
        "sampling_params": {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": true},
        "stream": true,
    });
    match takes_ids {
        true => body["input_ids"] = json!([1, 2, 3, 4]),
        false => body["text"] = json!("Hello, my name is"),
    }
    body
}

/// A request without the name of a model is for the one that there is.
fn vllm_body() -> Value {
    json!({
        "prompt": "Hello, my name is", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true},
    })
}

/// A response that is no stream, in one sentence.
fn refusal(status: StatusCode, code: Option<&HeaderValue>, body: &[u8]) -> Refusal {
    let code = code.and_then(|code| code.to_str().ok()).unwrap_or("");
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let message = parsed.as_ref().and_then(error_message);
    let message = message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    let named = match code {
        "" => format!("{}", status.as_u16()),
        code => format!("{} {code}", status.as_u16()),
    };
    let mut refusal = Refusal::of(format!("{named} ({})", message.trim()));
    if code.ends_with("_timeout") {
        refusal.advice = NOT_MET;
    }
    refusal
}

/// The message of an error in any of the shapes of SGLang.
fn error_message(body: &Value) -> Option<&str> {
    let error = body.get("error").unwrap_or(body);
    error.as_str().or_else(|| error["message"].as_str())
}

/// The tokens of a stream that is complete and has no error.
fn tokens(stream: Bytes) -> Result<u64, Refusal> {
    let (mut tokens, mut is_done) = (0, false);
    for event in sse::events(stream) {
        let Some(data) = event.strip_prefix(b"data: ") else {
            continue;
        };
        if data.starts_with(b"[DONE]") {
            is_done = true;
            continue;
        }
        let Ok(event) = serde_json::from_slice::<Value>(data) else {
            return Err(Refusal::of("an event of the stream is not JSON"));
        };
        let meta = &event["meta_info"];
        if event.get("error").is_some() {
            let message = error_message(&event).unwrap_or("an error");
            return Err(Refusal::of(format!("the stream ended with {message}")));
        }
        if meta["finish_reason"]["type"] == "abort" {
            let message = meta["finish_reason"]["message"]
                .as_str()
                .unwrap_or("no reason");
            return Err(Refusal::of(format!(
                "the generation was aborted ({message})"
            )));
        }
        let counted = [meta, &event["usage"]].map(|counts| counts["completion_tokens"].as_u64());
        tokens = counted.into_iter().flatten().next().unwrap_or(tokens);
    }
    match is_done {
        true => Ok(tokens),
        false => Err(Refusal::of("the stream ended before its end marker")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(stream: &'static str) -> Result<u64, String> {
        tokens(Bytes::from_static(stream.as_bytes())).map_err(|refusal| refusal.message)
    }

    #[test]
    fn a_stream_counts_when_it_is_whole_and_without_an_error() {
        for (stream, expected) in [
            (
                "data: {\"meta_info\":{\"completion_tokens\":1}}\n\ndata: {\"meta_info\":{\"completion_tokens\":8}}\n\ndata: [DONE]\n\n",
                Ok(8),
            ),
            (
                "data: {\"text\":\"a\"}\n\n",
                Err("the stream ended before its end marker"),
            ),
            ("", Err("the stream ended before its end marker")),
            (
                "data: {\"error\":{\"message\":\"m\"}}\n\ndata: [DONE]\n\n",
                Err("the stream ended with m"),
            ),
            (
                "data: {\"meta_info\":{\"finish_reason\":{\"type\":\"abort\",\"message\":\"m\"}}}\n\ndata: [DONE]\n\n",
                Err("the generation was aborted (m)"),
            ),
            ("data: {\n\n", Err("an event of the stream is not JSON")),
        ] {
            assert_eq!(told(stream), expected.map_err(str::to_owned), "{stream}");
        }
    }

    #[test]
    fn an_error_is_told_with_its_status_its_code_and_its_message() {
        let told = |code: Option<&'static str>, body: &str| {
            let code = code.map(HeaderValue::from_static);
            refusal(StatusCode::BAD_GATEWAY, code.as_ref(), body.as_bytes()).message
        };
        let nested = r#"{"error":{"message":"m"}}"#;
        assert_eq!(told(Some("decode_lost"), nested), "502 decode_lost (m)");
        assert_eq!(told(None, r#"{"message":"m"}"#), "502 (m)");
        assert_eq!(told(None, r#"{"error":"m"}"#), "502 (m)");
        assert_eq!(told(None, "<html>"), "502 (<html>)");
    }
}
