//! A fleet without a prefill worker that can get a request, where decode may compute the prompts by itself.
//!
//! A lease is a pair, and so is everything that is counted and logged of it. Where there is no prefill worker a stand-in has
//! its half: it is no member, it has no address, and no leg is sent to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;

use super::select::Filter;
use super::{Fleet, Mismatch, NoWorker, Origin, Role, Worker, WorkerId, WorkerParts};
use crate::pd::Engine;

/// The id of the stand-in. Those of workers count up from zero.
const ABSENT: WorkerId = WorkerId(u64::MAX);

/// Whether decode may go alone, and the stand-in.
pub(super) struct Alone {
    allowed: AtomicBool,
    absent: Arc<Worker>,
}

impl Default for Alone {
    fn default() -> Self {
        let parts = WorkerParts {
            role: Role::Prefill,
            url: "-".to_owned(),
            origin: Origin {
                host: String::new(),
                port: 0,
                tls: false,
                certified: None,
                http2: false,
            },
            host: HeaderValue::from_static("-"),
            bootstrap: None,
            authorization: None,
            admin_authorization: None,
            weight: 1,
        };
        Self {
            allowed: AtomicBool::new(false),
            absent: Arc::new(Worker::new(ABSENT, parts)),
        }
    }
}

impl WorkerId {
    /// Whether it is that of no worker.
    pub fn is_absent(self) -> bool {
        self == ABSENT
    }
}

impl Fleet {
    /// Sets whether decode may compute prompts where no prefill worker can, with an engine that is able to.
    pub fn set_decode_alone(&self, allowed: bool) {
        self.alone.allowed.store(allowed, Ordering::Relaxed);
    }

    /// The stand-in for a prefill worker; `None` where decode may not go alone.
    pub(super) fn absent(&self) -> Option<&Arc<Worker>> {
        let allowed = self.alone.allowed.load(Ordering::Relaxed);
        let is_able = allowed && self.engine().is_some_and(Engine::prefill_is_first);
        is_able.then_some(&self.alone.absent)
    }

    /// Whether no prefill worker can get a request, so that decode computes the prompts.
    pub fn goes_alone(&self) -> bool {
        let members = self.members();
        let prefills = members.of(Role::Prefill);
        self.absent().is_some()
            && !prefills.iter().any(|worker| worker.is_usable())
            && !prefills.iter().any(|worker| is_foreign(worker))
    }
}

impl<'a> Filter<'a> {
    /// The prefill workers that may be chosen now, or the stand-in where none is usable. A prefill worker of another engine is
    /// an error of the configuration, which no stand-in hides.
    ///
    /// # Errors
    /// There is none, and decode may not go alone.
    pub(super) fn prefills(&self, capacity: usize) -> Result<Vec<&'a Arc<Worker>>, NoWorker> {
        self.available(Role::Prefill, capacity).or_else(|none| {
            let names_one = self.targets.prefill.is_some();
            let mut prefills = self.members.of(Role::Prefill).iter();
            match self.absent {
                Some(absent) if !names_one && !prefills.any(|worker| is_foreign(worker)) => {
                    Ok(vec![absent])
                }
                _ => Err(none),
            }
        })
    }
}

fn is_foreign(worker: &Worker) -> bool {
    worker.mismatch() == Mismatch::Engine
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::super::{BreakerLimits, Members, Policies, RolePolicy, Selection, Targets};
    use super::*;
    use crate::pd::{Route, RoutingKey};

    fn request() -> RoutingKey {
        RoutingKey {
            route: Route::ChatCompletions,
            body_bytes: 10,
            prompts: 1,
            session: None,
            prefix: None,
            to_come: 1,
            rank: None,
        }
    }

    fn chosen(fleet: &Arc<Fleet>) -> Result<(bool, Role), NoWorker> {
        let request = request();
        let wanted = Selection {
            request: &request,
            avoid: &[],
            siblings: None,
            targets: Targets::default(),
            now: Instant::now(),
        };
        let lease = fleet.select(wanted, || 7)?;
        Ok((lease.prefill.id().is_absent(), lease.decode.role()))
    }

    /// A fleet of vLLM with a decode worker, and one for prefill.
    fn fleet(policies: Policies, engine: Engine) -> (Arc<Fleet>, [Arc<Worker>; 2]) {
        let fleet =
            Arc::new(Fleet::new(policies, BreakerLimits::default()).of_engine(Some(engine)));
        let workers = [(Role::Prefill, 1), (Role::Decode, 2)]
            .map(|(role, port)| fleet.new_worker(WorkerParts::for_tests(role, port)));
        (fleet, workers)
    }

    #[test]
    fn decode_goes_alone_where_no_prefill_worker_can_get_a_request() {
        for policies in [
            Policies::random(),
            Policies {
                prefill: RolePolicy::expected_ttft(),
                decode: RolePolicy::least_to_come(),
            },
        ] {
            let (fleet, [prefill, decode]) = fleet(policies, Engine::Vllm);
            fleet.replace(Members::new([decode.clone()]));
            assert_eq!(chosen(&fleet), Err(NoWorker(Role::Prefill)));
            assert!(!fleet.has_pair(Instant::now()));
            fleet.set_decode_alone(true);
            assert_eq!(chosen(&fleet), Ok((true, Role::Decode)));
            assert!(fleet.has_pair(Instant::now()) && fleet.goes_alone());
            fleet.replace(Members::new([prefill.clone(), decode.clone()]));
            assert_eq!(chosen(&fleet), Ok((false, Role::Decode)));
            assert!(!fleet.goes_alone());
            fleet.set_draining(&prefill, true);
            assert_eq!(chosen(&fleet), Ok((true, Role::Decode)));
            fleet.replace(Members::new([prefill]));
            assert_eq!(chosen(&fleet), Err(NoWorker(Role::Decode)));
        }
    }

    #[test]
    fn no_stand_in_hides_a_worker_of_another_engine_and_none_is_there_for_sglang() {
        let (vllm, [prefill, decode]) = fleet(Policies::random(), Engine::Vllm);
        vllm.set_decode_alone(true);
        vllm.replace(Members::new([prefill.clone(), decode]));
        vllm.note_identity(&prefill, Some(Engine::Sglang), None);
        assert_eq!(chosen(&vllm), Err(NoWorker(Role::Prefill)));
        assert_eq!(vllm.mismatched(Role::Prefill, Mismatch::Engine), 1);
        vllm.note_identity(&prefill, Some(Engine::Vllm), None);
        assert_eq!(chosen(&vllm), Ok((false, Role::Decode)));

        let (sglang, [_, decode]) = fleet(Policies::random(), Engine::Sglang);
        sglang.set_decode_alone(true);
        sglang.replace(Members::new([decode]));
        assert_eq!(chosen(&sglang), Err(NoWorker(Role::Prefill)));
    }
}
