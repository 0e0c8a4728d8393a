//! A vLLM item to its first token, and what it leaves behind: blocks that are read from another worker, or held for one.
//!
//! No worker checks its role: one without params computes alone, whatever it is.
//! Source: vLLM 0.32.0, `kv_connector/v1/nixl/pull_scheduler.py`, `base_worker.py`; transcripts 01 to 25.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::run::{Finish, Run};
use super::stage::Stage;
use crate::sim::Role;
use crate::sim::chaos::ItemFault;
use crate::sim::errors::Failure;
use crate::sim::journal::Violation;
use crate::sim::model::Context;
use crate::sim::vllm::FailedLoad;
use crate::sim::vllm::errors;
use crate::sim::vllm::leases::{Held, Standing};
use crate::sim::vllm::nixl::{Loaded, Nixl, block_size};
use crate::sim::vllm::transfer::{Remote, Transfer};

impl Run {
    pub(super) async fn admit_vllm(&mut self) -> Result<(), Failure> {
        let engine = self.engine.clone();
        let mut paused = engine.paused.subscribe();
        let resumed = async { _ = paused.wait_for(|paused| !paused).await };
        let transfer = self.item.transfer.clone();
        if self.abort.race(resumed).await.is_none() {
            if let (Transfer::Pull(remote), Some(nixl)) = (&transfer, &engine.nixl) {
                nixl.release(remote, &nixl.reader(self.request), false)
                    .await;
            }
            return Ok(()); // the abort shows as the finish reason
        }
        let done = match (&transfer, &engine.nixl) {
            // Seen on a kv_producer.
            (Transfer::Pull(_), Some(_)) if engine.role() == Role::Prefill => {
                return Err(Failure::Internal);
            }
            (Transfer::Pull(remote), Some(nixl)) => self.pull(nixl, remote).await?,
            _ => self.compute().await,
        };
        if done.is_none() {
            return Ok(());
        }
        let holds = matches!(transfer, Transfer::Hold | Transfer::HoldFor(_));
        if let (true, Some(nixl)) = (holds, &engine.nixl) {
            self.take_blocks(nixl).await;
        }
        if self.await_turn().await.is_some() {
            self.stage.enter(Stage::Running);
        }
        Ok(())
    }

    /// Gets the prompt's KV cache from another worker; none when aborted.
    async fn pull(&mut self, nixl: &Nixl, remote: &Arc<Remote>) -> Result<Option<()>, Failure> {
        let by = nixl.reader(self.request);
        let Some(permit) = self.await_memory(nixl, remote).await else {
            nixl.release(remote, &by, false).await;
            return Ok(None);
        };
        self.permits.extend(permit);
        if self.item.logprobs.start.is_some() {
            // The logprobs of the prompt are not in the KV cache: the prompt is computed.
            nixl.release(remote, &by, false).await;
            return Ok(self.compute().await);
        }
        self.stage.enter(Stage::Receiving);
        match self.load(nixl, remote, &by).await {
            None => {
                // A transfer that has begun is not given up.
                nixl.release(remote, &by, true).await;
                Ok(None)
            }
            Some(Ok(loaded)) => {
                self.judge(&loaded, remote);
                nixl.release(remote, &by, true).await;
                self.go_on_from(loaded.context, remote);
                Ok(Some(()))
            }
            Some(Err(failure)) => match self.engine.options.vllm.as_ref() {
                Some(options) if options.failed_load == FailedLoad::Recompute => {
                    Ok(self.compute().await)
                }
                _ => Err(failure),
            },
        }
    }

    /// Waits for memory, and keeps the blocks held meanwhile; none when aborted.
    async fn await_memory(
        &self,
        nixl: &Nixl,
        remote: &Remote,
    ) -> Option<Option<OwnedSemaphorePermit>> {
        let every = (self.engine.lease() / 6).max(Duration::from_millis(1));
        let memory = self.engine.kv.clone().acquire_owned();
        let beating = async {
            loop {
                tokio::time::sleep(every).await;
                nixl.renew(remote).await;
            }
        };
        let waiting = async {
            tokio::select! {
                biased;
                permit = memory => permit.ok(),
                () = beating => None,
            }
        };
        self.abort.race(waiting).await
    }

