//! What makes and watches the members of the fleet: names and probes.

mod dns;
mod probe;

pub(crate) use dns::Names;
pub(crate) use probe::Probe;
