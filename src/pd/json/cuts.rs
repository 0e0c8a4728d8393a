//! The arithmetic of removing members from an object, so that the rest is JSON again.

use std::ops::Range;

/// The bytes to leave out of an object: each removed member, and one comma for each of them. White space stays.
///
/// Every member of the object must be reported in order, with [`Self::keep`] or [`Self::cut`].
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    ranges: Vec<Range<usize>>,
    kept: bool,
}

impl Cuts {
    /// The next member stays.
    pub fn keep(&mut self, comma: Option<usize>) {
        // The first member that stays has no comma before it: the members before it are all removed.
        if let (Some(comma), false) = (comma, self.kept) {
            self.ranges.push(comma..comma + 1);
        }
        self.kept = true;
    }

    /// The next member is removed; `member` spans from the opening quote of its key to the end of its value.
    pub fn cut(&mut self, comma: Option<usize>, member: Range<usize>) {
        self.ranges.extend(comma.map(|comma| comma..comma + 1));
        self.ranges.push(member);
    }

    /// The spans to leave out, in order and without overlap.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Whether no member stays.
    pub fn leaves_nothing(&self) -> bool {
        !self.kept
    }
}
