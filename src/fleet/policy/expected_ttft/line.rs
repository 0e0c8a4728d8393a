//! The prompts that a worker has got and not answered, in their order, and how fast it is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::super::Ended;
use super::cost::{Speed, Work};
use crate::pd::Prefix;

/// The prompts of one worker.
#[derive(Default)]
pub(super) struct Line {
    prompts: VecDeque<Prompt>,
    /// The seconds that all of them take on a worker whose factor is 1.
    seconds: f64,
    /// Since when the worker computes the first of them.
    since: Option<Instant>,
    /// The seconds that the worker has spent on them before: a pass that ends one prompt may begin the next one.
    ahead: f64,
    pub(super) speed: Speed,
    /// Responses in a row with far fewer cached tokens than were expected.
    pub(super) losses: u32,
}

/// A prompt that was sent.
pub(super) struct Prompt {
    pub(super) prefix: Arc<Prefix>,
    /// What was expected of it.
    pub(super) work: Work,
    /// The seconds for that on a worker whose factor is 1.
    pub(super) seconds: f64,
    pub(super) sent: Instant,
    /// The seconds until the response, as they were expected.
    pub(super) expected: f64,
}

impl Line {
    /// The seconds until the worker has computed all that it has.
    pub(super) fn wait(&self, now: Instant) -> f64 {
        let Some(first) = self.prompts.front() else {
            return 0.0;
        };
        let factor = self.speed.factor();
        let since = self.since.unwrap_or(now);
        let done = self.ahead + now.saturating_duration_since(since).as_secs_f64();
        // No more than the first one, until it has ended: a worker that is stuck is not done with the others.
        let done = done.min((first.seconds * factor).max(self.ahead));
        (self.seconds * factor - done).max(0.0)
    }

    pub(super) fn add(&mut self, prompt: Prompt, now: Instant) {
        if self.prompts.is_empty() {
            (self.seconds, self.ahead, self.since) = (0.0, 0.0, Some(now));
        }
        self.seconds += prompt.seconds;
        self.prompts.push_back(prompt);
    }

    /// Takes a prompt out, with the seconds that it took since the last response. Prompts that the worker computes in one
    /// step end together: the first of them took the time of all.
    pub(super) fn take(&mut self, ended: &Ended<'_>) -> Option<(Prompt, f64)> {
        let is_it = |prompt: &Prompt| Arc::ptr_eq(&prompt.prefix, ended.prefix);
        let place = self.prompts.iter().position(is_it)?;
        let prompt = self.prompts.remove(place)?;
        let since = self.since.unwrap_or(ended.now);
        let took = ended.now.saturating_duration_since(since).as_secs_f64();
        self.seconds = (self.seconds - prompt.seconds).max(0.0);
        if ended.served {
            let factor = self.speed.factor();
            let left = self.ahead + took - prompt.seconds * factor;
            self.ahead = left.clamp(0.0, self.seconds * factor);
            self.since = Some(ended.now);
        } else if place == 0 {
            (self.ahead, self.since) = (0.0, Some(ended.now));
        }
        Some((prompt, took))
    }

    /// The worker has lost what the prompts were to find in its cache. They say no more about that when they end.
    pub(super) fn lose_cache(&mut self, seconds: impl Fn(Work) -> f64) {
        for prompt in &mut self.prompts {
            let Work { cached, computed } = prompt.work;
            prompt.work = Work {
                cached: 0.0,
                computed: cached + computed,
            };
            prompt.seconds = seconds(prompt.work);
        }
        self.seconds = self.prompts.iter().map(|prompt| prompt.seconds).sum();
    }

    /// What the prompts begin with.
    pub(super) fn prefixes(&self) -> Vec<Arc<Prefix>> {
        let prompts = self.prompts.iter();
        prompts.map(|prompt| prompt.prefix.clone()).collect()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fleet::{Spread, WorkerId};

    fn prompt(seconds: f64) -> Prompt {
        Prompt {
            prefix: Arc::default(),
            work: Work {
                cached: 0.0,
                computed: seconds,
            },
            seconds,
            sent: Instant::now(),
            expected: seconds,
        }
    }

    /// A line with prompts of these seconds, and what they begin with.
    fn line(seconds: &[f64], now: Instant) -> (Line, Vec<Arc<Prefix>>) {
        let mut line = Line::default();
        seconds
            .iter()
            .for_each(|seconds| line.add(prompt(*seconds), now));
        let prefixes = line.prefixes();
        (line, prefixes)
    }

    fn end(line: &mut Line, prefix: &Arc<Prefix>, served: bool, now: Instant) -> f64 {
        let taken = line.take(&Ended {
            worker: WorkerId(1),
            spread: Spread::default(),
            prefix,
            served,
            usage: None,
            now,
        });
        taken.map_or(f64::NAN, |(_, seconds)| seconds)
    }

    #[test]
    fn what_a_pass_began_of_the_next_prompt_is_not_waited_for_again() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs_f64(seconds);
        let (mut line, prefixes) = line(&[1.0, 1.0, 4.0], begun);
        // A pass of 3 s: both short ones, and a quarter of the long one.
        assert_eq!(end(&mut line, &prefixes[0], true, at(3.0)), 3.0);
        assert_eq!(end(&mut line, &prefixes[1], true, at(3.0)), 0.0);
        assert!((line.wait(at(3.0)) - 3.0).abs() < 1e-9);
        assert!((line.wait(at(5.0)) - 1.0).abs() < 1e-9);
        assert_eq!(line.wait(at(50.0)), 0.0);
    }

    #[test]
    fn a_worker_that_is_stuck_with_the_first_prompt_is_not_done_with_the_others() {
        let begun = Instant::now();
        let (line, _) = line(&[1.0, 2.0], begun);
        assert_eq!(line.wait(begun), 3.0);
        assert_eq!(line.wait(begun + Duration::from_secs(60)), 2.0);
    }

    #[test]
    fn prompts_whose_cache_was_lost_are_computed_as_a_whole() {
        let begun = Instant::now();
        let (mut line, prefixes) = line(&[1.0, 2.0], begun);
        for prompt in &mut line.prompts {
            prompt.work.cached = 10.0;
        }
        line.lose_cache(|work| work.computed);
        assert_eq!(line.wait(begun), 23.0);
        end(
            &mut line,
            &prefixes[0],
            true,
            begun + Duration::from_secs(11),
        );
        assert_eq!(line.wait(begun + Duration::from_secs(12)), 11.0);
    }

    #[test]
    fn a_prompt_that_was_cancelled_is_not_waited_for() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(1);
        let (mut line, prefixes) = line(&[4.0, 2.0, 1.0], begun);
        end(&mut line, &prefixes[2], false, later);
        assert_eq!(line.wait(later), 5.0);
        end(&mut line, &prefixes[0], false, later);
        assert_eq!(line.wait(later), 2.0);
    }
}
