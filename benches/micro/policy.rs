//! What `expected_ttft` costs a request: the blocks of its prompt, its limit, and the choice. Half of the workers are prefill
//! workers.

use std::sync::Arc;
use std::time::Instant;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use mini_lb::fleet::{Fleet, Policies, RolePolicy, Selection, Targets};
use mini_lb::pd::{self, Prefix, Route, RoutingKey, Usage};
use serde_json::json;

use super::selection;

const PROMPTS: [usize; 3] = [1 << 10, 64 << 10, 1 << 20];
const FLEETS: [u16; 4] = [8, 200, 2_000, 4_000];
const SYSTEM_PROMPT: usize = 16 << 10;

/// A conversation of so many bytes, none of which another one with the same system prompt shares behind that.
fn body(conversation: usize, bytes: usize) -> Vec<u8> {
    let words = |seed: usize, bytes: usize| -> String {
        let words = (0..).map(|word| format!("{} ", seed * 1_000_003 + word));
        words.take(bytes / 2 + 1).collect::<String>()[..bytes].to_owned()
    };
    let system = words(0, SYSTEM_PROMPT.min(bytes / 2));
    let user = words(1 + conversation, bytes - system.len());
    let messages =
        json!([{"role": "system", "content": system}, {"role": "user", "content": user}]);
    json!({"model": "m", "messages": messages, "max_tokens": 300})
        .to_string()
        .into_bytes()
}

#[divan::bench(args = PROMPTS)]
fn blocks_of_a_prompt(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = body(0, bytes);
    bencher
        .counter(BytesCount::new(bytes))
        .bench(|| Prefix::of(Route::ChatCompletions, divan::black_box(&body)));
}

#[divan::bench(args = PROMPTS)]
fn tokens_to_come(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = body(0, bytes);
    bencher
        .counter(BytesCount::new(bytes))
        .bench(|| pd::tokens_to_come(Route::ChatCompletions, divan::black_box(&body), 1));
}

fn request(conversation: usize, bytes: usize) -> RoutingKey {
    let body = body(conversation, bytes);
    let facts = pd::parse(Route::ChatCompletions, &body).unwrap();
    let route = Route::ChatCompletions;
    RoutingKey {
        prefix: Some(Arc::new(Prefix::of(route, &body))),
        to_come: pd::tokens_to_come(route, &body, 1),
        ..RoutingKey::new(route, &facts, body.len())
    }
}

fn choose(fleet: &Arc<Fleet>, request: &RoutingKey) {
    let wanted = Selection {
        request,
        avoid: &[],
        siblings: None,
        targets: Targets::default(),
        now: Instant::now(),
    };
    let lease = fleet.select(wanted, rand::random).unwrap();
    lease.prefill.served(Some(Usage {
        prompt_tokens: request.body_bytes as u64 / 4,
        cached_tokens: None,
    }));
}

/// Each worker has computed two conversations of 32 KiB behind the same system prompt. The requests are for those.
#[divan::bench(args = FLEETS)]
fn choice_and_end(bencher: Bencher<'_, '_>, workers: u16) {
    let policies = Policies {
        prefill: RolePolicy::expected_ttft(),
        decode: RolePolicy::least_to_come(),
    };
    let fleet = selection::fleet(workers, policies);
    let requests: Vec<_> = (0..usize::from(workers))
        .map(|number| request(number, 32 << 10))
        .collect();
    requests.iter().for_each(|request| choose(&fleet, request));
    let mut next = requests.iter().cycle();
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench_local(|| next.next().map(|request| choose(&fleet, request)));
}
