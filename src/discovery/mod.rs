//! What makes and watches the members of the fleet.
//!
//! [`Registry`] has the workers of all sources and decides which are members. The others follow the members: their names
//! are resolved, they are probed, and asked for their engine and their load; a worker that is added is watched from then on, one that is
//! removed no longer.

mod dns;
#[cfg(feature = "dns")]
mod dns_workers;
mod engine;
mod follow;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(not(feature = "kubernetes"))]
#[path = "no_kubernetes.rs"]
mod kubernetes;
mod layout;
mod loads;
mod probe;
mod registry;

pub(crate) use dns::Names;
#[cfg(feature = "dns")]
pub(crate) use dns_workers::{DnsName, DnsWorkers, Question};
pub(crate) use engine::EngineQuestion;
pub(crate) use kubernetes::Kubernetes;
#[cfg(feature = "kubernetes")]
pub(crate) use kubernetes::{Objects, Rules, Spec};
pub(crate) use loads::LoadPoll;
pub(crate) use probe::{Probe, ProbeRules, START_TIMEOUT};
pub(crate) use registry::{
    Conflict, DRAIN_TIME, Describe, Description, Details, Examiner, First, Keeper, Leave, Life,
    Listed, Registry, Shown, Source,
};
