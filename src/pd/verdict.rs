//! Which leg's failure the client sees, when both have one.

/// How a leg failed, as far as the choice depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegFailure {
    /// The worker answered with this status, which is not a success.
    Answered(u16),
    /// The worker gave no answer.
    NoAnswer,
}

impl LegFailure {
    /// The request itself is at fault: the same on any worker.
    fn is_the_requests_fault(self) -> bool {
        matches!(self, LegFailure::Answered(400..=499))
    }
}

/// Whether prefill's failure is shown rather than decode's.
///
/// A 4xx says what is wrong with the request, so it wins. Otherwise prefill's wins: where prefill has
/// failed, decode's failure is a symptom (it waits for a KV cache that never comes).
pub fn prefill_is_shown(prefill: LegFailure, decode: LegFailure) -> bool {
    prefill.is_the_requests_fault() || !decode.is_the_requests_fault()
}

#[cfg(test)]
mod tests {
    use super::LegFailure::{Answered, NoAnswer};
    use super::*;

    #[test]
    fn a_4xx_wins_and_otherwise_the_cause_before_the_symptom() {
        for (prefill, decode, shown) in [
            (Answered(400), Answered(400), true),
            (Answered(400), Answered(500), true),
            (Answered(500), Answered(400), false),
            (NoAnswer, Answered(422), false),
            (Answered(500), Answered(500), true),
            (NoAnswer, NoAnswer, true),
            (NoAnswer, Answered(500), true),
        ] {
            assert_eq!(
                prefill_is_shown(prefill, decode),
                shown,
                "{prefill:?} {decode:?}"
            );
        }
    }
}
