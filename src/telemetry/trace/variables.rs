//! The variables of OpenTelemetry, as far as the SDK does not read them itself: it takes `OTEL_EXPORTER_OTLP_HEADERS`,
//! `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_BSP_*`.
//!
//! A variable that is empty is not set, and one whose value cannot be used is reported and not used.
//!
//! Source: OpenTelemetry specification, `configuration/sdk-environment-variables.md`, `protocol/exporter.md`.

use std::time::Duration;

use super::sampler::Sampler;

/// The path of OTLP over HTTP.
const HTTP_PATH: &str = "/v1/traces";
/// The method of OTLP over gRPC, as a path. Source: opentelemetry-proto, `collector/trace/v1/trace_service.proto`.
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The collector of a configuration that names none: that of sglang_router.
const DEFAULT: &str = "localhost:4317";
const GRPC_PORT: u16 = 4317;
const TIMEOUT: Duration = Duration::from_secs(10);
const QUEUE: usize = 2048;

/// What the variables say.
#[derive(Debug)]
pub(super) struct Variables {
    pub(super) is_disabled: bool,
    pub(super) endpoint: Endpoint,
    pub(super) sampler: Sampler,
    /// The deadline of one export.
    pub(super) timeout: Duration,
    /// The most spans that wait. Never zero.
    pub(super) queue: usize,
    /// `None` where the resource is named elsewhere.
    pub(super) service_name: Option<&'static str>,
    /// A file with the certificates of the authorities that the collector's may have.
    pub(super) roots: Option<String>,
    pub(super) warnings: Vec<String>,
}

/// Where spans go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// With scheme, authority and path.
    pub(super) uri: String,
    pub(super) is_grpc: bool,
}

