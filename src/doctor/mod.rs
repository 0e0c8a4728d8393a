//! `mini-lb doctor`: examines the workers of a configuration before the first request, and reports each problem with a remedy.
//!
//! | file | what it holds |
//! |---|---|
//! | `cli` | the flags |
//! | `ask` | the questions to one worker, with a deadline each |
//! | `engine` | whether a worker is of the engine of the configuration, and the questions to one of vLLM |
//! | `facts` | the settings that a worker reports |
//! | `agreement` | whether the facts of all workers fit together |
//! | `bootstrap` | the port and the address that decode dials |
//! | `machine` | the configuration, deadlines, open files |
//! | `pairs`, `generate` | which pairs are tried, and one real request through each |
//! | `report`, `text`, `json` | the result, for people and for programs |
//!
//! Nothing is changed on a worker, and every step ends: with its result, or at its deadline.

mod agreement;
mod ask;
mod bootstrap;
pub mod cli;
mod engine;
mod facts;
mod generate;
mod json;
mod machine;
mod pairs;
mod report;
mod text;

use futures_util::StreamExt;
use futures_util::stream;

use agreement::{Compared, compare};
use ask::{Asker, Subject, Visit};
use cli::DoctorArgs;
use report::{Check, Report, Status, WorkerReport};

use crate::config::Config;
use crate::fleet::Role;
use crate::server::{StartError, reach};

/// Workers that are asked at once.
const CONCURRENT: usize = 16;

/// The result of an examination.
pub struct Examination {
    report: Report,
    is_json: bool,
}

impl Examination {
    /// Whether requests can be expected to succeed: there may be warnings.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.report.verdict() != Status::Fail
    }

    /// The output of the command.
    #[must_use]
    pub fn output(&self) -> String {
        match self.is_json {
            true => format!("{:#}\n", json::document(&self.report)),
            false => text::Text(&self.report).to_string(),
        }
    }
}

/// Examines everything.
///
/// # Errors
/// The server would not start either: no usable root certificates, or a key that cannot be sent in a header.
pub async fn examine(config: &Config, args: &DoctorArgs) -> Result<Examination, StartError> {
    let connect_timeout = config.workers.connect_timeout.min(args.timeout);
    let (workers, client) = reach(config, connect_timeout)?;
    let mut asker = Asker {
        client,
        patience: args.timeout,
        connect_timeout,
        health_path: config
            .resilience
            .probes
            .as_ref()
            .map(|probes| probes.path.clone()),
        engine: config.engine.unwrap_or_default(),
        connector: config.requests.kv_connector,
    };
    if config.engine.is_none() {
        asker.engine = engine::told(&asker, &workers).await;
    }
    let specs = config.prefill.iter().chain(&config.decode).cloned();
    let subjects = workers.into_iter().zip(specs);
    let visits = subjects.map(|(worker, spec)| asker.visit(Subject { worker, spec }));
    let visits: Vec<Visit> = stream::iter(visits).buffered(CONCURRENT).collect().await;
    let of = |role| -> Vec<&Visit> {
        let visits = visits.iter();
        visits
            .filter(|visit| visit.subject.worker.role() == role)
            .collect()
    };
    let (prefills, decodes) = (of(Role::Prefill), of(Role::Decode));
    let (fleet, pairs) = pairs::examine(config, &asker, args.pairs, &prefills, &decodes).await;
    let mut workers = reports(&asker, &visits, &prefills, &decodes).await;
    for (worker, visit) in workers.iter_mut().zip(&visits) {
        if let Some(bootstrap) = &visit.subject.spec.bootstrap {
            pairs::soften(worker, bootstrap, &pairs);
        }
    }
    let running = decodes.iter().filter_map(|visit| visit.facts.max_running);
    let report = Report {
        configuration: configuration(config, running.reduce(u64::saturating_add)),
        workers,
        fleet,
        pairs,
    };
    Ok(Examination {
        report,
        is_json: args.json,
    })
}

fn configuration(config: &Config, running: Option<u64>) -> Vec<Check> {
    // The addresses of bootstrap servers have checks of their own.
    let of_workers = config.bootstrap_warnings();
    let told: Vec<_> = config
        .warnings
        .iter()
        .filter(|warning| !of_workers.contains(warning))
        .collect();
    let mut checks = machine::configuration(config, &told);
    checks.push(machine::timeouts(&config.requests));
    checks.push(machine::open_files(config, running));
    checks
}

/// The checks of each worker: its own, those beside the other workers, and its bootstrap server.
async fn reports(
    asker: &Asker,
    visits: &[Visit],
    prefills: &[&Visit],
    decodes: &[&Visit],
) -> Vec<WorkerReport> {
    let known: Vec<_> = visits
        .iter()
        .filter(|visit| !visit.facts.is_empty())
        .collect();
    let compared: Vec<_> = known
        .iter()
        .map(|visit| Compared {
            role: visit.subject.worker.role(),
            url: visit.subject.worker.url(),
            facts: &visit.facts,
        })
        .collect();
    let mut agreements = compare(&compared).into_iter();
    let mut reports = Vec::with_capacity(visits.len());
    let examined = visits
        .iter()
        .map(|visit| bootstrap::examine(asker, visit, prefills, decodes));
    let bootstraps: Vec<_> = stream::iter(examined).buffered(CONCURRENT).collect().await;
    for (visit, bootstrap) in visits.iter().zip(bootstraps) {
        let mut checks = visit.checks.clone();
        if !visit.facts.is_empty() {
            checks.extend(agreements.next().unwrap_or_default());
        }
        checks.extend(bootstrap);
        reports.push(WorkerReport {
            role: visit.subject.worker.role(),
            url: visit.subject.worker.url().to_owned(),
            checks,
        });
    }
    reports
}
