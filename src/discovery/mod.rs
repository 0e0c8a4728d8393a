//! What watches the members of the fleet: their names are resolved, and they are probed.
//!
//! Both follow the members: a worker that is added is watched from then on, one that is removed no longer.

mod dns;
mod follow;
mod probe;

pub(crate) use dns::Names;
pub(crate) use probe::Probe;
