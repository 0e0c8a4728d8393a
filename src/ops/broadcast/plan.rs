//! What a broadcast is: the workers that get it and in which order, what it does to the fleet, and how it is undone.
//!
//! No path of a request is here: `table.rs` gives each path its plan.

use std::time::Duration;

use super::super::table::SHORT;

/// For weights: the engine reads a whole model, and waits for its live requests first where it is not paused.
const WEIGHTS: Duration = Duration::from_secs(1800);

/// For a pause that aborts: the engine looks once a second whether its last request has ended.
const PAUSE: Duration = Duration::from_secs(120);

/// One administration request to several workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Plan {
    pub(super) scope: Scope,
    pub(super) effect: Effect,
    pub(super) undo: Undo,
    /// For the response of one worker.
    pub(super) timeout: Duration,
}

/// The workers that get the request, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All at once, or those that the query names.
    All,
    /// All prefill workers at once, then all decode workers.
    PrefillFirst,
    /// Only those that the query names: what the request says holds for one worker.
    Named,
}

/// What the request does to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing that new requests must know.
    None,
    /// The workers compute nothing any more: new requests wait.
    Pauses,
    /// The workers compute again.
    Continues,
    /// The weights change: new requests wait meanwhile, so that none has its two legs under different ones.
    Updates,
    /// The workers give memory back, without which they cannot compute: new requests wait.
    Releases,
    /// The workers take memory again.
    Resumes,
    /// The ranks of the workers join a process group: each worker needs a place of its own.
    JoinsGroup,
}

/// How the workers that did it are brought back where others did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// Not at all: the state before is not known, or the request only asks.
    Nothing,
    /// By a POST to this path, with this field of the request's body.
    Post(&'static str, Option<&'static str>),
    /// By a DELETE of the same path, where the request was a PUT.
    Delete,
}

impl Plan {
    /// To all workers at once.
    pub(in super::super) const ALL: Self = Self {
        scope: Scope::All,
        effect: Effect::None,
        undo: Undo::Nothing,
        timeout: SHORT,
    };
    /// To one worker of the client's choice.
    pub(in super::super) const NAMED: Self = Self {
        scope: Scope::Named,
        timeout: WEIGHTS,
        ..Self::ALL
    };
    /// Prefill first, so that no prompt is computed for a decode worker that does not take it; continued in the same order,
    /// because decode has a prefill worker recompute what it has retracted. With a real pair of SGLang 0.5.23 neither order
    /// loses a request that is paused `in_place` or by `retract`.
    ///
    /// Source: SGLang 0.5.23 `srt/disaggregation/decode.py` (`enqueue_held_rebootstrap`).
    pub(in super::super) const PAUSE: Self = Self {
        scope: Scope::PrefillFirst,
        effect: Effect::Pauses,
        undo: Undo::Post("/continue_generation", None),
        timeout: PAUSE,
    };
    pub(in super::super) const CONTINUE: Self = Self {
        scope: Scope::PrefillFirst,
        effect: Effect::Continues,
        undo: Undo::Nothing,
        timeout: PAUSE,
    };
    /// Old and new weights cannot be told apart from outside, so that nothing is undone.
    pub(in super::super) const UPDATE: Self = Self {
        effect: Effect::Updates,
        timeout: WEIGHTS,
        ..Self::ALL
    };
    pub(in super::super) const BEGIN_UPDATE: Self = Self {
        undo: Undo::Post("/end_weight_update", None),
        ..Self::UPDATE
    };
    pub(in super::super) const JOIN_GROUP: Self = Self {
        effect: Effect::JoinsGroup,
        undo: Undo::Post("/destroy_weights_update_group", Some("group_name")),
        timeout: WEIGHTS,
        ..Self::ALL
    };
    pub(in super::super) const RELEASE: Self = Self {
        effect: Effect::Releases,
        timeout: WEIGHTS,
        ..Self::ALL
    };
    pub(in super::super) const RESUME: Self = Self {
        effect: Effect::Resumes,
        timeout: WEIGHTS,
        ..Self::ALL
    };
    pub(in super::super) const LOAD_ADAPTER: Self = Self {
        undo: Undo::Post("/unload_lora_adapter", Some("lora_name")),
        timeout: WEIGHTS,
        ..Self::ALL
    };
    /// The engine waits for the requests that use the adapter.
    pub(in super::super) const UNLOAD_ADAPTER: Self = Self {
        timeout: WEIGHTS,
        ..Self::ALL
    };
    pub(in super::super) const START_RECORD: Self = Self {
        undo: Undo::Post("/stop_expert_distribution_record", None),
        ..Self::ALL
    };
    pub(in super::super) const ADD_CORPUS: Self = Self {
        undo: Undo::Post("/remove_external_corpus", Some("corpus_id")),
        timeout: WEIGHTS,
        ..Self::ALL
    };
    pub(in super::super) const STORAGE: Self = Self {
        undo: Undo::Delete,
        timeout: WEIGHTS,
        ..Self::ALL
    };
}

impl Effect {
    /// Whether the broadcast takes its turn: two of these at once would leave the workers in different states.
    pub(super) const fn takes_turn(self) -> bool {
        matches!(
            self,
            Effect::Pauses | Effect::Continues | Effect::Releases | Effect::Resumes
        )
    }

    /// Whether the query may leave workers out. A part of the fleet is not paused: draining does that for one worker.
    pub(super) const fn may_be_narrowed(self) -> bool {
        !matches!(self, Effect::Pauses | Effect::Releases | Effect::Resumes)
    }

    /// Whether later workers get the request although earlier ones have failed.
    pub(super) const fn goes_on(self) -> bool {
        matches!(self, Effect::Continues)
    }
}
