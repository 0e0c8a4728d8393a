//! The rules of the protocol that one request can break by its own values.
//!
//! A request that breaks one gets 400 before its items run, and the journal a violation. Types are checked by
//! `request`, and whether a room is live by `rendezvous`.

use crate::sim::Role;
use crate::sim::errors::Failure;
use crate::sim::journal::Violation;
use crate::sim::request::{Batch, Item};

/// A rule that an item breaks.
#[derive(Debug, PartialEq)]
pub(super) struct Broken {
    pub(super) rule: Violation,
    /// The item's request id.
    pub(super) rid: String,
    pub(super) failure: Failure,
}

/// The first rule that an item of the batch breaks.
pub(super) fn check(role: Role, batch: &Batch) -> Result<(), Broken> {
    for item in &batch.items {
        if let Some((rule, message)) = broken(role, batch.n, item) {
            return Err(Broken {
                rule,
                rid: item.rid.clone(),
                failure: Failure::Invalid(message),
            });
        }
    }
    Ok(())
}

fn broken(role: Role, n: usize, item: &Item) -> Option<(Violation, String)> {
    if let Some(start) = item.logprobs.below_range.filter(|_| item.logprobs.wanted) {
        let message = format!("logprob_start_len must be at least -1, got {start}.");
        return Some((Violation::LogprobStartOutOfRange, message));
    }
    if role == Role::Ordinary || item.bootstrap.is_fake() {
        return None;
    }
    match item.bootstrap.room? {
        0 => Some((
            Violation::ReservedRoom,
            "bootstrap_room must not be 0, which is reserved.".to_owned(),
        )),
        _ if n > 1 => Some((
            Violation::SharedRoom,
            format!(
                "n must be 1 with prefill/decode disaggregation, got {n}: a pair produces one sample per prompt."
            ),
        )),
        _ if role == Role::Decode && item.bootstrap.host.is_none() => Some((
            Violation::NullBootstrapHost,
            "bootstrap_host must not be null on a decode worker.".to_owned(),
        )),
        _ => None,
    }
}
