//! What watches the members of the fleet: their names are resolved, they are probed, and asked for their load.
//!
//! All follow the members: a worker that is added is watched from then on, one that is removed no longer.

mod dns;
mod follow;
mod loads;
mod probe;

pub(crate) use dns::Names;
pub(crate) use loads::LoadPoll;
pub(crate) use probe::Probe;
