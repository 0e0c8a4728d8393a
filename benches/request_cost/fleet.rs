//! The simulated workers behind the targets: without compute time, one process for each role.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use mini_lb::bench::fetch;
use mini_lb::pd::Engine;
use serde_json::Value;

use crate::programs::balancer::{Worker, Workers};
use crate::programs::simulated::Simulated;

/// The number of workers and their speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Prefill workers, with as many decode workers and as many ordinary ones for targets with one leg.
    pub of_each: usize,
    /// Time between two output tokens.
    pub gap: Duration,
}

/// The workers of one workload.
pub struct Fleet {
    pub prefill: Vec<Worker>,
    pub decode: Vec<Worker>,
    pub single: Vec<Worker>,
    pub engine: Engine,
    _processes: Vec<Simulated>,
}

/// Sums of the workers' counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections ever accepted.
    pub connections: u64,
    /// Rooms that wait or transfer now, and leases of blocks.
    pub open_rooms: u64,
    /// Violations of the protocol.
    pub violations: u64,
}

impl Fleet {
    /// Starts the workers and waits until they serve.
    pub fn start(mini_lb: &str, engine: Engine, plan: Plan) -> Result<Fleet, String> {
        let mut processes = Vec::new();
        let mut of = |role: &str| {
            let role = match engine {
                Engine::Sglang => role.to_owned(),
                Engine::Vllm => format!("vllm-{role}"),
            };
            let process = start_role(mini_lb, &role, plan)?;
            let workers = process.workers.clone();
            processes.push(process);
            Ok::<_, String>(workers)
        };
        Ok(Fleet {
            prefill: of("prefill")?,
            decode: of("decode")?,
            single: of("single")?,
            engine,
            _processes: processes,
        })
    }

    /// Workers of SGLang that run elsewhere. Those of decode serve as ordinary ones too.
    pub fn of(prefill: Vec<Worker>, decode: Vec<Worker>) -> Fleet {
        Fleet {
            prefill,
            single: decode.clone(),
            decode,
            engine: Engine::Sglang,
            _processes: Vec::new(),
        }
    }

    /// The workers for a balancer.
    pub fn of_roles(&self) -> Workers<'_> {
        Workers {
            prefill: &self.prefill,
            decode: &self.decode,
            single: &self.single,
        }
    }

    /// Reads the counters of every worker. The connections that this opens are not counted.
    pub async fn counts(&self, asked_before: u64) -> Result<Counts, String> {
        let mut sum = Counts::default();
        for worker in self.workers() {
            let mut request = Request::new(Full::<Bytes>::default());
            *request.uri_mut() = http::Uri::from_static("/sim/journal");
            let host = worker.address.to_string().parse().map_err(|_| "host")?;
            request.headers_mut().insert(http::header::HOST, host);
            let answer = fetch(worker.address, request)
                .await
                .map_err(|failure| format!("a worker's journal: {failure}"))?;
            let journal: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            let number = |key: &str| journal[key].as_u64().unwrap_or(0);
            sum.connections += number("connections_total").saturating_sub(asked_before + 1);
            sum.open_rooms += number("open_rooms") + number("open_leases");
            let violations = journal["violations"].as_object();
            sum.violations += violations
                .into_iter()
                .flat_map(|rules| rules.values())
                .filter_map(Value::as_u64)
                .sum::<u64>();
        }
        Ok(sum)
    }

    /// The counters once no room is open, or after some seconds: rooms that are open then were left behind.
    pub async fn settled_counts(&self, asked_before: &mut u64) -> Result<Counts, String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let counts = self.counts(*asked_before).await?;
            *asked_before += 1;
            if counts.open_rooms == 0 || Instant::now() > deadline {
                return Ok(counts);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.prefill.iter().chain(&self.decode).chain(&self.single)
    }
}

fn start_role(mini_lb: &str, role: &str, plan: Plan) -> Result<Simulated, String> {
    let options = [
        format!("--output-token-us={}", plan.gap.as_micros()),
        "--prompt-token-us=0".to_owned(),
        "--transfer-us=0".to_owned(),
    ];
    Simulated::start(mini_lb, role, plan.of_each, &options)
}
