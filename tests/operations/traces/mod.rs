//! OpenTelemetry: the spans that a collector gets, what the legs learn of them, and that no request waits for the collector.

mod receiver;

use std::process::Command;

use mini_lb::MiniLbConfig;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use support::program::{get, post_json};
use support::samples::{GENERATE, asking, event};
use support::{
    BODY, CHAT, Client, Exchange, Pair, Process, STREAM, Signal, TwoPairs, Worker, post, soon,
};
use tokio::net::TcpListener;

use receiver::{Protocol, Receiver, attribute};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A request of a client that has a span of its own, with these flags.
fn traced(path: &str, body: &str, flags: &str) -> String {
    let lines = format!(
        "\r\ntraceparent: 00-{TRACE}-{PARENT}-{flags}\r\ntracestate: vendor=1\r\nbaggage: team=search\r\n"
    );
    post(path, body).replacen("\r\n", &lines, 1)
}

fn traces_to(endpoint: String) -> impl FnOnce(MiniLbConfig) -> MiniLbConfig {
    move |config| {
        let config = config.set("enable_trace", true);
        config.set("otlp_traces_endpoint", endpoint)
    }
}

/// The trace, the span and the flags that a leg was told.
fn told(leg: &Exchange) -> (String, String, String) {
    let value = leg.request.header("traceparent").expect("a traceparent");
    let mut fields = value.split('-').skip(1).map(str::to_owned);
    let mut field = || fields.next().unwrap();
    (field(), field(), field())
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn get_of(span: &Span, key: &str) -> String {
    attribute(&span.attributes, key).unwrap_or_default()
}

/// The span of the request, and those of the legs in the order of their attempts, prefill's first.
fn split(spans: Vec<Span>) -> (Span, Vec<Span>) {
    let (mut servers, mut legs): (Vec<_>, Vec<_>) = spans
        .into_iter()
        .partition(|span| span.kind == SpanKind::Server as i32);
    assert_eq!(servers.len(), 1);
    let place = |span: &Span| {
        let number = |key| get_of(span, key).parse::<u32>().unwrap_or_default();
        let is_decode = get_of(span, "mini_lb.role") == "decode";
        (
            number("mini_lb.sample"),
            number("mini_lb.attempt"),
            is_decode,
        )
    };
    legs.sort_by_key(place);
    let server = servers.remove(0);
    for leg in &legs {
        assert_eq!(leg.kind, SpanKind::Client as i32);
        assert_eq!(leg.parent_span_id, server.span_id, "{}", leg.name);
        assert_eq!(leg.trace_id, server.trace_id);
        assert!(server.start_time_unix_nano <= leg.start_time_unix_nano);
        assert!(leg.start_time_unix_nano <= leg.end_time_unix_nano);
        assert!(leg.end_time_unix_nano <= server.end_time_unix_nano);
        let within = |at| (leg.start_time_unix_nano..=leg.end_time_unix_nano).contains(&at);
        assert!(leg.events.iter().all(|event| within(event.time_unix_nano)));
    }
    (server, legs)
}

fn is_error(span: &Span) -> bool {
    let code = span.status.as_ref().map(|status| status.code);
    code == Some(StatusCode::Error as i32)
}

#[tokio::test]
async fn a_stream_has_a_span_and_one_for_each_leg_whose_worker_knows_it() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let mut receiver = Receiver::listen(protocol).await;
        let mut pair = Pair::with(traces_to(receiver.endpoint(protocol))).await;
        let request = traced(CHAT, &asking(CHAT, 1, true), "01");
        let (prefill, mut decode) = pair.legs_of(request).await;
        let legs_told = [told(&prefill), told(&decode)];
        for leg in [&prefill, &decode] {
            assert_eq!(leg.request.header("tracestate"), Some("vendor=1"));
            assert_eq!(leg.request.header("baggage"), Some("team=search"));
        }
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk(&event(CHAT, "a")).await;
        decode.chunk("data: [DONE]\n\n").await;
        decode.chunk("").await;
        assert_eq!(pair.client.answer().await.status(), 200);
        let urls = [pair.prefill.url(), pair.decode.url()];
        pair.balancer.stop().await;

        let (server, legs) = split(receiver.spans().await);
        assert_eq!(server.name, format!("POST {CHAT}"));
        assert_eq!(
            (hex(&server.trace_id), hex(&server.parent_span_id)),
            (TRACE.into(), PARENT.into())
        );
        assert_eq!(server.trace_state, "vendor=1");
        for (key, value) in [
            ("http.request.method", "POST"),
            ("http.route", CHAT),
            ("url.path", CHAT),
            ("url.scheme", "http"),
            ("http.response.status_code", "200"),
            ("network.protocol.version", "1.1"),
            ("client.address", "127.0.0.1"),
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "sglang"),
            ("mini_lb.ended", "ok"),
            ("mini_lb.attempts", "1"),
            ("error.type", ""),
        ] {
            assert_eq!(get_of(&server, key), value, "{key}");
        }
        assert!(!get_of(&server, "gen_ai.response.time_to_first_chunk").is_empty());
        let parts = server.events.iter().map(|event| {
            assert_eq!(event.name, "mini_lb.ttft_part");
            attribute(&event.attributes, "mini_lb.part").unwrap()
        });
        let parts: Vec<_> = parts.collect();
        assert_eq!(
            parts,
            [
                "read", "queue", "retry", "send", "prefill", "decode", "relay"
            ]
        );

        assert_eq!(legs.len(), 2);
        for (((leg, told), url), role) in legs
            .iter()
            .zip(legs_told)
            .zip(urls)
            .zip(["prefill", "decode"])
        {
            let span = (TRACE.into(), hex(&leg.span_id), "01".into());
            assert_eq!(told, span, "{role}");
            assert_eq!(leg.name, format!("{role} POST {CHAT}"));
            assert_eq!(get_of(leg, "url.full"), format!("{url}{CHAT}"));
            assert_eq!(get_of(leg, "server.address"), "127.0.0.1");
            assert!(url.ends_with(&format!(":{}", get_of(leg, "server.port"))));
            assert_eq!(get_of(leg, "http.response.status_code"), "200");
            assert_eq!(get_of(leg, "mini_lb.outcome"), "served");
            assert!(!is_error(leg));
        }
    }
}

