//! Who exists and who serves the next request: workers, their load, the policy, and the live rooms.
//!
//! Nothing here opens a socket or reads a clock. Randomness is an argument: [`Fleet::select`] takes the
//! draws, so that a test decides them. Load is an RAII value ([`Load`]): it is counted up when a pair is
//! leased and down when the leg that carries it ends, on whatever path.

mod policy;
mod rooms;
mod worker;

use std::fmt;
use std::sync::Arc;

pub use crate::pd::Role;
pub use policy::{Policy, Random};
pub use rooms::{LiveRooms, Rooms};
pub use worker::{Load, Worker};

/// All workers, and the policy that chooses among them.
pub struct Fleet {
    prefill: Vec<Arc<Worker>>,
    decode: Vec<Arc<Worker>>,
    policy: Box<dyn Policy>,
}

/// A pair of workers that serves one request, and the load that the request puts on each.
///
/// The two halves are separate because the legs end at different times: prefill's when it has answered,
/// decode's when its stream has ended.
pub struct Lease {
    /// The prefill worker's half.
    pub prefill: Load,
    /// The decode worker's half.
    pub decode: Load,
}

/// No worker of this role can take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoWorker(pub Role);

impl fmt::Display for NoWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} worker is available", self.0)
    }
}

impl std::error::Error for NoWorker {}

impl Fleet {
    /// A fleet of these workers under this policy.
    pub fn new(
        prefill: Vec<Arc<Worker>>,
        decode: Vec<Arc<Worker>>,
        policy: Box<dyn Policy>,
    ) -> Self {
        Self {
            prefill,
            decode,
            policy,
        }
    }

    /// Both workers or none: a leg without its peer would wait for the engine's 300 s timer.
    ///
    /// `draw` is called once for each role and must give uniformly distributed 64-bit values.
    ///
    /// # Errors
    /// The role that has no worker.
    pub fn select(&self, mut draw: impl FnMut() -> u64) -> Result<Lease, NoWorker> {
        let prefill = self.pick(Role::Prefill, draw())?;
        let decode = self.pick(Role::Decode, draw())?;
        Ok(Lease {
            prefill: prefill.load(),
            decode: decode.load(),
        })
    }

    /// The workers of one role, in the order of the configuration.
    pub fn of(&self, role: Role) -> &[Arc<Worker>] {
        match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }

    /// Every worker: prefill first, each role in the order of the configuration.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.prefill.iter().chain(&self.decode)
    }

    fn pick(&self, role: Role, draw: u64) -> Result<&Arc<Worker>, NoWorker> {
        let candidates = self.of(role);
        self.policy
            .pick(candidates, draw)
            .and_then(|index| candidates.get(index))
            .ok_or(NoWorker(role))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn worker(role: Role, port: u16) -> Arc<Worker> {
        Arc::new(Worker::for_tests(role, port))
    }

    fn fleet(prefills: u16, decodes: u16) -> Fleet {
        Fleet::new(
            (0..prefills)
                .map(|i| worker(Role::Prefill, 1000 + i))
                .collect(),
            (0..decodes)
                .map(|i| worker(Role::Decode, 2000 + i))
                .collect(),
            Box::new(Random),
        )
    }

    #[test]
    fn a_lease_counts_up_both_workers_and_down_again_when_its_halves_drop() {
        let fleet = fleet(1, 1);
        let lease = fleet.select(|| 7).unwrap();
        assert_eq!(fleet.of(Role::Prefill)[0].in_flight(), 1);
        assert_eq!(fleet.of(Role::Decode)[0].in_flight(), 1);
        drop(lease.prefill);
        assert_eq!(fleet.of(Role::Prefill)[0].in_flight(), 0);
        assert_eq!(fleet.of(Role::Decode)[0].in_flight(), 1);
        drop(lease.decode);
        assert_eq!(fleet.of(Role::Decode)[0].in_flight(), 0);
    }

    #[test]
    fn a_fleet_without_a_role_leases_nothing_and_names_the_role() {
        assert_eq!(fleet(1, 0).select(|| 0).err(), Some(NoWorker(Role::Decode)));
        assert_eq!(
            fleet(0, 1).select(|| 0).err(),
            Some(NoWorker(Role::Prefill))
        );
        let one_sided = fleet(1, 0);
        let _ = one_sided.select(|| 0);
        assert_eq!(one_sided.of(Role::Prefill)[0].in_flight(), 0);
    }
}
