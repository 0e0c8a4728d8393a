//! The project's own trace, in Mooncake's format: conversations, agents with tools, and single long prompts, which all begin
//! with one system prompt.
//!
//! Its shapes are published ones. Of Mooncake's traces (FAST '25, table 1) the conversations have 12,035 tokens in and 343 out
//! on average and could take 40 % of their blocks from a cache, those of tools and agents 8,596, 182 and 59 %. Turns of a
//! conversation are geometric with a mean of about 4, as in ShareGPT; steps of an agent follow each other within seconds.
//! Draws are the file's own, so that a version of `rand` does not change the trace.

use std::fmt::Write;

/// The seed of the committed file.
pub const SEED: u64 = 20;
/// Requests of the committed file.
pub const REQUESTS: usize = 600;

/// Tokens of a block.
const BLOCK: usize = 512;
/// Blocks of the system prompt, and of the tools of an agent after it.
const SYSTEM_BLOCKS: usize = 2;
const TOOL_BLOCKS: usize = 6;
/// Sets of tools that agents have.
const TOOL_SETS: u64 = 5;
/// Mean time between the first requests of two sessions, in milliseconds.
const BETWEEN_SESSIONS_MS: f64 = 2_200.0;

/// One request.
struct Request {
    at_ms: u64,
    input: usize,
    output: usize,
    blocks: Vec<u64>,
}

/// The prompt of a session so far.
struct Session {
    at_ms: f64,
    tokens: usize,
    /// The blocks that are full.
    blocks: Vec<u64>,
}

struct Draws(u64);

/// The ids of blocks in the order of their first use.
struct Ids(u64);

/// The lines of a trace.
pub fn trace(seed: u64, requests: usize) -> String {
    let (mut draws, mut ids) = (Draws(seed), Ids(0));
    let system: Vec<u64> = (0..SYSTEM_BLOCKS).map(|_| ids.next()).collect();
    let tools: Vec<Vec<u64>> = (0..TOOL_SETS)
        .map(|_| (0..TOOL_BLOCKS).map(|_| ids.next()).collect())
        .collect();
    let mut all = Vec::new();
    let mut at_ms = 0.0;
    // Sessions overlap: those that begin last are cut, as at the end of a recording.
    while all.len() < requests + requests / 4 {
        at_ms += draws.exponential(BETWEEN_SESSIONS_MS);
        let mut session = Session {
            at_ms,
            tokens: SYSTEM_BLOCKS * BLOCK,
            blocks: system.clone(),
        };
        match draws.below(10) {
            0..6 => conversation(&mut session, &mut draws, &mut ids, &mut all),
            6..9 => {
                let set = usize::try_from(draws.below(TOOL_SETS)).unwrap_or(0);
                session.blocks.extend(&tools[set]);
                session.tokens += TOOL_BLOCKS * BLOCK;
                agent(&mut session, &mut draws, &mut ids, &mut all);
            }
            _ => {
                let document = draws.log_normal(14_000.0, 0.7);
                session.ask(document, 300, &mut ids, &mut all);
            }
        }
    }
    all.sort_by_key(|request| request.at_ms);
    all.truncate(requests);
    let first = all.first().map_or(0, |request| request.at_ms);
    let mut text = String::new();
    for request in all {
        let blocks: Vec<String> = request.blocks.iter().map(u64::to_string).collect();
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": {}, \"hash_ids\": [{}]}}",
            request.at_ms - first,
            request.input,
            request.output,
            blocks.join(", ")
        );
    }
    text
}

fn conversation(session: &mut Session, draws: &mut Draws, ids: &mut Ids, all: &mut Vec<Request>) {
    // One in three begins with a document that it is about.
    if draws.below(3) == 0 {
        session.add(draws.log_normal(5_000.0, 0.8), ids);
    }
    loop {
        let output = draws.log_normal(300.0, 0.6);
        session.ask(draws.log_normal(220.0, 1.1), output, ids, all);
        if draws.below(4) == 0 {
            return;
        }
        session.at_ms += 20.0 * output as f64 + draws.exponential(25_000.0);
    }
}

fn agent(session: &mut Session, draws: &mut Draws, ids: &mut Ids, all: &mut Vec<Request>) {
    for _ in 0..3 + draws.below(6) {
        let output = draws.log_normal(120.0, 0.6);
        session.ask(draws.log_normal(500.0, 0.9), output, ids, all);
        session.at_ms += 20.0 * output as f64 + draws.exponential(2_500.0);
    }
}

impl Session {
    /// A request whose prompt is the session so far and `new` tokens. The response is part of the next prompt.
    fn ask(&mut self, new: usize, output: usize, ids: &mut Ids, all: &mut Vec<Request>) {
        self.add(new, ids);
        let mut blocks = self.blocks.clone();
        if !self.tokens.is_multiple_of(BLOCK) {
            // Other tokens will fill the block: it is another one then.
            blocks.push(ids.next());
        }
        all.push(Request {
            at_ms: self.at_ms as u64,
            input: self.tokens,
            output,
            blocks,
        });
        self.add(output, ids);
    }

    fn add(&mut self, tokens: usize, ids: &mut Ids) {
        self.tokens += tokens;
        while self.blocks.len() < self.tokens / BLOCK {
            self.blocks.push(ids.next());
        }
    }
}

impl Ids {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0 - 1
    }
}

impl Draws {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Above 0 and at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 40) + 1) as f64 / f64::from(1 << 24)
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }

    /// Tokens, at least one, with this median; `spread` is the standard deviation of the logarithm.
    fn log_normal(&mut self, median: f64, spread: f64) -> usize {
        // The sum of twelve uniform draws is normal enough.
        let normal: f64 = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        ((median * (spread * normal).exp()) as usize).max(1)
    }
}