    /// Reads the blocks; none when aborted.
    async fn load(
        &self,
        nixl: &Nixl,
        remote: &Remote,
        by: &str,
    ) -> Option<Result<Loaded, Failure>> {
        let options = &self.engine.options;
        let timeout = options.vllm.as_ref().map(|vllm| vllm.handshake_timeout);
        let timeout = options.timer(timeout.unwrap_or_default().as_secs_f64());
        let fingerprint = prompt_fingerprint(&self.item.prompt);
        let reading = nixl.read(remote, by, fingerprint, timeout);
        let read = match self.abort.race(reading).await? {
            Ok(loaded) => loaded,
            Err(unreachable) => {
                nixl.failed.fetch_add(1, Ordering::Relaxed);
                self.pause(unreachable.after).await;
                return Some(Err(errors::failed_load()));
            }
        };
        self.pause(options.transfer_time).await;
        match self.fault {
            ItemFault::LoseKv => return Some(Err(errors::failed_load())),
            ItemFault::CrashInTransfer => {
                self.engine.crash();
                std::future::pending().await
            }
            ItemFault::None | ItemFault::AbortAfter(_) => {}
        }
        (!self.abort.is_requested()).then_some(Ok(read))
    }

    /// Notes what a reader of blocks must not do. The engine reads them all the same.
    fn judge(&self, loaded: &Loaded, remote: &Remote) {
        let rule = match loaded.standing {
            Standing::Held if loaded.same_prompt => return,
            _ if !loaded.same_prompt => Violation::ParamsOfAnotherBody,
            Standing::Read => Violation::ParamsUsedTwice,
            Standing::Expired => Violation::ParamsAfterLease,
            Standing::Held | Standing::Unknown => Violation::ForeignParams,
        };
        let detail = || format!("{} reads {}", self.item.rid, remote.request_id);
        self.engine.journal.violation(rule, detail);
    }

    /// Goes on from the KV cache that was read, and computes the prompt's last token itself.
    fn go_on_from(&mut self, context: Context, remote: &Remote) {
        let last = self.item.prompt.last().copied();
        let context = last.map_or(context, |last| context.after(last));
        self.context = context.sampled(self.item.sampling.seed);
        self.cached_tokens = remote.cached_tokens.unwrap_or(self.item.prompt.len());
        self.pulled = true;
    }

    /// Puts the prompt into blocks that stay when the request has been answered.
    async fn take_blocks(&mut self, nixl: &Nixl) {
        let prompt = &self.item.prompt;
        let count = prompt.len().div_ceil(block_size(&self.engine.options));
        let held = Held {
            prompt: prompt.as_slice().into(),
            fingerprint: prompt_fingerprint(prompt),
            fault: self.fault,
        };
        let taking = nixl.leases.take(self.lease_name(), count, held);
        self.blocks = self.abort.race(taking).await;
    }

    /// The params for decode, once the item has ended after `produced` tokens. Their lease begins.
    pub(super) fn hand_over(
        &mut self,
        finish: Option<&Finish>,
        produced: usize,
    ) -> Option<Arc<str>> {
        let engine = self.engine.clone();
        let nixl = engine.nixl.as_ref()?;
        if matches!(finish, None | Some(Finish::Abort)) {
            return None;
        }
        let by_id = matches!(self.item.transfer, Transfer::HoldFor(_));
        if by_id && !matches!(finish, Some(Finish::Length(_))) {
            // Source: vLLM 0.32.0, `kv_connector/v1/mooncake/mooncake_connector.py` (`request_finished`).
            self.give_blocks_back();
            return None;
        }
        let blocks = self.blocks.take()?;
        let rid = self.lease_name().to_owned();
        nixl.leases.begin(&rid, engine.lease());
        let remote = Remote {
            blocks,
            engine_id: nixl.engine_id.clone(),
            request_id: rid.clone(),
            host: nixl.host.clone(),
            port: nixl.port,
            tokens: self.item.prompt.len() + produced - 1,
            cached_tokens: (produced == 1).then_some(self.cached_tokens),
        };
        let lasting = engine.clone();
        engine.spawn(async move {
            if let Some(nixl) = &lasting.nixl {
                nixl.leases.run_out(&rid).await;
            }
        });
        (!by_id).then(|| remote.json().into())
    }

    /// The name by which a reader asks for the blocks.
    fn lease_name(&self) -> &str {
        match &self.item.transfer {
            Transfer::HoldFor(transfer) => transfer,
            _ => &self.item.rid,
        }
    }

    /// Frees the blocks of an item that ends without an answer.
    pub(super) fn give_blocks_back(&mut self) {
        if let (Some(_), Some(nixl)) = (self.blocks.take(), &self.engine.nixl) {
            nixl.leases.give_back(self.lease_name());
        }
    }
}

/// With it a reader's prompt is compared to the one in the blocks. It does not depend on the model's seed.
fn prompt_fingerprint(prompt: &[u32]) -> u64 {
    Context::start(0).after_all(prompt).fingerprint()
}
