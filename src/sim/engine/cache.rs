//! The prefix cache: the prompts that a worker has computed, so that a prompt that begins as one of them is computed
//! from there on.
//!
//! A prompt is looked up when its forward pass begins and is found by others when it has ended, so that requests for
//! one prompt that run at the same time compute it each. The last token of a prompt is always computed, and so are those
//! whose logprobs are wanted.
//!
//! Source: SGLang 0.5.23, `srt/mem_cache/radix_cache.py`, `srt/managers/schedule_batch.py` (`init_next_round_input`).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The prompts that are kept. The one that was computed first goes first.
const PROMPTS: usize = 64;

/// The prompts that a worker has computed.
#[derive(Default)]
pub(super) struct PrefixCache(Mutex<VecDeque<Vec<u32>>>);

impl PrefixCache {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tokens at the begin of the prompt need not be computed. `wanted` is the first position whose logprob is
    /// wanted.
    pub(super) fn cached(&self, prompt: &[u32], wanted: Option<usize>) -> usize {
        let common =
            |other: &Vec<u32>| prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
        let longest = self.lock().iter().map(common).max().unwrap_or_default();
        let most = prompt.len().saturating_sub(1);
        longest.min(most).min(wanted.unwrap_or(most))
    }

    /// Keeps a prompt that has been computed.
    pub(super) fn insert(&self, prompt: &[u32]) {
        let mut prompts = self.lock();
        prompts.retain(|other| !prompt.starts_with(other));
        if prompts.len() == PROMPTS {
            prompts.pop_front();
        }
        prompts.push_back(prompt.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_computed_from_where_it_differs_but_for_its_last_token_and_wanted_logprobs() {
        let cache = PrefixCache::default();
        assert_eq!(cache.cached(&[1, 2, 3], None), 0);
        cache.insert(&[1, 2, 3]);
        for (prompt, wanted, cached) in [
            (&[1, 2, 3][..], None, 2),
            (&[1, 2, 3, 4], None, 3),
            (&[1, 2, 9, 4], None, 2),
            (&[9], None, 0),
            (&[], None, 0),
            (&[1, 2, 3], Some(0), 0),
            (&[1, 2, 3], Some(1), 1),
        ] {
            assert_eq!(cache.cached(prompt, wanted), cached, "{prompt:?}");
        }
    }

    #[test]
    fn the_oldest_prompt_goes_first() {
        let cache = PrefixCache::default();
        for first in 0..=PROMPTS as u32 {
            cache.insert(&[first, 0]);
        }
        assert_eq!(cache.cached(&[0, 0], None), 0);
        assert_eq!(cache.cached(&[1, 0], None), 1);
    }
}
