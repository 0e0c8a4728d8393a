//! What a worker itself says about its load, where it is asked for it.

/// The load of one worker. Numbers of requests, summed over its ranks; `None` for what a worker did not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loads {
    /// In the running batch.
    pub running: Option<u64>,
    /// Waiting for the scheduler.
    pub waiting: Option<u64>,
    /// Prefill: waiting for decode to meet them.
    pub bootstrap: Option<u64>,
    /// Prefill: computed, while their KV cache is sent.
    pub inflight: Option<u64>,
    /// Decode: waiting for memory.
    pub prealloc: Option<u64>,
    /// Decode: while their KV cache arrives.
    pub transfer: Option<u64>,
    /// The part of the KV cache that is in use, from 0 to 1: that of the fullest rank.
    pub kv_usage: Option<f64>,
}

impl Loads {
    /// Each number under the name that it has in metrics.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let counts = [
            ("running", self.running),
            ("waiting", self.waiting),
            ("bootstrap", self.bootstrap),
            ("inflight", self.inflight),
            ("prealloc", self.prealloc),
            ("transfer", self.transfer),
        ];
        let counts = counts
            .into_iter()
            .map(|(what, count)| (what, count.map(|n| n as f64)));
        counts
            .chain([("kv_usage", self.kv_usage)])
            .filter_map(|(what, value)| Some((what, value?)))
    }
}