#[tokio::test]
async fn a_failed_attempt_has_spans_of_its_own_and_the_blamed_leg_an_error() {
    let mut receiver = Receiver::listen(Protocol::Http).await;
    let mut pairs = TwoPairs::with(traces_to(receiver.endpoint(Protocol::Http))).await;
    pairs.client.send(traced(GENERATE, BODY, "01")).await;
    let ((_, prefill), (_, decode)) = pairs.next_legs().await;
    let first = [told(&prefill), told(&decode)];
    decode.answer("503 Service Unavailable", "{}").await;
    prefill.closed().await;
    let ((_, prefill), (_, decode)) = pairs.next_legs().await;
    let second = [told(&prefill), told(&decode)];
    support::pair::serve((prefill, decode)).await;
    assert_eq!(pairs.client.answer().await.status(), 200);
    pairs.balancer.stop().await;

    let (server, legs) = split(receiver.spans().await);
    assert!(!is_error(&server));
    assert_eq!(get_of(&server, "mini_lb.attempts"), "2");
    let ids: Vec<_> = legs.iter().map(|leg| hex(&leg.span_id)).collect();
    let told: Vec<_> = first
        .into_iter()
        .chain(second)
        .map(|(_, span, _)| span)
        .collect();
    assert_eq!(ids, told);
    let field = |key: &str| legs.iter().map(|leg| get_of(leg, key)).collect::<Vec<_>>();
    assert_eq!(
        field("mini_lb.outcome"),
        ["cancelled", "rejected", "served", "served"]
    );
    assert_eq!(field("error.type"), ["", "503", "", ""]);
    assert_eq!(field("http.request.resend_count"), ["", "", "1", "1"]);
    assert_eq!(
        legs.iter().map(is_error).collect::<Vec<_>>(),
        [false, true, false, false]
    );
}

