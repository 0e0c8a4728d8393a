//! mini-lb, the prefill/decode load balancer for SGLang and vLLM, in a program of your own.
//!
//! ```no_run
//! use mini_lb::{MiniLbConfig, MiniLoadBalancer};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = MiniLbConfig::new(
//!     "127.0.0.1".into(),
//!     8080, // 0: the system chooses
//!     vec![("http://10.0.0.1:30000".into(), Some(8998))],
//!     vec!["http://10.0.0.2:30001".into()],
//!     1800,
//! )
//! .set("queue_size", 10);
//! let balancer = MiniLoadBalancer::new(config)?; // every problem of the configuration
//! let handle = balancer.handle();
//! let serving = tokio::spawn(balancer.start());
//! println!("listening on {:?}", handle.address().await); // `None` when it could not listen
//! tokio::signal::ctrl_c().await?;
//! handle.stop(); // live requests may end, new connections are refused
//! serving.await??;
//! # Ok(()) }
//! ```
//!
//! A request comes in once and goes out twice: the same body to one prefill worker and one decode worker, with the three
//! `bootstrap_*` fields that let the two meet. Decode's answer goes back to the client as it arrives; what only prefill
//! knows (the logprobs of the prompt) is spliced into it.
//!
//! # What is left to the program
//!
//! * **Signals.** [`MiniLoadBalancer`] handles none. The program calls [`Handle::stop`] when it is to end, and
//!   [`MiniLoadBalancer::start`] returns when the live requests have ended, at the latest after
//!   `shutdown_grace_period_secs`.
//! * **Another configuration.** [`Handle::reload`] changes workers, keys, policies, limits and timeouts while the balancer
//!   serves. Files are read when a configuration is given: no file is watched.
//! * **The log.** Lines go to the [`log`] facade, with the targets `mini_lb::...` and Pingora's `pingora_...`. Without a
//!   logger nothing is printed, and the settings `log_level` and `log_json` have no effect: they are the binary's. The line of
//!   a request has its fields as key-values too, with the phrase as `message`. Pingora's lines below `info`
//!   may repeat bytes of clients.
//! * **The runtime.** Tokio's, with timers and I/O; all threads of it are used. One process can have several balancers.
//! * **The allocator.** The binary uses jemalloc, because with glibc's the memory of a wave of streams stays.
//!
//! # What is API
//!
//! [`MiniLbConfig`] with its keys, [`MiniLoadBalancer`], [`Handle`], [`StartError`], [`Applied`] and [`ReloadError`], the errors and the values that
//! [`config`] shows, and, for examples and tests, [`sim`]. They follow Semantic Versioning. Everything that these pages do
//! not show is not API, even where it is `pub`: tests, benchmarks, fuzz targets and the binary of this package use it.
//!
//! # Modules
//!
//! | module | what it has | may name |
//! |---|---|---|
//! | [`pd`] | the protocol as pure functions: parse, inject, events, merge, verdict | nothing |
//! | `endpoint` | whole requests and responses, access, header rules | nothing |
//! | `addresses` | the addresses of one worker | nothing |
//! | `histogram` | histograms that are written without a lock | nothing |
//! | `limits` | the limits of a request, and how typed settings are declared | nothing |
//! | `net` | one HTTP exchange with one worker | `addresses`, `endpoint` |
//! | [`fleet`] | the workers, their load, the choice of a pair, rooms in use | `addresses`, `histogram`, `pd` |
//! | `client` | the client's connection, head, key and body | `endpoint` |
//! | `legs` | the two legs of a request | `endpoint`, `fleet`, `net`, `pd` |
//! | `error` | the table of errors | `client`, `endpoint`, `fleet`, `legs`, `net`, `pd` |
//! | `telemetry` | the record of a request, and the sinks that report it | `error`, `fleet`, `histogram`, `pd` |
//! | `proxy` | Pingora's `ProxyHttp`: the life of a request, hook by hook | `client`, `endpoint`, `error`, `fleet`, `legs`, `limits`, `net`, `pd`, `telemetry` |
//! | `discovery` | what makes and watches the workers: the registry of all sources, names and probes | `fleet`, `net`, `pd` |
//! | `ops` | the endpoints without legs | `discovery`, `endpoint`, `error`, `fleet`, `net`, `pd`, `telemetry` |
//! | [`config`] | the user's settings, and the values that the program needs | `limits`, `pd` |
//! | [`sim`] | simulated SGLang and vLLM workers | `pd` |
//! | [`mod@bench`] | a load generator, for users and for `benches/end_to_end` | `pd` |
//! | [`doctor`] | `mini-lb doctor`: examines the workers before the first request | `addresses`, `config`, `endpoint`, `fleet`, `net`, `pd`, `server` |
//! | [`health`] | `mini-lb health`: asks a running balancer whether it is ready | `addresses`, `config`, `net` |
//! | [`rollout`] | `mini-lb rollout`: a command for each worker of a running balancer | `addresses`, `config`, `net` |
//! | [`cli`] | the command line | `bench`, `config`, `doctor`, `health`, `rollout`, `sim` |
//! | `server` | the wiring of all of them into Pingora services | all but `addresses`, `bench`, `cli`, `doctor`, `endpoint`, `error`, `health`, `histogram`, `limits`, `rollout` and `sim` |
//!
//! `tests/library/module_boundaries.rs` walks the sources and fails when a module names one that it must not know.
//!
//! # Features
//!
//! All but `kubernetes` are on by default. A package that embeds the balancer needs none of them.
//!
//! | feature | what it adds |
//! |---|---|
//! | `cli` | [`cli`] with [`doctor`], and the binary with its log on stderr and its allocator |
//! | `sim` | [`sim`]; with `cli`, `mini-lb sim` and `mini-lb demo` |
//! | `bench` | [`mod@bench`]; with `cli`, `mini-lb bench` |
//! | `otel` | traces for OpenTelemetry: without it `enable_trace` has no effect |
//! | `kubernetes` | workers from Kubernetes: without it `service_discovery` is refused |
//! | `dns` | workers by names of DNS: without it `dns+http://` and `srv+http://` are errors |

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg_attr(
    not(feature = "cli"),
    allow(
        dead_code,
        unused_imports,
        reason = "flags are built from the table of settings"
    )
)]
pub mod config;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod fleet;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod health;
#[doc(hidden)]
pub mod pd;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod rollout;
#[cfg(feature = "sim")]
pub mod sim;

mod addresses;
mod client;
mod discovery;
mod endpoint;
mod error;
mod histogram;
mod legs;
mod limits;
mod net;
mod ops;
mod proxy;
mod server;
mod telemetry;

/// What the tests and the fuzz targets judge besides the public modules. No part of the API.
#[doc(hidden)]
pub mod inside {
    pub use crate::client::check;
    pub use crate::config::reloads;
    pub use crate::error::{Code, Retry, Row, Side};
    pub use crate::ops::is_served;
    pub use crate::telemetry::metrics::family::{FAMILIES, Family};
}

pub use config::MiniLbConfig;
#[doc(hidden)]
pub use server::run;
pub use server::{Applied, Handle, MiniLoadBalancer, ReloadError, StartError};
