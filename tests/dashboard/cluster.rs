//! A balancer in front of simulated workers, and clients that keep it busy.

use std::net::SocketAddr;
use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::sim::{SimOptions, Worker};
use serde_json::Value;
use support::program::get;
use support::{Balancer, Client, post};

pub(crate) struct Cluster {
    pub(crate) prefills: Vec<Worker>,
    pub(crate) decodes: Vec<Worker>,
    pub(crate) balancer: Balancer,
}

impl Cluster {
    /// Workers of each role with these options. They are probed often, so that a worker that is gone is soon noticed.
    pub(crate) async fn start(
        (prefills, decodes): (usize, usize),
        options: &SimOptions,
        change: impl FnOnce(MiniLbConfig) -> MiniLbConfig,
    ) -> Self {
        let (mut of_prefill, mut of_decode) = (Vec::new(), Vec::new());
        for _ in 0..prefills {
            of_prefill.push(Worker::start_prefill(options.clone()).await.unwrap());
        }
        for _ in 0..decodes {
            of_decode.push(Worker::start_decode(options.clone()).await.unwrap());
        }
        let named = of_prefill
            .iter()
            .map(|worker| (worker.url(), worker.bootstrap_port()));
        let decode_urls = of_decode.iter().map(Worker::url);
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            named.collect(),
            decode_urls.collect(),
            60,
        )
        .health_check_interval(Some(Duration::from_millis(100)));
        Self {
            balancer: Balancer::start(change(config)).await,
            prefills: of_prefill,
            decodes: of_decode,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.balancer.address
    }

    pub(crate) fn dashboard(&self) -> String {
        format!("http://{}/dashboard", self.address())
    }

    /// Sends requests of `users` at once, `each` of each one after the other.
    pub(crate) async fn load(&self, users: usize, each: usize, body: &str) {
        let users = (0..users).map(|_| {
            let (address, body) = (self.address(), body.to_owned());
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                for _ in 0..each {
                    client.send(post("/generate", &body)).await;
                    client.answer().await;
                }
            })
        });
        for user in users.collect::<Vec<_>>() {
            user.await.unwrap();
        }
    }

    /// What the page would show.
    pub(crate) async fn data(&self) -> Value {
        get(self.address(), "/dashboard/data").await.json()
    }
}

/// A stream of a prompt of this length and so many tokens.
pub(crate) fn stream(prompt: usize, tokens: usize) -> String {
    let ids = vec!["7"; prompt].join(",");
    format!(
        r#"{{"input_ids":[{ids}],"stream":true,"sampling_params":{{"max_new_tokens":{tokens},"ignore_eos":true}}}}"#
    )
}
