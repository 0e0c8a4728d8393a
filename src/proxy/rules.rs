//! The settings of requests that a reload of the configuration replaces, all at once.

use super::Affinity;
use crate::client::{Cors, Keys};
use crate::limits::RequestLimits;

/// What applies to a request. One that is live keeps the rules that it began with.
pub(crate) struct Rules {
    pub(crate) limits: RequestLimits,
    pub(crate) keys: Keys,
    pub(crate) cors: Cors,
    /// Whether the record of a request has the address of its client.
    pub(crate) logs_client_addresses: bool,
    /// Finds the session of a request; `None` where no policy asks for it.
    pub(crate) affinity: Option<Affinity>,
    /// Whether a policy asks for the beginning of the prompt.
    pub(crate) reads_prefixes: bool,
    /// Whether a policy asks for the tokens that a request may generate.
    pub(crate) reads_lengths: bool,
}
