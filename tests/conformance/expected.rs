//! The answers of mini-lb that differ from an ordinary server's by design, each with its reason.
//!
//! An entry names the cases that it is about, and what must hold nevertheless.

use serde_json::Value;

use crate::cases::Case;

/// One entry of the table.
struct Expected {
    reason: &'static str,
    /// What must hold for both answers' digests.
    holds: fn(&Case, ordinary: &Value, mini_lb: &Value) -> bool,
}

const EXPECTED: [Expected; 0] = [
];

/// Why the two answers may differ, if the table knows.
pub(crate) fn reason(case: &Case, ordinary: &Value, mini_lb: &Value) -> Option<&'static str> {
    EXPECTED
        .iter()
        .find(|expected| (expected.holds)(case, ordinary, mini_lb))
        .map(|expected| expected.reason)
}
