//! One data parallel rank of a worker: its prefix cache, and the prompts that wait for its forward passes.
//!
//! Without chunked prefill every prompt takes its own time, some at once. With it there is one forward pass at a time, of
//! at most so many tokens: first come, first served, the last prompt of a pass may be cut, and goes on first in the next.
//! A prompt is looked up when its first pass begins, and found by others when a pass has ended.
//!
//! Source: SGLang 0.5.23, `srt/managers/schedule_policy.py` (`PrefillAdder`), `srt/managers/schedule_batch.py`
//! (`init_next_round_input`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::Instant;

use super::radix::{Held, Radix};
use super::run::unix_seconds;
use crate::sim::SimOptions;
use crate::sim::server_info::token_capacity;

/// One rank.
pub(super) struct Rank {
    state: Mutex<State>,
    /// A prompt has come, or memory has become free.
    wake: Notify,
    /// The prompts that are computed at once, without chunked prefill.
    pub(super) computing: Semaphore,
}

struct State {
    /// `None` without a prefix cache.
    cache: Option<Radix>,
    waiting: VecDeque<Waiting>,
    /// Tokens that prompts under way are still to add to the cache.
    promised: usize,
}

/// A prompt before its last pass.
struct Waiting {
    prompt: Arc<[u32]>,
    /// Length of the beginning that may come from the cache.
    reusable: usize,
    /// Since the first pass.
    begun: Option<Computed>,
    /// Tokens that are computed or cached.
    done: usize,
    /// Closed when the request has ended.
    answer: oneshot::Sender<Computed>,
}

/// A prompt that is computed. Its tokens stay in the cache until this is dropped.
pub(super) struct Computed {
    pub(super) cached_tokens: usize,
    /// When the first pass began, in Unix seconds.
    pub(super) forward_entry: f64,
    rank: Arc<Rank>,
    held: Option<Held>,
    promised: usize,
}

/// What waits on a rank, for `/v1/loads`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) prompts: usize,
    /// Tokens that are still to be computed, as far as it is known: a prompt is looked up when its first pass begins.
    pub(crate) tokens: usize,
    /// Tokens of the cache that requests hold.
    pub(crate) held: usize,
}

