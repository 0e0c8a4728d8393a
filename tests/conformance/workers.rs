//! The workers behind mini-lb.
//!
//! The environment variables are described in `main.rs`.

use mini_lb::MiniLbConfig;

/// The time limit of a request; the cases are short.
const REQUEST_TIMEOUT_SECS: u64 = 60;

/// The engine of all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Engine {
    #[default]
    Sglang,
    Vllm,
}

impl Engine {
    /// The word of mini-lb's configuration.
    const fn name(self) -> &'static str {
        match self {
            Self::Sglang => "sglang",
            Self::Vllm => "vllm",
        }
    }

    /// The POST that empties the prefix cache of a worker.
    pub(crate) const fn flush(self) -> &'static str {
        match self {
            Self::Sglang => "/flush_cache?timeout=10",
            Self::Vllm => "/reset_prefix_cache",
        }
    }
}

/// The workers of one run.
pub(crate) struct Workers {
    pub(crate) engine: Engine,
    /// URL and bootstrap port of each prefill worker.
    pub(crate) prefill: Vec<(String, Option<u16>)>,
    /// URL of each decode worker.
    pub(crate) decode: Vec<String>,
    /// URL of an ordinary server of the same model. Without it responses are not compared.
    pub(crate) ordinary: Option<String>,
    /// The served model; by default the first of `/v1/models`.
    pub(crate) model: Option<String>,
    /// Whether a case is sent with each `n` from 2 to 4, or with one of them.
    pub(crate) each_n: bool,
    /// Whether the workers are simulated: these do not look at every option.
    pub(crate) simulated: bool,
}

impl Workers {
    /// `None` when the environment names no pair.
    pub(crate) fn from_environment() -> Option<Workers> {
        let list = |name: &str| -> Option<Vec<String>> {
            let text = std::env::var(name).ok()?;
            let entries = text.split(',').map(|entry| entry.trim().to_owned());
            Some(entries.filter(|entry| !entry.is_empty()).collect())
        };
        let prefill =
            list("MINI_LB_TEST_PREFILL")?
                .into_iter()
                .map(|entry| match entry.split_once(' ') {
                    Some((url, port)) => (url.to_owned(), port.trim().parse().ok()),
                    None => (entry, None),
                });
        let engine = std::env::var("MINI_LB_TEST_ENGINE").unwrap_or_default();
        Some(Workers {
            engine: match &*engine {
                "vllm" => Engine::Vllm,
                _ => Engine::Sglang,
            },
            prefill: prefill.collect(),
            decode: list("MINI_LB_TEST_DECODE")?,
            ordinary: std::env::var("MINI_LB_TEST_ORDINARY").ok(),
            model: std::env::var("MINI_LB_TEST_MODEL").ok(),
            each_n: true,
            simulated: false,
        })
    }

    /// Every worker, the ordinary one included.
    pub(crate) fn urls(&self) -> impl Iterator<Item = &str> {
        let prefill = self.prefill.iter().map(|(url, _)| url.as_str());
        let decode = self.decode.iter().map(String::as_str);
        prefill.chain(decode).chain(self.ordinary.as_deref())
    }

    /// The configuration of a balancer in front of the pair, on a free port.
    pub(crate) fn config(&self) -> MiniLbConfig {
        MiniLbConfig::new(
            "127.0.0.1".to_owned(),
            0,
            self.prefill.clone(),
            self.decode.clone(),
            REQUEST_TIMEOUT_SECS,
        )
        .threads(1)
        .set("engine", self.engine.name())
    }
}
