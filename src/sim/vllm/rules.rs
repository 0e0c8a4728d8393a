//! What a balancer must not send to a vLLM worker. The engine takes it; the journal has a violation.

use super::transfer::Transfer;
use crate::sim::Role;
use crate::sim::engine::Engine;
use crate::sim::journal::Violation;
use crate::sim::request::Batch;

/// Notes the rules that a batch breaks by its own values. `named` is how often the body has the params.
pub(super) fn check(engine: &Engine, batch: &Batch, named: usize) {
    let Some(item) = batch.items.first() else {
        return;
    };
    let broken = [
        (Violation::ForeignParams, named > 1),
        (
            Violation::ForeignParams,
            item.transfer == Transfer::Nameless,
        ),
        (
            Violation::ForeignParams,
            engine.role() == Role::Ordinary && item.transfer != Transfer::Alone,
        ),
    ];
    let holds = matches!(item.transfer, Transfer::Hold | Transfer::HoldFor(_));
    let pulls = matches!(item.transfer, Transfer::Pull(_));
    let legs = [
        (
            Violation::LongPrefillLeg,
            holds && item.sampling.max_new_tokens > 1,
        ),
        (Violation::StreamedPrefillLeg, holds && batch.stream),
        (
            Violation::PrefillLegOnDecode,
            holds && engine.role() == Role::Decode,
        ),
        (
            Violation::DecodeLegOnPrefill,
            pulls && engine.role() == Role::Prefill,
        ),
    ];
    for (rule, _) in broken
        .into_iter()
        .chain(legs)
        .filter(|(_, is_broken)| *is_broken)
    {
        engine.journal.violation(rule, || item.rid.clone());
    }
}