impl Rank {
    pub(super) fn new(options: &SimOptions) -> Arc<Rank> {
        let page = usize::try_from(options.reported.page_size).unwrap_or(1);
        let cache = || Radix::new(page, token_capacity(options));
        Arc::new(Rank {
            state: Mutex::new(State {
                cache: options.prefix_cache.then(cache),
                waiting: VecDeque::new(),
                promised: 0,
            }),
            wake: Notify::new(),
            computing: Semaphore::new(options.prompts_at_once),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flush(&self) {
        if let Some(cache) = &mut self.lock().cache {
            cache.flush();
        }
    }

    pub(super) fn queued(&self) -> Queued {
        let state = self.lock();
        let left = |waiting: &Waiting| waiting.prompt.len() - waiting.done;
        Queued {
            prompts: state.waiting.len(),
            tokens: state.waiting.iter().map(left).sum(),
            held: state.cache.as_ref().map_or(0, Radix::held_tokens),
        }
    }

    /// Looks a prompt up for a pass of its own. `reusable` is the length of the beginning that may come from the cache.
    pub(super) fn begin(self: &Arc<Self>, prompt: &[u32], reusable: usize) -> Computed {
        self.begun(&mut self.lock(), prompt, reusable)
    }

    /// Adds a prompt to the cache after its own pass.
    pub(super) fn end(&self, prompt: &[u32], computed: &mut Computed) {
        computed.extend(&mut self.lock(), prompt);
    }

    /// Puts a prompt into the queue. It is computed by [`Rank::passes`].
    pub(super) fn queue(&self, prompt: Arc<[u32]>, reusable: usize) -> oneshot::Receiver<Computed> {
        let (answer, computed) = oneshot::channel();
        self.lock().waiting.push_back(Waiting {
            prompt,
            reusable,
            begun: None,
            done: 0,
            answer,
        });
        self.wake.notify_one();
        computed
    }

    /// Computes what is in the queue, pass by pass, for ever.
    pub(super) async fn passes(self: Arc<Self>, options: SimOptions) {
        let mut free = Instant::now();
        loop {
            let (pass, time) = self.next_pass(&options);
            if pass.is_empty() {
                self.wake.notified().await;
                // The timer wakes up late: the time of a pass in a row counts from the end of the one before.
                free = Instant::now();
                continue;
            }
            free += time;
            tokio::time::sleep_until(free).await;
            self.end_pass(pass);
        }
    }

    /// The prompts of the next pass with their tokens in it, and its time.
    fn next_pass(self: &Arc<Self>, options: &SimOptions) -> (Vec<(Waiting, usize)>, Duration) {
        let (mut pass, mut time) = (Vec::new(), Duration::ZERO);
        let mut left = options.chunked_prefill_tokens;
        let mut state = self.lock();
        while left > 0 {
            let Some(mut next) = state.waiting.pop_front() else {
                break;
            };
            if next.answer.is_closed() {
                if let Some(begun) = next.begun {
                    begun.ended(&mut state);
                }
                continue;
            }
            if next.begun.is_none() && !self.admit(&mut state, &mut next, pass.is_empty()) {
                state.waiting.push_front(next);
                break;
            }
            let tokens = left.min(next.prompt.len() - next.done);
            time += options.forward_time(next.done, tokens);
            left -= tokens;
            pass.push((next, tokens));
        }
        (pass, time)
    }

    /// Looks a prompt up, and says whether there is memory for the rest of it. A prompt that does not fit runs alone, and
    /// what does not fit of it is not kept.
    fn admit(self: &Arc<Self>, state: &mut State, next: &mut Waiting, is_first: bool) -> bool {
        let in_use = state.cache.as_ref().map_or(0, Radix::held_tokens) + state.promised;
        let mut computed = self.begun(state, &next.prompt, next.reusable);
        let new = next.prompt.len() - computed.cached_tokens;
        let fits = match &state.cache {
            Some(cache) => cache.fits(new + state.promised) || (is_first && in_use == 0),
            None => true,
        };
        if !fits {
            computed.ended(state);
            return false;
        }
        state.promised += new;
        computed.promised = new;
        next.done = computed.cached_tokens;
        next.begun = Some(computed);
        true
    }

    fn begun(self: &Arc<Self>, state: &mut State, prompt: &[u32], reusable: usize) -> Computed {
        let found = state
            .cache
            .as_mut()
            .map(|cache| cache.hold(&prompt[..reusable.min(prompt.len())]));
        let (held, cached_tokens) = found.map_or((None, 0), |(held, length)| (Some(held), length));
        Computed {
            cached_tokens,
            forward_entry: unix_seconds(),
            rank: self.clone(),
            held,
            promised: 0,
        }
    }

    fn end_pass(&self, pass: Vec<(Waiting, usize)>) {
        let mut state = self.lock();
        let mut cut = None;
        let mut ended = Vec::new();
        for (mut waiting, tokens) in pass {
            waiting.done += tokens;
            if let Some(begun) = &mut waiting.begun {
                begun.promised -= tokens;
                state.promised -= tokens;
                begun.extend(&mut state, &waiting.prompt[..waiting.done]);
            }
            match waiting.done < waiting.prompt.len() {
                true => cut = Some(waiting),
                false => ended.push(waiting),
            }
        }
        // Only the last prompt of a pass is cut.
        if let Some(cut) = cut {
            state.waiting.push_front(cut);
        }
        drop(state);
        for waiting in ended {
            if let Some(computed) = waiting.begun {
                // The request may have ended meanwhile.
                let _ = waiting.answer.send(computed);
            }
        }
    }
}

impl Computed {
    /// Adds a beginning of the prompt to the cache.
    fn extend(&mut self, state: &mut State, tokens: &[u32]) {
        if let (Some(cache), Some(held)) = (&mut state.cache, self.held.take()) {
            self.held = Some(cache.extend(held, tokens));
        }
    }

    /// Lets the tokens go, with the lock of the rank.
    fn ended(mut self, state: &mut State) {
        self.let_go(state);
    }

    fn let_go(&mut self, state: &mut State) {
        state.promised -= std::mem::take(&mut self.promised);
        if let (Some(cache), Some(held)) = (&mut state.cache, self.held.take()) {
            cache.release(held);
        }
    }
}

impl Drop for Computed {
    fn drop(&mut self) {
        if self.held.is_some() || self.promised > 0 {
            let rank = self.rank.clone();
            self.let_go(&mut rank.lock());
            rank.wake.notify_one();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(chunk: usize, cache_tokens: usize) -> SimOptions {
        SimOptions {
            chunked_prefill_tokens: chunk,
            time_per_prompt_token: Duration::from_millis(1),
            prefix_cache: true,
            cache_tokens: Some(cache_tokens),
            ..SimOptions::default()
        }
    }

    fn queued(rank: &Rank, first: u32, length: usize) -> oneshot::Receiver<Computed> {
        rank.queue(vec![first; length].into(), length - 1)
    }

    /// Runs a pass; gives its time in milliseconds and the tokens of each prompt in it.
    fn pass(rank: &Arc<Rank>, options: &SimOptions) -> (u128, Vec<usize>) {
        let (pass, time) = rank.next_pass(options);
        let tokens = pass.iter().map(|(_, tokens)| *tokens).collect();
        rank.end_pass(pass);
        (time.as_millis(), tokens)
    }

    #[test]
    fn passes_are_first_come_first_served_and_the_last_prompt_of_one_may_be_cut() {
        let options = options(100, 10_000);
        let rank = Rank::new(&options);
        let mut answers: Vec<_> = [150, 20, 80]
            .into_iter()
            .zip(1..)
            .map(|(length, first)| queued(&rank, first, length))
            .collect();
        assert_eq!((rank.queued().prompts, rank.queued().tokens), (3, 250));
        assert_eq!(pass(&rank, &options), (100, vec![100]));
        assert!(answers[0].try_recv().is_err());
        assert_eq!(pass(&rank, &options), (100, vec![50, 20, 30]));
        let first = answers[0].try_recv().unwrap();
        assert_eq!(first.cached_tokens, 0);
        assert!(answers[1].try_recv().is_ok() && answers[2].try_recv().is_err());
        assert_eq!(pass(&rank, &options), (50, vec![50]));
        // A prompt that is computed is found by the next, which is charged for the rest.
        let mut again = queued(&rank, 1, 160);
        assert_eq!(pass(&rank, &options), (10, vec![10]));
        assert_eq!(again.try_recv().unwrap().cached_tokens, 150);
    }

    #[test]
    fn attention_makes_a_pass_longer_by_what_is_before_its_tokens() {
        let options = SimOptions {
            attention_ns: 1_000.0,
            ..options(1_000, 10_000)
        };
        // 1,000 tokens of 1 ms, and half of their square times 1 us.
        assert_eq!(options.forward_time(0, 1_000).as_millis(), 1_500);
        let parts = options.forward_time(0, 400) + options.forward_time(400, 600);
        assert_eq!(parts.as_millis(), 1_500);
    }

    #[test]
    fn a_prompt_waits_until_the_others_have_left_it_memory() {
        let options = options(1_000, 100);
        let rank = Rank::new(&options);
        let (mut first, mut second) = (queued(&rank, 1, 80), queued(&rank, 2, 80));
        assert_eq!(pass(&rank, &options).1, [80]);
        let held = first.try_recv().unwrap();
        assert_eq!(rank.queued().held, 80);
        assert!(pass(&rank, &options).1.is_empty());
        drop(held);
        assert_eq!(pass(&rank, &options).1, [80]);
        drop(second.try_recv().unwrap());
        // One that is longer than the memory runs alone.
        let mut long = queued(&rank, 3, 300);
        assert_eq!(pass(&rank, &options).1, [300]);
        drop(long.try_recv().unwrap());
        assert_eq!(rank.queued(), Queued::default());
    }

    #[test]
    fn a_prompt_whose_request_has_ended_is_not_computed() {
        let options = options(100, 1_000);
        let rank = Rank::new(&options);
        let begun = queued(&rank, 1, 150);
        drop(queued(&rank, 2, 50));
        assert_eq!(pass(&rank, &options).1, [100]);
        drop(begun);
        let _third = queued(&rank, 3, 30);
        assert_eq!(pass(&rank, &options).1, [30]);
        assert_eq!(rank.lock().promised, 0);
    }
}