impl Variables {
    /// The variables that `variable` gives, under the endpoint of the settings.
    pub(super) fn of(endpoint: Option<&str>, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let of_traces = |name: &str| {
            set(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let mut warnings = Vec::new();
        let mut parsed = |name: &str, value: Option<String>| {
            let number = value.as_ref()?.trim().parse::<u64>().ok();
            if number.is_none() {
                warnings.push(format!("{name} is no number and not used"));
            }
            number
        };
        let timeout = parsed("OTEL_EXPORTER_OTLP_TIMEOUT", of_traces("TIMEOUT"));
        let queue = set("OTEL_BSP_MAX_QUEUE_SIZE");
        let queue = parsed("OTEL_BSP_MAX_QUEUE_SIZE", queue).filter(|queue| *queue > 0);
        let sampler = match set("OTEL_TRACES_SAMPLER") {
            None => Ok(Sampler::DEFAULT),
            Some(name) => Sampler::named(name.trim(), set("OTEL_TRACES_SAMPLER_ARG").as_deref()),
        };
        let sampler = sampler.unwrap_or_else(|why| {
            warnings.push(format!("{why}, every request is sampled"));
            Sampler::DEFAULT
        });
        let protocol = of_traces("PROTOCOL");
        if protocol.as_ref().is_some_and(|name| name == "http/json") {
            warnings.push("OTEL_EXPORTER_OTLP_PROTOCOL: http/protobuf instead of http/json".into());
        }
        let is = |name: &str, word: &str| set(name).is_some_and(|v| v.eq_ignore_ascii_case(word));
        let names_service = set("OTEL_SERVICE_NAME").is_some()
            || set("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|all| all.contains("service.name="));
        Self {
            is_disabled: is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none"),
            endpoint: match endpoint {
                Some(endpoint) => Endpoint::of_setting(endpoint),
                None => Endpoint::of_variables(&set, protocol.as_deref()),
            },
            sampler,
            timeout: timeout.map_or(TIMEOUT, Duration::from_millis),
            queue: queue.map_or(QUEUE, |queue| queue as usize),
            service_name: (!names_service).then_some(env!("CARGO_PKG_NAME")),
            roots: of_traces("CERTIFICATE"),
            warnings,
        }
    }
}

impl Endpoint {
    /// A URL is OTLP over HTTP, at the usual path unless it has one. Host and port alone are gRPC, as in sglang_router.
    fn of_setting(text: &str) -> Self {
        match text.contains("://") {
            true if path_of(text).is_empty() => Self::http(text, HTTP_PATH),
            true => Self::http(text, ""),
            false => Self::grpc(text),
        }
    }

    fn of_variables(set: &dyn Fn(&str) -> Option<String>, protocol: Option<&str>) -> Self {
        let is_grpc = |text: &str| match protocol {
            Some(protocol) => protocol == "grpc",
            None => !text.contains("://"),
        };
        let of_traces = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let of_all = set("OTEL_EXPORTER_OTLP_ENDPOINT");
        match (of_traces, of_all) {
            (Some(text), _) | (None, Some(text)) if is_grpc(&text) => Self::grpc(&text),
            // The variable for traces alone is the whole URL.
            (Some(text), _) => Self::http(&text, ""),
            (None, Some(text)) => Self::http(&text, HTTP_PATH),
            (None, None) if protocol.is_some_and(|protocol| protocol != "grpc") => {
                Self::http("http://localhost:4318", HTTP_PATH)
            }
            (None, None) => Self::grpc(DEFAULT),
        }
    }

    fn http(url: &str, path: &str) -> Self {
        let scheme = if url.contains("://") { "" } else { "http://" };
        Self {
            uri: format!("{scheme}{}{path}", url.trim_end_matches('/')),
            is_grpc: false,
        }
    }

    /// Host and port of a text that may be a URL; its path is the method's.
    fn grpc(text: &str) -> Self {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit(']').next().unwrap_or_default();
        let port = match host.contains(':') {
            true => String::new(),
            false => format!(":{GRPC_PORT}"),
        };
        Self {
            uri: format!("{scheme}://{authority}{port}{GRPC_PATH}"),
            is_grpc: true,
        }
    }
}

/// The path of a URL, empty for that of a URL with a host alone.
fn path_of(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    rest.split_once('/').map_or("", |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::super::sampler::Root;
    use super::*;

    fn with(endpoint: Option<&str>, set: &[(&str, &str)]) -> Variables {
        Variables::of(endpoint, &|name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_scheme_of_the_setting_chooses_the_protocol() {
        let grpc = |authority: &str| (format!("http://{authority}{GRPC_PATH}"), true);
        let http = |uri: &str| (uri.to_owned(), false);
        for (setting, expected) in [
            ("collector:4317", grpc("collector:4317")),
            ("collector", grpc("collector:4317")),
            ("[::1]:9", grpc("[::1]:9")),
            ("[::1]", grpc("[::1]:4317")),
            ("http://c:4318", http("http://c:4318/v1/traces")),
            ("https://c/", http("https://c/v1/traces")),
            ("http://c/own/path", http("http://c/own/path")),
        ] {
            let Endpoint { uri, is_grpc } = with(Some(setting), &[]).endpoint;
            assert_eq!((uri, is_grpc), expected, "{setting}");
        }
    }

    #[test]
    fn the_variables_have_their_standard_meaning() {
        let all = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let protocol = "OTEL_EXPORTER_OTLP_PROTOCOL";
        let uri = |set: &[(&str, &str)]| with(None, set).endpoint.uri;
        assert_eq!(
            uri(&[(all, "http://c:1/base/")]),
            "http://c:1/base/v1/traces"
        );
        assert_eq!(
            uri(&[(all, "http://c:1"), (traces, "http://t/x")]),
            "http://t/x"
        );
        assert_eq!(uri(&[(traces, "http://t:2"), (all, "")]), "http://t:2");
        let grpc = |authority| format!("{authority}{GRPC_PATH}");
        assert_eq!(
            uri(&[(all, "https://c:1"), (protocol, "grpc")]),
            grpc("https://c:1")
        );
        assert_eq!(uri(&[]), grpc("http://localhost:4317"));
        assert_eq!(
            uri(&[(protocol, "http/protobuf")]),
            "http://localhost:4318/v1/traces"
        );
        // A flag is nearer than a variable.
        assert_eq!(
            with(Some("a:1"), &[(traces, "http://t")]).endpoint.uri,
            grpc("http://a:1")
        );

        let found = with(
            None,
            &[
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "9"),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "7"),
                ("OTEL_SERVICE_NAME", "edge"),
                ("OTEL_SDK_DISABLED", "TRUE"),
            ],
        );
        assert_eq!(found.sampler.root, Root::Ratio(0.25));
        assert_eq!((found.timeout.as_millis(), found.queue), (250, 7));
        assert_eq!((found.service_name, found.is_disabled), (None, true));
        assert_eq!(found.warnings.len(), 0, "{:?}", found.warnings);
        assert_eq!(with(None, &[]).service_name, Some("mini-lb"));
    }

    #[test]
    fn a_value_that_cannot_be_used_is_reported_and_not_used() {
        let found = with(
            None,
            &[
                ("OTEL_TRACES_SAMPLER", "xray"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ],
        );
        assert_eq!(found.warnings.len(), 3, "{:?}", found.warnings);
        assert_eq!((found.sampler, found.queue), (Sampler::DEFAULT, QUEUE));
    }
}
