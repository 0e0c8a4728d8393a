//! The simulated workers: a process for each prefill worker, because they may differ in speed, and one for decode.

use super::model;
use crate::programs::balancer::{Worker, Workers};
use crate::programs::simulated::Simulated;

/// Running workers.
pub struct Fleet {
    prefill: Vec<Worker>,
    decode: Simulated,
    _prefill: Vec<Simulated>,
}

impl Fleet {
    /// Starts workers as the model has them, with passes of `chunk` tokens.
    pub fn start(
        mini_lb: &str,
        workers: &model::Workers,
        chunk: usize,
        decodes: usize,
    ) -> Result<Fleet, String> {
        let mut prefill = Vec::new();
        for speed in &workers.speeds {
            let token_us = workers.token_seconds * 1e6 / speed;
            let attention_ns = workers.attention_seconds * 1e9 / speed;
            let options = [
                "--prefix-cache".to_owned(),
                format!("--prompt-token-us={token_us:.0}"),
                format!("--attention-ns={attention_ns}"),
                format!("--chunked-prefill-tokens={chunk}"),
                format!("--cache-tokens={}", workers.cache_tokens),
            ];
            prefill.push(Simulated::start(mini_lb, "prefill", 1, &options)?);
        }
        let options = ["--output-token-us=1000".to_owned()];
        Ok(Fleet {
            decode: Simulated::start(mini_lb, "decode", decodes, &options)?,
            prefill: prefill
                .iter()
                .flat_map(|process| process.workers.clone())
                .collect(),
            _prefill: prefill,
        })
    }

    /// The workers for a balancer.
    pub fn of_roles(&self) -> Workers<'_> {
        Workers {
            prefill: &self.prefill,
            decode: &self.decode.workers,
            single: &[],
        }
    }
}
