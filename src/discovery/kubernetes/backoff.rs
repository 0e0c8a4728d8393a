//! The pause after a failure. The clock and the draw are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause.
const FIRST: Duration = Duration::from_millis(250);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(30);
/// Failures that are further apart than this have nothing to do with each other.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// The failures of one watch.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// The pause after a failure now: twice the last one, and up to a half less by the draw, which is from 0 to 1, so that
    /// many balancers do not come back at once.
    pub(super) fn after_failure(&mut self, now: Instant, draw: f64) -> Duration {
        let forgotten = self
            .last
            .is_none_or(|last| now.duration_since(last) > FORGOTTEN_AFTER);
        if forgotten {
            self.failures = 0;
        }
        let pause = FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST);
        self.failures += 1;
        self.last = Some(now + pause);
        pause.mul_f64(1.0 - draw / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_to_half_a_minute_and_start_again_after_a_minute_without_failure() {
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let pause = backoff.after_failure(Instant::now(), 0.0);
            pauses.push(pause.as_secs_f64());
            tokio::time::advance(pause).await;
        }
        assert_eq!(
            pauses,
            [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
        );
        tokio::time::advance(FORGOTTEN_AFTER + FIRST).await;
        let pause = backoff.after_failure(Instant::now(), 1.0);
        assert_eq!(pause, FIRST / 2, "the draw shortens it");
    }
}
