//! What a broadcast means for new requests: they wait before the first worker is called, and go on when the last one that
//! is needed has answered.
//!
//! A worker that did not take the word to continue is told again until it does, because nothing else would bring it
//! back: it gets no request meanwhile.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::super::call::Call;
use super::plan::Effect;
use super::report::Part;
use super::{Broadcast, Broadcaster};
use crate::fleet::{Update, Worker};

/// The first pause before a worker is told again to continue, and the longest one. Each is twice the one before.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What was done before the first worker was called.
pub(super) struct Before {
    /// Whether a failure of some workers is undone at the others.
    pub(super) undoes: bool,
    /// Whether generation was paused already.
    was_paused: bool,
    /// Keeps new requests waiting until the broadcast is over.
    _update: Option<Update>,
}

impl Broadcaster {
    /// Has new requests wait, where they must.
    pub(super) fn before(&self, broadcast: &Broadcast) -> Before {
        let effect = broadcast.plan.effect;
        let was_paused = match effect {
            Effect::Pauses => !self.fleet.pause(),
            _ => self.fleet.is_paused(),
        };
        let updates = matches!(effect, Effect::Updates | Effect::Releases);
        Before {
            // A pause that was there before is not ended because a second one fails.
            undoes: !(effect == Effect::Pauses && was_paused),
            was_paused,
            _update: updates.then(|| self.fleet.begin_update()),
        }
    }

    /// Notes what the broadcast came to. A hint for its client; empty where there is none.
    pub(super) fn after(
        self: &Arc<Self>,
        broadcast: &Broadcast,
        before: Before,
        parts: &[Part],
    ) -> &'static str {
        match broadcast.plan.effect {
            Effect::None | Effect::JoinsGroup => {}
            Effect::Pauses => return self.paused(broadcast, &before, parts),
            Effect::Continues => return self.continued(broadcast, &before, parts),
            Effect::Updates => self.note_flushed(parts),
            Effect::Releases => {
                self.note_flushed(parts);
                if parts.iter().any(Part::may_be_done) {
                    self.fleet
                        .note_released(broadcast.tags().unwrap_or_else(all_memory));
                    return "new requests wait until /resume_memory_occupation has succeeded";
                }
            }
            Effect::Resumes if parts.iter().all(Part::is_done) => {
                let tags = broadcast.tags().unwrap_or_else(all_memory);
                self.fleet.note_resumed(tags.iter().map(String::as_str));
            }
            Effect::Resumes => return "new requests wait until it has succeeded",
        }
        ""
    }

    fn note_flushed(&self, parts: &[Part]) {
        for part in parts.iter().filter(|part| part.may_be_done()) {
            self.fleet.note_flushed(&part.worker);
        }
    }

    fn paused(
        self: &Arc<Self>,
        broadcast: &Broadcast,
        before: &Before,
        parts: &[Part],
    ) -> &'static str {
        let done = !parts.is_empty() && parts.iter().all(Part::is_done);
        for part in parts.iter().filter(|part| part.may_be_done()) {
            self.fleet.note_paused(&part.worker, !part.is_undone());
        }
        if done {
            return "";
        }
        if before.was_paused {
            return "generation had been paused before, and stays so";
        }
        self.fleet.unpause();
        self.continue_again(broadcast, parts);
        "generation goes on"
    }

    fn continued(
        self: &Arc<Self>,
        broadcast: &Broadcast,
        before: &Before,
        parts: &[Part],
    ) -> &'static str {
        for part in parts {
            match part.is_done() {
                true => self.fleet.note_paused(&part.worker, false),
                false if before.was_paused => self.fleet.note_paused(&part.worker, true),
                false => {}
            }
        }
        if !broadcast.is_narrow {
            self.fleet.unpause();
        }
        self.continue_again(broadcast, parts);
        match self.fleet.is_closed() {
            false => "new requests go to the others; these are told again until they continue",
            true => "new requests wait until a worker of each role continues; these are told again",
        }
    }

    /// Tells the workers of these parts that are still paused to continue, until they do.
    fn continue_again(self: &Arc<Self>, broadcast: &Broadcast, parts: &[Part]) {
        let Some(call) = broadcast.own_call(
            Method::POST,
            "/continue_generation",
            Bytes::from_static(b"{}"),
        ) else {
            return;
        };
        for part in parts.iter().filter(|part| part.worker.is_paused()) {
            let mut continued = self
                .continued
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if continued.insert(part.worker.id()) {
                let again = self.clone().keep_telling(part.worker.clone(), call.clone());
                // Nothing waits for it: it ends with the runtime, or when the worker continues, leaves or is paused anew.
                tokio::spawn(again);
            }
        }
    }

    async fn keep_telling(self: Arc<Self>, worker: Arc<Worker>, call: Call) {
        let [mut pause, longest] = AGAIN;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
            let _turn = self.turn.lock().await;
            let is_member = self.fleet.members().contains(worker.id());
            if !is_member || !worker.is_paused() || self.fleet.is_paused() {
                break;
            }
            if call.send(&self.client, &worker).await.succeeded() {
                let (role, url) = (worker.role(), worker.url());
                log::info!("worker has continued generation role={role} worker={url}");
                self.fleet.note_paused(&worker, false);
                break;
            }
        }
        let mut continued = self
            .continued
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        continued.remove(&worker.id());
    }
}

impl Broadcast {
    /// The memory that the request names; `None` where it means all.
    fn tags(&self) -> Option<Vec<String>> {
        let Value::Array(tags) = self.field("tags")? else {
            return None;
        };
        let names = tags.iter().filter_map(Value::as_str).map(str::to_owned);
        Some(names.collect())
    }
}

/// The memory that is meant where a request names none. Source: SGLang 0.5.23 `srt/constants.py`, `GPU_MEMORY_ALL_TYPES`.
fn all_memory() -> Vec<String> {
    ["kv_cache", "weights", "cuda_graph"]
        .map(str::to_owned)
        .into()
}
