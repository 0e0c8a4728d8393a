//! The harness of tests, benchmarks, examples and fuzz targets. Its centre is [`Pair`]: a balancer in the test's
//! runtime, two workers that the test plays byte by byte, and a client that sees every byte.
//!
//! | module | contents |
//! |---|---|
//! | [`pair`] | one or two workers of each role, a balancer and a client |
//! | [`client`], [`worker`] | both ends as raw sockets |
//! | [`bridge`] | the same client over HTTP/2 |
//! | [`dns`] | a DNS server |
//! | [`mock_worker`] | a worker that responds by itself, on hyper |
//! | [`process`], [`program`] | the binary and the examples as processes |
//! | [`samples`] | requests for several samples per prompt |
//! | [`sim`] | a raw client for the simulated workers |
//! | [`browser`] | Chromium, for the dashboard |
//! | [`soak`] | a load with faults, for seconds or for minutes |
//! | [`tls`] | certificates, and TLS in front of a worker |
//! | [`properties`] | what must hold for any input; shared with the fuzz targets |
//! | [`baseline`], [`plain_proxy`] | recorded costs, and Pingora alone to compare with |
//! | [`http2`] | a client of HTTP/2, stream by stream |
//! | [`markdown`] | the tables and code blocks of the documents |
//!
//! Nothing sleeps: a test waits for an event on a socket, for [`PATIENCE`] at most.

#![allow(clippy::unwrap_used)]

pub mod baseline;
pub mod bridge;
pub mod browser;
pub mod client;
pub mod dns;
pub mod http2;
pub mod markdown;
pub mod mock_worker;
pub mod pair;
pub mod plain_proxy;
pub mod process;
pub mod program;
pub mod properties;
pub mod samples;
pub mod sim;
pub mod soak;
pub mod tls;
pub mod worker;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use mini_lb::{Handle, MiniLbConfig, MiniLoadBalancer};
use tokio::task::JoinHandle;

pub use client::{Answer, Client};
pub use pair::{Pair, TwoPairs};
pub use process::{Ended, Process, Signal};
pub use worker::{Exchange, Worker};

/// A test that waits this long has failed. No assertion depends on it: it only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

pub const CHAT: &str = "/v1/chat/completions";
/// A request whose response is one JSON document.
pub const BODY: &str = r#"{"text":"a"}"#;
/// A request whose response is a stream of events.
pub const STREAM: &str = r#"{"stream":true}"#;

/// The output of the future, or a failed test that names what it waited for.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

/// A running balancer. Stopped when dropped.
pub struct Balancer {
    pub address: SocketAddr,
    handle: Handle,
    served: JoinHandle<()>,
}

impl Balancer {
    /// Starts in front of one prefill worker, whose bootstrap port is 8998, and one decode worker.
    pub async fn of(prefill: &Worker, decode: &Worker) -> Self {
        Self::start(config(&[prefill.url()], &[decode.url()])).await
    }

    pub async fn start(config: MiniLbConfig) -> Self {
        let balancer = MiniLoadBalancer::new(config).unwrap();
        let handle = balancer.handle();
        let served = tokio::spawn(async move { balancer.start().await.unwrap() });
        let address = soon("the balancer listens", handle.address())
            .await
            .unwrap();
        Self {
            address,
            handle,
            served,
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A client of the admin listener.
    pub async fn admin(&self) -> Client {
        Client::connect(self.admin_address().await).await
    }

    /// The address of the admin listener.
    pub async fn admin_address(&self) -> SocketAddr {
        let address = self.handle.admin_address().await;
        address.expect("a listener for administration")
    }

    /// A client of the listener for metrics.
    pub async fn scraper(&self) -> Client {
        let address = self.handle.metrics_address().await;
        Client::connect(address.expect("a listener for metrics")).await
    }

    /// Gives the balancer another configuration.
    pub async fn reload(&self, config: MiniLbConfig) {
        soon("the configuration is taken", self.handle.reload(config))
            .await
            .unwrap();
    }

    /// Stops the balancer and waits for its end.
    pub async fn stop(mut self) {
        self.handle.stop();
        soon("the balancer ends", &mut self.served).await.unwrap();
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

/// A configuration on a free port; the bootstrap port of every prefill worker is 8998.
pub fn config(prefills: &[String], decodes: &[String]) -> MiniLbConfig {
    MiniLbConfig::new(
        "127.0.0.1".into(),
        0,
        prefills
            .iter()
            .map(|url| (url.clone(), Some(8998)))
            .collect(),
        decodes.to_vec(),
        60,
    )
    // Workers of tests count the requests that they get.
    .health_check_interval(None)
}

/// The text of a POST with a JSON body and a Content-Length.
pub fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: balancer\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}
