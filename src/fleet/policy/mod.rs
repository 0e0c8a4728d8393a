//! Which worker of a role serves the next request. One policy, one file.

mod random;

use std::sync::Arc;

use super::Worker;
pub use random::Random;

/// A rule that picks one of the candidates.
pub trait Policy: Send + Sync {
    /// The index of the chosen candidate, `None` when there is none.
    ///
    /// `draw` is a uniformly distributed value: a policy makes no randomness of its own.
    fn pick(&self, candidates: &[Arc<Worker>], draw: u64) -> Option<usize>;
}