#[tokio::test]
async fn a_request_that_fails_has_an_error_and_one_that_is_refused_has_no_legs() {
    let mut receiver = Receiver::listen(Protocol::Http).await;
    let mut pair = Pair::with(traces_to(receiver.endpoint(Protocol::Http))).await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    prefill.answer("200 OK", "{}").await;
    decode.begin_stream().await;
    decode.chunk(&event(CHAT, "a")).await;
    pair.client.head().await;
    pair.client.chunk().await;
    decode.reset();
    pair.client.rest().await;
    let mut other = pair.balancer.client().await;
    other.send(post(CHAT, "no JSON")).await;
    assert_eq!(other.answer().await.status(), 400);
    pair.balancer.stop().await;

    let spans = receiver.spans().await;
    let (refused, cut): (Vec<_>, Vec<_>) = spans
        .into_iter()
        .partition(|span| get_of(span, "http.response.status_code") == "400");
    assert_eq!(refused.len(), 1);
    assert!(!is_error(&refused[0]), "the client's fault");
    let (server, legs) = split(cut);
    assert!(server.parent_span_id.is_empty());
    assert!(is_error(&server) && is_error(&legs[1]) && !is_error(&legs[0]));
    assert_eq!(get_of(&server, "error.type"), "decode_lost");
    assert_eq!(get_of(&legs[1], "error.type"), "decode_lost");
}

#[tokio::test]
async fn each_sample_has_its_legs_below_the_one_span_of_the_request() {
    let mut receiver = Receiver::listen(Protocol::Http).await;
    let mut pair = Pair::with(traces_to(receiver.endpoint(Protocol::Http))).await;
    let legs = pair.samples(GENERATE, &asking(GENERATE, 2, false), 2).await;
    let mut told_spans = Vec::new();
    for (prefill, decode) in legs {
        told_spans.extend([told(&prefill).1, told(&decode).1]);
        prefill.answer("200 OK", "{}").await;
        let document = support::samples::document(GENERATE, "x");
        decode.answer("200 OK", &document).await;
    }
    assert_eq!(pair.client.answer().await.status(), 200);
    pair.balancer.stop().await;

    let (server, legs) = split(receiver.spans().await);
    assert_eq!(get_of(&server, "gen_ai.request.choice.count"), "2");
    let samples: Vec<_> = legs
        .iter()
        .map(|leg| get_of(leg, "mini_lb.sample"))
        .collect();
    assert_eq!(samples, ["0", "0", "1", "1"]);
    let mut ids: Vec<_> = legs.iter().map(|leg| hex(&leg.span_id)).collect();
    ids.sort();
    told_spans.sort();
    assert_eq!(ids, told_spans);
}

#[tokio::test]
async fn a_request_that_its_client_does_not_sample_is_passed_on_as_such_and_not_exported() {
    let receiver = Receiver::listen(Protocol::Http).await;
    let mut pair = Pair::with(traces_to(receiver.endpoint(Protocol::Http))).await;
    let (prefill, decode) = pair.legs_of(traced(GENERATE, BODY, "00")).await;
    let (one, other) = (told(&prefill), told(&decode));
    assert_eq!((&*one.0, &*one.2), (TRACE, "00"));
    assert_eq!((&*other.0, &*other.2), (TRACE, "00"));
    assert_ne!(one.1, other.1);
    assert_ne!(one.1, PARENT);
    support::pair::serve((prefill, decode)).await;
    pair.client.answer().await;
    pair.balancer.stop().await;
    assert!(!receiver.was_reached());
}

#[tokio::test]
async fn a_traceparent_that_is_not_valid_begins_a_new_trace_without_its_state() {
    let mut receiver = Receiver::listen(Protocol::Http).await;
    let mut pair = Pair::with(traces_to(receiver.endpoint(Protocol::Http))).await;
    let request = traced(GENERATE, BODY, "01").replace(TRACE, &"0".repeat(32));
    let (prefill, decode) = pair.legs_of(request).await;
    assert_ne!(told(&prefill).0, "0".repeat(32));
    assert_eq!(told(&prefill).0, told(&decode).0);
    assert_eq!(decode.request.header("tracestate"), None);
    assert_eq!(decode.request.header("baggage"), Some("team=search"));
    support::pair::serve((prefill, decode)).await;
    pair.client.answer().await;
    pair.balancer.stop().await;
    let (server, _) = split(receiver.spans().await);
    assert!(server.parent_span_id.is_empty());
}

