//! A place for each worker in the process group of a trainer.
//!
//! A worker joins with as many ranks as it has tensor-parallel ones, from `rank_offset` on; with the same body for all of
//! them, their ranks would collide. So the offset of the request is the first worker's, and each further one begins where
//! the one before it ends: prefill workers first, then decode workers, both in the order of the configuration.
//!
//! Source: SGLang 0.5.23 `model_executor/model_runner_components/weight_updater.py` (`rank_offset + self.tp_rank`).

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::super::call::CallResult;
use super::{Broadcast, Broadcaster, to_each};
use crate::error::Code;

impl Broadcaster {
    /// The first rank and the body of each worker. `None` where the body has no ranks: the workers say what is wrong.
    ///
    /// # Errors
    /// A worker does not tell how many ranks it has, or the world has another size.
    pub(super) async fn rank_offsets(
        &self,
        broadcast: &Broadcast,
    ) -> Result<Option<Vec<(u64, Bytes)>>, (Code, String)> {
        let Ok(body) = serde_json::from_slice::<Value>(&broadcast.request.body) else {
            return Ok(None);
        };
        let number = |name: &str| body.get(name).and_then(Value::as_u64);
        let (Some(first), Some(world)) = (number("rank_offset"), number("world_size")) else {
            return Ok(None);
        };
        let Some(ask) = broadcast.own_call(Method::GET, "/server_info", Bytes::new()) else {
            return Ok(None);
        };
        let infos = to_each(&self.client, &broadcast.workers, &ask).await;
        let mut sizes = Vec::new();
        for info in &infos {
            sizes.push(ranks_of(info).map_err(|why| (Code::WorkerRefused, why))?);
        }
        let offsets = offsets(first, world, &sizes, broadcast.is_narrow);
        let offsets = offsets.map_err(|why| (Code::InvalidOption, why))?;
        let bodies = offsets.into_iter().map(|offset| {
            let mut own = body.clone();
            own["rank_offset"] = offset.into();
            (offset, own.to_string().into())
        });
        Ok(Some(bodies.collect()))
    }
}

/// How many ranks a worker joins with.
fn ranks_of(info: &CallResult) -> Result<u64, String> {
    let url = info.worker.url();
    let told = info
        .json()
        .map_err(|why| format!("{url} does not tell its ranks: {why}"))?;
    told.get("tp_size")
        .and_then(Value::as_u64)
        .filter(|size| *size > 0)
        .ok_or_else(|| format!("{url} does not tell its tp_size in /server_info"))
}

/// The first rank of each worker. `part` says that other workers join by a request of their own.
fn offsets(first: u64, world: u64, sizes: &[u64], part: bool) -> Result<Vec<u64>, String> {
    let mut next = first;
    let mut offsets = Vec::with_capacity(sizes.len());
    for size in sizes {
        offsets.push(next);
        next = next.saturating_add(*size);
    }
    let fits = if part { next <= world } else { next == world };
    if !fits {
        return Err(format!(
            "the workers have {} ranks from rank_offset {first} on, so that world_size must be {next}, not {world}; each \
             worker joins with its tp_size",
            next - first
        ));
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_begins_where_the_one_before_it_ends() {
        assert_eq!(offsets(1, 8, &[2, 4, 1], false), Ok(vec![1, 3, 7]));
        assert_eq!(offsets(1, 8, &[2, 4], true), Ok(vec![1, 3]));
        let error = offsets(1, 3, &[2, 4, 1], false).expect_err("a world that is too small");
        assert!(error.contains("world_size must be 8, not 3"), "{error}");
    }
}
