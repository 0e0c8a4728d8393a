//! The events of a worker in order: connections, requests, rooms, aborts, violations.
//!
//! Tests assert on it, and wait for its entries in place of sleeping. It keeps no prompt and of the header values only
//! the request id; a body is kept as its length and hash.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

/// One event with its time.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Entry {
    /// Number of the entry, from 0. [`Journal::clear`] does not reset it.
    pub sequence: u64,
    /// Microseconds since the worker started, on the monotonic clock.
    pub at_us: u64,
    /// The event, whose fields are on the level of the entry in JSON.
    #[serde(flatten)]
    pub event: Event,
}

/// An event. `connection` and `request` are numbers within this worker, from 1.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // the fields repeat the words of the wire
pub enum Event {
    /// A client's connection was accepted.
    ConnectionOpened { connection: u64, peer: String },
    /// A client's connection was closed, by either side.
    ConnectionClosed { connection: u64, by: ClosedBy },
    /// A request head was read.
    RequestHead {
        connection: u64,
        request: u64,
        method: String,
        path: String,
        headers: Vec<String>,
        request_id: Option<String>,
        authorization: bool,
    },
    /// The body of a request was read to the end.
    RequestBody {
        request: u64,
        bytes: usize,
        sha256: String,
    },
    /// An item of a generation request came with a room.
    RoomPresented {
        request: u64,
        rid: String,
        room: String,
        host: Option<String>,
        port: Option<u64>,
    },
    /// A room changed its state.
    RoomState { room: String, state: RoomState },
    /// The blocks that a vLLM worker holds for the reader of a request changed their state.
    Lease { rid: String, state: LeaseState },
    /// `/abort_request` matched this request id.
    AbortByRid { rid: String },
    /// The client left before its response was complete.
    AbortByDisconnect { request: u64 },
    /// Decode aborted a room.
    AbortByPeer { room: String },
    /// The response's head was handed to the connection.
    ResponseHead { request: u64, status: u16 },
    /// The response's last byte was handed to the connection.
    ResponseFinished { request: u64 },
    /// A rule of the worker's script fired for this request.
    FaultInjected {
        request: u64,
        rule: String,
        action: &'static str,
    },
    /// A rule of the protocol was broken.
    Violation { rule: Violation, detail: String },
}

/// The side that closed a connection.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClosedBy {
    /// The client, or an error of the connection.
    Client,
    /// This worker, after the keep-alive time without a request.
    KeepAlive,
    /// This worker, because it stopped or a scripted fault took it down.
    Worker,
}

/// The states of a room on one worker. Source: SGLang 0.5.23, `disaggregation/base/conn.py`, `KVPoll`.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // SGLang's words
pub enum RoomState {
    Bootstrapping,
    WaitingForInput,
    Transferring,
    Success,
    Failed,
}

/// The states of the blocks that a vLLM prefill worker holds.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// The request is answered, and its blocks wait for decode.
    Held,
    /// Decode wants them, and waits for memory.
    Renewed,
    /// Decode has read them.
    Read,
    /// Decode needs them no longer, without having read them.
    Released,
    /// Decode did not come in time.
    Expired,
}

/// A rule of the protocol that a balancer broke.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Violation {
    /// A room was presented while another request of this worker, or another decode, was in it.
    DuplicateRoom,
    /// A request with a body came without `content-length`.
    MissingContentLength,
    /// A request body was chunked.
    ChunkedRequestBody,
    /// The two legs of a room had different prompts.
    LegsDiffer,
    /// A generation request reached prefill or decode without a room.
    MissingRoom,
    /// A request reached decode with a room and without a host.
    NullBootstrapHost,
    /// Room 0 was presented, which is reserved.
    ReservedRoom,
    /// Several samples of a prompt (`n > 1`) share its room.
    SharedRoom,
    /// `logprob_start_len` is below -1, in a request that wants logprobs.
    LogprobStartOutOfRange,
    /// vLLM: blocks were read for a request after those of another request had been read under the same params.
    ParamsUsedTwice,
    /// vLLM: blocks were read for another prompt than the one that they were computed for.
    ParamsOfAnotherBody,
    /// vLLM: blocks were read after their lease.
    ParamsAfterLease,
    /// vLLM: a request had `kv_transfer_params` that no prefill worker has given, or had them twice.
    ForeignParams,
    /// vLLM: a prefill leg asked for more than one token.
    LongPrefillLeg,
    /// vLLM: a prefill leg asked for a stream, whose events have no params.
    StreamedPrefillLeg,
    /// vLLM: a prefill leg reached a decode worker.
    PrefillLegOnDecode,
    /// vLLM: a decode leg reached a prefill worker.
    DecodeLegOnPrefill,
}

/// The journal of one worker. Cheap to clone; all clones are the same journal.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    started: Instant,
    capacity: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    sequence: u64,
    open_connections: usize,
    connections_total: u64,
    open_rooms: usize,
    open_leases: usize,
    violations: BTreeMap<Violation, u64>,
}

/// The timeout of [`Journal::wait_for`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeverHappened {
    /// How long it waited.
    pub waited: Duration,
}

impl std::fmt::Display for NeverHappened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the journal did not show it within {:?}", self.waited)
    }
}

impl std::error::Error for NeverHappened {}

impl Journal {
    pub(crate) fn new(capacity: usize) -> Journal {
        let inner = Inner {
            started: Instant::now(),
            capacity,
            state: Mutex::default(),
            changed: Notify::new(),
        };
        Journal {
            inner: Arc::new(inner),
        }
    }

