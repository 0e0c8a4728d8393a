//! The limits of a request, which `config` fills and `proxy` obeys, and how groups of typed settings are declared.
//!
//! A leaf, so that the two need not name each other. No text of a user is read here: `config` has the table of keys,
//! checks each value against its row and hands out the text by key.

use std::num::NonZeroUsize;
use std::time::Duration;

/// Declares a struct whose fields are filled from settings: `field: Type = "key"`, or `field: Group` for a nested
/// group. Every field is read, even after one has failed, so that all problems are reported at once.
macro_rules! setting_group {
    (
        $(#[$of_struct:meta])*
        pub struct $name:ident {
            $( $(#[$of_field:meta])* $field:ident: $type:ty $(= $key:literal)?, )*
        }
    ) => {
        $(#[$of_struct])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$of_field])* pub $field: $type, )*
        }

        impl $crate::limits::Group for $name {
            fn read(settings: &mut impl $crate::limits::Settings) -> Option<Self> {
                $( let $field: Option<$type> = $crate::limits::setting_group!(@read settings $($key)?); )*
                Some(Self { $( $field: $field?, )* })
            }
        }
    };
    (@read $settings:ident $key:literal) => { $settings.get($key) };
    (@read $settings:ident) => { $crate::limits::Group::read($settings) };
}
pub(crate) use setting_group;

setting_group! {
    /// The limits of one request. No duration is zero.
    pub struct RequestLimits {
        /// The longest request body that is accepted, in bytes. Never zero.
        max_body_bytes: usize = "max_payload_size",
        /// Requests at once; `None` until the server has derived it from the open files. Never zero.
        max_inflight_requests: Option<usize> = "max_inflight_requests",
        /// Samples of one request, over all its prompts. Never zero.
        max_samples: usize = "max_samples",
        /// From the head to the end of an empty request body; each MiB of a body adds a second.
        body_timeout: Duration = "body_timeout_secs",
        /// The wait in the queue while all workers are full.
        queue_timeout: Duration = "queue_timeout_secs",
        /// How long a client may read nothing of its response.
        client_stall_timeout: Duration = "client_stall_timeout_secs",
        /// From the start of a request to the first byte of a streamed response.
        first_token_timeout: Duration = "first_token_timeout_secs",
        /// Between two pieces of a streamed response.
        stream_idle_timeout: Duration = "stream_idle_timeout_secs",
        /// The silence after which a comment keeps a stream alive; `None` is never.
        stream_keepalive: Option<Duration> = "stream_keepalive_secs",
        /// From the start of a request to the last byte of a response that is not streamed.
        request_timeout: Duration = "request_timeout_secs",
        /// From the start of a request to the last byte of a streamed response; `None` is no limit.
        stream_timeout: Option<Duration> = "stream_timeout_secs",
        /// The most alternatives per token that a request may ask for.
        max_top_logprobs: u32 = "max_top_logprobs",
        /// Which responses say where their time went.
        server_timing: ServerTiming = "server_timing",
        /// Whether a request may name its workers.
        allow_target_headers: bool = "allow_target_headers",
        /// How often a request is sent to another pair, where that is safe.
        max_retries: u32 = "retry_max_retries",
        /// With vLLM: whether decode computes a prompt where its prefill has failed.
        vllm_decode_alone: bool = "vllm_decode_alone",
        /// With vLLM: how blocks get from prefill to decode.
        kv_connector: KvConnector = "kv_connector",
        /// With vLLM: how long a prefill worker keeps the blocks of a prompt for decode.
        vllm_kv_lease: Duration = "vllm_kv_lease_secs",
    }
}

impl RequestLimits {
    /// Attempts of one request, at least 1.
    pub(crate) fn max_attempts(&self) -> u32 {
        self.max_retries.saturating_add(1)
    }
}

/// How blocks get from a prefill worker of vLLM to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvConnector {
    /// Prefill's response has the parameters of the transfer.
    Nixl,
    /// The balancer chooses the id of the transfer, and asks prefill's bootstrap server for its engine.
    Mooncake,
}

impl KvConnector {
    /// The words of the setting.
    pub(crate) const WORDS: &[&str] = &["nixl", "mooncake"];
}

impl FromText for KvConnector {
    fn from_text(text: &str) -> Option<Self> {
        let mut words = Self::WORDS.iter().zip([Self::Nixl, Self::Mooncake]);
        words.find_map(|(word, connector)| (*word == text).then_some(connector))
    }
}

/// Which responses say where their time went, and name their pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerTiming {
    /// None.
    Off,
    /// Those whose request asks for it and could read the pages for observers.
    Observers,
    /// Those whose request asks for it.
    OnRequest,
    /// All.
    Always,
}

impl ServerTiming {
    /// The words of the setting.
    pub(crate) const WORDS: &[&str] = &["off", "observers", "on_request", "always"];
}

impl FromText for ServerTiming {
    fn from_text(text: &str) -> Option<Self> {
        let all = [Self::Off, Self::Observers, Self::OnRequest, Self::Always];
        let mut words = Self::WORDS.iter().zip(all);
        words.find_map(|(word, timing)| (*word == text).then_some(timing))
    }
}

/// A source of checked settings.
pub(crate) trait Settings {
    /// The value of this key. `None` when it cannot be used, which the source has then reported.
    fn get<T: FromText>(&mut self, key: &'static str) -> Option<T>;
}

/// A struct that is filled from settings.
pub(crate) trait Group: Sized {
    /// Reads every field. `None` when one of them cannot be used.
    fn read(settings: &mut impl Settings) -> Option<Self>;
}

/// A type that a setting can have. The row of the setting has checked form and bounds before.
pub(crate) trait FromText: Sized {
    fn from_text(text: &str) -> Option<Self>;

    /// The value of a key that has no default and that no source sets; `None` when such a key must be set.
    fn absent() -> Option<Self> {
        None
    }
}

macro_rules! from_text_by_parsing {
    ($($type:ty),*) => {
        $( impl FromText for $type {
            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        } )*
    };
}
from_text_by_parsing!(bool, u16, u32, usize, String);

/// Seconds with a fraction.
impl FromText for Duration {
    fn from_text(text: &str) -> Option<Self> {
        Duration::try_from_secs_f64(text.parse().ok()?).ok()
    }
}

/// `None` for zero.
impl FromText for Option<Duration> {
    fn from_text(text: &str) -> Option<Self> {
        let duration = Duration::from_text(text)?;
        Some((!duration.is_zero()).then_some(duration))
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// `None` for zero.
impl FromText for Option<usize> {
    fn from_text(text: &str) -> Option<Self> {
        let number = usize::from_text(text)?;
        Some((number > 0).then_some(number))
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// `None` for zero, and for -1, with which sglang_router turns a limit off.
impl FromText for Option<NonZeroUsize> {
    fn from_text(text: &str) -> Option<Self> {
        match text {
            "-1" => Some(None),
            text => usize::from_text(text).map(NonZeroUsize::new),
        }
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl FromText for Option<String> {
    fn from_text(text: &str) -> Option<Self> {
        Some(Some(text.to_owned()))
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}
