//! The choice of the pairs that are tried, and the effect of their generations on earlier checks.

use futures_util::StreamExt;
use futures_util::stream;

use super::agreement::misfit;
use super::ask::{Asker, Visit};
use super::bootstrap;
use super::cli::Pairs;
use super::facts::Sizes;
use super::generate::{self, Needs, generate};
use super::report::{Check, PairReport, Status, WorkerReport};
use crate::config::{BootstrapSpec, Config};

/// Generations at once. More would wait for each other on the same workers, and be slow.
const CONCURRENT: usize = 4;

/// Generates through the chosen pairs. The checks concern all pairs.
pub(super) async fn examine(
    config: &Config,
    asker: &Asker,
    pairs: Pairs,
    prefills: &[&Visit],
    decodes: &[&Visit],
) -> (Vec<Check>, Vec<PairReport>) {
    let usable = |visits: &[&Visit]| -> Vec<usize> {
        (0..visits.len())
            .filter(|at| visits[*at].is_usable)
            .collect()
    };
    let (usable_prefills, usable_decodes) = (usable(prefills), usable(decodes));
    let chosen = match pairs {
        Pairs::None => {
            let check = Check::skip(generate::NAME, "not tried, as --pairs none says");
            return (vec![check], Vec::new());
        }
        Pairs::EachWorker => each_worker(&usable_prefills, &usable_decodes),
        Pairs::All => all(&usable_prefills, &usable_decodes),
    };
    if chosen.is_empty() {
        let message = "not tried, because no prefill worker or no decode worker is usable";
        return (vec![Check::skip(generate::NAME, message)], Vec::new());
    }
    let tried = chosen.into_iter().map(|(prefill, decode)| {
        let (prefill, decode) = (prefills[prefill], decodes[decode]);
        examine_one(config, asker, prefill, decode)
    });
    let reports = stream::iter(tried).buffered(CONCURRENT).collect().await;
    (Vec::new(), reports)
}

async fn examine_one(
    config: &Config,
    asker: &Asker,
    prefill: &Visit,
    decode: &Visit,
) -> PairReport {
    let (check, times) = match misfit(&prefill.facts, &decode.facts) {
        Some(property) => {
            let message = format!("not tried, because {} differs", property.replace('_', " "));
            (Check::skip(generate::NAME, message), None)
        }
        None => {
            let specs = (&prefill.subject.spec, &decode.subject.spec);
            let needs = Needs {
                ids: prefill.facts.takes_ids_only || decode.facts.takes_ids_only,
                rank: prefill.facts.sizes.is_some_and(Sizes::are_replicas),
            };
            generate(config, specs, asker, needs).await
        }
    };
    PairReport {
        prefill: prefill.subject.worker.url().to_owned(),
        decode: decode.subject.worker.url().to_owned(),
        check,
        times,
    }
}

/// As few pairs as have each of these workers in one.
fn each_worker(prefills: &[usize], decodes: &[usize]) -> Vec<(usize, usize)> {
    if prefills.is_empty() || decodes.is_empty() {
        return Vec::new();
    }
    let count = prefills.len().max(decodes.len());
    let of = |list: &[usize], at: usize| list[at % list.len()];
    (0..count)
        .map(|at| (of(prefills, at), of(decodes, at)))
        .collect()
}

fn all(prefills: &[usize], decodes: &[usize]) -> Vec<(usize, usize)> {
    let of = |prefill: &usize| {
        decodes
            .iter()
            .map(move |decode| (*prefill, *decode))
            .collect::<Vec<_>>()
    };
    prefills.iter().flat_map(of).collect()
}

/// A configured bootstrap port that is not the reported one is a warning where generations succeed: it may be forwarded.
pub(super) fn soften(worker: &mut WorkerReport, bootstrap: &BootstrapSpec, pairs: &[PairReport]) {
    let of_worker = pairs.iter().filter(|pair| pair.prefill == worker.url);
    let mut ended = of_worker.map(|pair| pair.check.status).peekable();
    // Without a configured port each decode worker dials another one, and not all of them are tried.
    let is_tried = bootstrap.port.is_some() && ended.peek().is_some();
    if !is_tried || ended.any(|status| status != Status::Ok) {
        return;
    }
    for check in &mut worker.checks {
        if check.status == Status::Fail && check.name == bootstrap::PORT {
            check.status = Status::Warn;
            check.message += " (generations through this worker succeed all the same)";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Role;

    #[test]
    fn every_worker_is_in_as_few_pairs_as_possible() {
        assert_eq!(each_worker(&[0, 1, 2], &[0]), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(each_worker(&[1], &[0, 2]), [(1, 0), (1, 2)]);
        assert_eq!(each_worker(&[0, 1], &[0, 1]), [(0, 0), (1, 1)]);
        assert_eq!(each_worker(&[], &[0]), []);
        assert_eq!(all(&[0, 2], &[0, 1]), [(0, 0), (0, 1), (2, 0), (2, 1)]);
        assert_eq!(all(&[0], &[]), []);
    }

    #[test]
    fn a_port_that_is_forwarded_and_serves_is_a_warning() {
        let pair = |check: &Check| PairReport {
            prefill: "http://p".to_owned(),
            decode: "http://d".to_owned(),
            check: check.clone(),
            times: None,
        };
        let checked = |port, pairs: &[PairReport]| {
            let mut worker = WorkerReport {
                role: Role::Prefill,
                url: "http://p".to_owned(),
                checks: vec![
                    Check::fail(bootstrap::PORT, "a", "b"),
                    Check::fail("role", "a", "b"),
                ],
            };
            let host = "p".to_owned();
            soften(&mut worker, &BootstrapSpec { host, port }, pairs);
            worker.checks[1..]
                .iter()
                .for_each(|check| assert_eq!(check.status, Status::Fail));
            worker.checks[0].status
        };
        let (ok, bad) = (Check::ok("generation", "a"), Check::skip("generation", "a"));
        assert_eq!(checked(Some(1), &[]), Status::Fail);
        assert_eq!(checked(Some(1), &[pair(&ok)]), Status::Warn);
        assert_eq!(checked(None, &[pair(&ok)]), Status::Fail);
        assert_eq!(checked(Some(1), &[pair(&ok), pair(&bad)]), Status::Fail);
    }
}