    /// A copy of the kept entries, oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.state().entries.iter().cloned().collect()
    }

    /// Drops the entries and the counts of violations. The other counters stay.
    pub fn clear(&self) {
        let mut state = self.state();
        state.entries.clear();
        state.violations.clear();
    }

    /// Waits until `seen` is true for the entries (oldest first), and returns them.
    ///
    /// # Errors
    /// [`NeverHappened`] when `deadline` passes first.
    pub async fn wait_for(
        &self,
        seen: impl Fn(&[Entry]) -> bool,
        deadline: Duration,
    ) -> Result<Vec<Entry>, NeverHappened> {
        let waiting = async {
            loop {
                let changed = self.inner.changed.notified();
                tokio::pin!(changed);
                // Registered before the look, so that an entry between the two wakes this task.
                changed.as_mut().enable();
                if let Some(entries) = self.matching(&seen) {
                    return entries;
                }
                changed.await;
            }
        };
        tokio::time::timeout(deadline, waiting)
            .await
            .map_err(|_| NeverHappened { waited: deadline })
    }

    /// Number of open client connections.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.state().open_connections
    }

    /// Number of client connections accepted since the start.
    #[must_use]
    pub fn connections_total(&self) -> u64 {
        self.state().connections_total
    }

    /// Number of rooms that wait or transfer.
    #[must_use]
    pub fn open_rooms(&self) -> usize {
        self.state().open_rooms
    }

    /// Number of answered requests whose blocks wait for decode, on a vLLM worker.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.state().open_leases
    }

    /// How often each rule was broken, since the start or the last [`Journal::clear`].
    #[must_use]
    pub fn violations(&self) -> BTreeMap<Violation, u64> {
        self.state().violations.clone()
    }

    /// Whether entries are kept. If not, callers need not build them.
    pub(crate) fn keeps_entries(&self) -> bool {
        self.inner.capacity > 0
    }

    pub(crate) fn connection_opened(&self, peer: impl FnOnce() -> String) -> u64 {
        let connection = {
            let mut state = self.state();
            state.open_connections += 1;
            state.connections_total += 1;
            state.connections_total
        };
        self.push(|| Event::ConnectionOpened {
            connection,
            peer: peer(),
        });
        connection
    }

    pub(crate) fn connection_closed(&self, connection: u64, by: ClosedBy) {
        self.state().open_connections -= 1;
        self.push(|| Event::ConnectionClosed { connection, by });
    }

    pub(crate) fn body(&self, request: u64, body: &[u8]) {
        self.push(|| Event::RequestBody {
            request,
            bytes: body.len(),
            sha256: sha256_hex(body),
        });
    }

    pub(crate) fn room(&self, room: i128, state: RoomState) {
        self.push(|| Event::RoomState {
            room: room.to_string(),
            state,
        });
    }

    pub(crate) fn room_opened(&self, room: i128) {
        self.state().open_rooms += 1;
        self.room(room, RoomState::Bootstrapping);
    }

    pub(crate) fn room_closed(&self, room: i128, state: RoomState) {
        self.state().open_rooms -= 1;
        self.room(room, state);
    }

    pub(crate) fn lease(&self, rid: &str, state: LeaseState) {
        self.push(|| Event::Lease {
            rid: rid.to_owned(),
            state,
        });
    }

    pub(crate) fn lease_opened(&self, rid: &str) {
        self.state().open_leases += 1;
        self.lease(rid, LeaseState::Held);
    }

    pub(crate) fn lease_closed(&self, rid: &str, state: LeaseState) {
        self.state().open_leases -= 1;
        self.lease(rid, state);
    }

    pub(crate) fn violation(&self, rule: Violation, detail: impl FnOnce() -> String) {
        *self.state().violations.entry(rule).or_default() += 1;
        self.push(|| Event::Violation {
            rule,
            detail: detail(),
        });
    }

    pub(crate) fn push(&self, event: impl FnOnce() -> Event) {
        if self.keeps_entries() {
            let event = event();
            let at_us = u64::try_from(self.inner.started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut state = self.state();
            if state.entries.len() == self.inner.capacity {
                state.entries.pop_front();
            }
            let sequence = state.sequence;
            state.sequence += 1;
            state.entries.push_back(Entry {
                sequence,
                at_us,
                event,
            });
        }
        self.inner.changed.notify_waiters();
    }

    fn matching(&self, seen: &impl Fn(&[Entry]) -> bool) -> Option<Vec<Entry>> {
        let mut state = self.state();
        let entries = state.entries.make_contiguous();
        seen(entries).then(|| entries.to_vec())
    }

    /// A lock is poisoned when a test's closure panicked. The entries are consistent then too.
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_hash_is_sha256() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn the_oldest_entries_go_first_and_counters_stay() {
        let journal = Journal::new(2);
        for _ in 0..3 {
            journal.connection_opened(|| "peer".to_owned());
        }
        let kept: Vec<u64> = journal.entries().iter().map(|e| e.sequence).collect();
        assert_eq!((kept, journal.connections_total()), (vec![1, 2], 3));
    }

    #[tokio::test]
    async fn waiting_ends_with_a_later_entry() {
        let journal = Journal::new(8);
        let writer = journal.clone();
        let seen = journal.wait_for(|entries| !entries.is_empty(), Duration::from_secs(5));
        let (seen, ()) = tokio::join!(seen, async {
            writer.push(|| Event::AbortByRid {
                rid: "r".to_owned(),
            });
        });
        assert_eq!(seen.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn waiting_ends_with_an_error_after_the_deadline() {
        let journal = Journal::new(8);
        let waited = Duration::ZERO;
        assert_eq!(
            journal.wait_for(|_| false, waited).await,
            Err(NeverHappened { waited })
        );
    }
}
