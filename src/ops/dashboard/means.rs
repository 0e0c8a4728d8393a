//! Means of what the workers say about their load. One answer is of one moment, and requests come and go within it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::fleet::{Members, Role, Worker};
use crate::telemetry::Loads;

/// A load of so many seconds ago counts for a third.
const MEMORY_SECONDS: f64 = 10.0;

/// The means so far, and when they were made.
#[derive(Default)]
pub(super) struct Means(Mutex<Option<(Instant, Loads)>>);

impl Means {
    /// The means with the loads of this moment; `None` where a role does not tell its load.
    pub(super) fn with(&self, members: &Members, now: Instant) -> Option<Loads> {
        let mut means = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(present) = present(members) else {
            *means = None;
            return None;
        };
        let mean = match means.take() {
            None => present,
            Some((before, mean)) => {
                let seconds = now.saturating_duration_since(before).as_secs_f64();
                let weight = 1.0 - (-seconds / MEMORY_SECONDS).exp();
                mean.towards(&present, weight)
            }
        };
        *means = Some((now, mean.clone()));
        Some(mean)
    }
}

/// The loads of this moment, over all workers of each role: those that do not tell are taken for the mean of the others.
fn present(members: &Members) -> Option<Loads> {
    let count = |value: Option<u64>| value.unwrap_or(0) as f64;
    let of = |role: Role, value: &dyn Fn(&crate::fleet::Loads) -> f64| {
        let workers = members.of(role);
        let told = workers.iter().filter_map(|worker| worker.loads());
        let values: Vec<f64> = told.map(|loads| value(&loads)).collect();
        let sum = values.iter().sum::<f64>();
        (!values.is_empty()).then(|| sum / values.len() as f64 * workers.len() as f64)
    };
    // What waits for the other role counts as waiting as well. Source: SGLang 0.5.23, responses of a leg without its peer.
    let scheduled = |loads: &crate::fleet::Loads| {
        let elsewhere = count(loads.bootstrap) + count(loads.prealloc) + count(loads.transfer);
        (count(loads.waiting) - elsewhere).max(0.0)
    };
    let decodes = members.of(Role::Decode).len().max(1) as f64;
    Some(Loads {
        bootstrap: of(Role::Prefill, &|loads| count(loads.bootstrap))?,
        computing: of(Role::Prefill, &|loads| {
            scheduled(loads) + count(loads.running)
        })?,
        sending: of(Role::Prefill, &|loads| count(loads.inflight))?,
        preallocating: of(Role::Decode, &|loads| count(loads.prealloc))?,
        waiting: of(Role::Decode, &scheduled)?,
        decode_use: of(Role::Decode, &|loads| loads.kv_usage.unwrap_or(0.0))? / decodes,
    })
}

/// What a worker says about its load, for its row; `None` where it does not tell.
pub(super) fn of(worker: &Worker) -> Option<serde_json::Value> {
    let loads = worker.loads()?;
    Some(
        loads
            .iter()
            .map(|(what, value)| (what.to_owned(), value.into()))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fleet::Loads as Told;

    #[test]
    fn without_a_load_of_each_role_there_are_no_means() {
        let members = Members::for_tests();
        let means = Means::default();
        let now = Instant::now();
        assert!(means.with(&members, now).is_none());
        members.of(Role::Prefill)[0].note_loads(Some(Told::default()));
        assert!(means.with(&members, now).is_none());
        members.of(Role::Decode)[0].note_loads(Some(Told::default()));
        assert!(means.with(&members, now).is_some());
    }

    #[test]
    fn the_stages_are_told_apart_and_workers_that_say_nothing_are_as_the_others() {
        let members = Members::for_tests();
        members.of(Role::Prefill)[0].note_loads(Some(Told {
            running: Some(1),
            waiting: Some(5),
            bootstrap: Some(3),
            inflight: Some(4),
            ..Told::default()
        }));
        members.of(Role::Decode)[0].note_loads(Some(Told {
            waiting: Some(9),
            prealloc: Some(2),
            transfer: Some(4),
            kv_usage: Some(0.5),
            ..Told::default()
        }));
        let seen = Means::default().with(&members, Instant::now()).unwrap();
        assert_eq!(
            (seen.bootstrap, seen.computing, seen.sending),
            (6.0, 6.0, 8.0)
        );
        assert_eq!(
            (seen.preallocating, seen.waiting, seen.decode_use),
            (2.0, 3.0, 0.5)
        );
    }

    #[test]
    fn a_load_of_ten_seconds_ago_counts_for_a_third() {
        let members = Members::for_tests();
        let means = Means::default();
        let now = Instant::now();
        let tell = |usage| {
            for worker in members.workers() {
                worker.note_loads(Some(Told {
                    kv_usage: Some(usage),
                    ..Told::default()
                }));
            }
        };
        tell(1.0);
        means.with(&members, now);
        tell(0.0);
        let later = means.with(&members, now + Duration::from_secs(10)).unwrap();
        assert!(
            (later.decode_use - (-1.0_f64).exp()).abs() < 1e-9,
            "{later:?}"
        );
    }
}