#[tokio::test]
async fn without_tracing_the_clients_context_reaches_the_workers_unchanged() {
    for context in ["01", "00"] {
        let mut pair = Pair::start().await;
        let (prefill, decode) = pair.legs_of(traced(GENERATE, BODY, context)).await;
        for leg in [&prefill, &decode] {
            let (trace, span, flags) = told(leg);
            assert_eq!((&*trace, &*span, &*flags), (TRACE, PARENT, context));
            assert_eq!(leg.request.header("tracestate"), Some("vendor=1"));
        }
    }
}

/// The binary in front of two workers that serve every request, with these variables.
async fn process(variables: &[(&str, &str)]) -> (Process, std::net::SocketAddr) {
    let (prefill, decode) = Worker::pair().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-lb"));
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--disable-health-check",
    ]);
    command.args(["--enable-trace", "--prefill", &prefill.url(), "8998"]);
    command.args(["--decode", &decode.url()]);
    command.envs(variables.iter().copied());
    prefill.serve("200 OK", "{}");
    decode.serve("200 OK", "{}");
    let mut process = Process::of(command);
    let address = process.address().await;
    (process, address)
}

/// The count of dropped spans for this reason.
async fn dropped(address: std::net::SocketAddr, reason: &str) -> u64 {
    let answer = get(address, "/metrics").await;
    let series = format!("mini_lb_spans_dropped_total{{reason=\"{reason}\"}} ");
    let line = answer
        .text()
        .lines()
        .find_map(|line| line.strip_prefix(&series));
    line.expect("the metric").trim().parse().unwrap()
}

#[tokio::test]
async fn the_variables_of_opentelemetry_name_collector_service_and_fields() {
    let mut receiver = Receiver::listen(Protocol::Http).await;
    let endpoint = format!("http://{}/base/", receiver.address);
    let (mut process, address) = process(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-token=abc"),
        ("OTEL_SERVICE_NAME", "edge"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
    ])
    .await;
    assert_eq!(post_json(address, GENERATE, BODY).await.status(), 200);
    // What waits is exported before the process ends.
    process.signal(Signal::Terminate).await;
    let export = receiver.export().await;
    process.ended().await;
    assert_eq!(export.path, "/base/v1/traces");
    assert_eq!(export.headers["x-token"], "abc");
    let resource = export.request.resource_spans[0].resource.clone().unwrap();
    let of = |key| attribute(&resource.attributes, key);
    assert_eq!(of("service.name").as_deref(), Some("edge"));
    assert_eq!(of("deployment.environment.name").as_deref(), Some("test"));
    assert_eq!(of("telemetry.sdk.language").as_deref(), Some("rust"));
}

#[tokio::test]
async fn a_collector_that_hangs_delays_no_request_and_what_is_dropped_is_counted() {
    // Connections are accepted by the system, and nothing is ever answered.
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (mut process, address) = process(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "6"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"),
    ])
    .await;
    let mut client = Client::connect(address).await;
    for _ in 0..50 {
        client.send(post(GENERATE, BODY)).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    // At most one batch has left the queue, at most two have been collected for it.
    let lost = dropped(address, "queue_full").await;
    assert!((150 - 6 - 6..=150 - 6).contains(&lost), "{lost}");
    process.signal(Signal::Terminate).await;
    process.line("not all spans were exported").await;
    process.ended().await;
}

#[tokio::test]
async fn a_collector_that_refuses_delays_no_request_and_what_is_dropped_is_counted() {
    let endpoint = Worker::refusing().await;
    let (mut process, address) = process(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "1"),
    ])
    .await;
    assert_eq!(post_json(address, GENERATE, BODY).await.status(), 200);
    soon("three spans are counted", async {
        while dropped(address, "export_failed").await < 3 {}
    })
    .await;
    process.line("traces are not exported").await;
}

#[tokio::test]
async fn a_sampler_that_is_off_and_a_disabled_sdk_export_nothing() {
    for variable in [
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_SDK_DISABLED", "true"),
    ] {
        let receiver = Receiver::listen(Protocol::Http).await;
        let endpoint = receiver.endpoint(Protocol::Http);
        let (mut process, address) =
            process(&[variable, ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
        assert_eq!(post_json(address, GENERATE, BODY).await.status(), 200);
        process.signal(Signal::Terminate).await;
        process.ended().await;
        assert!(!receiver.was_reached(), "{variable:?}");
    }
}
