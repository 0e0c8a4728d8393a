//! Decode's side of the rendezvous: its connections to prefill workers, one to each.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{DuplicateRoom, Record, Room, ToDecode, ToPrefill};
use crate::sim::journal::{Journal, RoomState, Violation};
use crate::sim::registry;

/// Number of attempts to get a prefill worker's topology before a request fails.
/// Source: SGLang 0.5.23, `disaggregation/decode.py`, 15 tries at least 1 s apart.
const TRIES: usize = 15;

/// An event of a room, for decode's request.
#[derive(Debug)]
pub(crate) enum KvEvent {
    /// The KV cache and the record have arrived.
    Arrived(Record),
    /// Another decode is in the room.
    Refused,
    /// The connection to prefill is lost.
    LostPrefill,
}

/// The registry did not respond, or its response has no rank.
#[derive(Debug)]
pub(crate) struct PeerUnreachable;

/// The prefill workers that a decode worker is connected to, by bootstrap address, and its live rooms. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Journal,
    retry: Duration,
    /// Time until a lost prefill is noticed: two missed heartbeats.
    grace: Duration,
    live: Mutex<HashSet<Room>>,
    known: Mutex<HashMap<String, Arc<OnceCell<Arc<Peer>>>>>,
}

/// A connection to one prefill worker. It closes when the last reference is dropped.
struct Peer {
    lines: UnboundedSender<String>,
    rooms: Mutex<HashMap<Room, UnboundedSender<KvEvent>>>,
}

/// A request's room on this decode worker. Dropping it frees the room.
pub(crate) struct RoomOnDecode {
    peers: Peers,
    room: Room,
    outcome: RoomState,
}

/// A room that has been presented to prefill. Dropped before its end, it sends prefill an abort.
pub(crate) struct Meeting {
    peer: Arc<Peer>,
    room: Room,
    events: UnboundedReceiver<KvEvent>,
    over: bool,
}

impl Peers {
    pub(crate) fn new(journal: Journal, retry: Duration, grace: Duration) -> Peers {
        let inner = Inner {
            journal,
            retry,
            grace,
            live: Mutex::default(),
            known: Mutex::default(),
        };
        Peers {
            inner: Arc::new(inner),
        }
    }

    /// Takes a room for a request.
    ///
    /// # Errors
    /// When another request is in the room, which the journal notes.
    pub(crate) fn enter(&self, room: Room) -> Result<RoomOnDecode, DuplicateRoom> {
        if !lock(&self.inner.live).insert(room) {
            let room = || format!("room {room}");
            self.inner.journal.violation(Violation::DuplicateRoom, room);
            return Err(DuplicateRoom);
        }
        self.inner.journal.room_opened(room);
        Ok(RoomOnDecode {
            peers: self.clone(),
            room,
            outcome: RoomState::Failed,
        })
    }

    /// Closes all connections.
    pub(crate) fn disconnect(&self) {
        lock(&self.inner.known).clear();
    }

    async fn peer(&self, address: &str) -> Result<Arc<Peer>, PeerUnreachable> {
        let cell = lock(&self.inner.known)
            .entry(address.to_owned())
            .or_default()
            .clone();
        cell.get_or_try_init(|| self.meet(address)).await.cloned()
    }

    async fn meet(&self, address: &str) -> Result<Arc<Peer>, PeerUnreachable> {
        let rank = self.find_rank(address).await.ok_or(PeerUnreachable)?;
        let stream = TcpStream::connect(rank)
            .await
            .map_err(|_| PeerUnreachable)?;
        let _ = stream.set_nodelay(true); // only latency
        let (lines, outgoing) = unbounded_channel();
        let peer = Arc::new(Peer {
            lines,
            rooms: Mutex::default(),
        });
        let serving = serve_peer(stream, outgoing, Arc::downgrade(&peer));
        let (inner, address, rooms) = (
            self.inner.clone(),
            address.to_owned(),
            Arc::downgrade(&peer),
        );
        // Ends when the peer is dropped (its channel closes) or prefill closes the connection.
        tokio::spawn(async move {
            serving.await;
            tokio::time::sleep(inner.grace).await;
            if let Some(peer) = rooms.upgrade() {
                lock(&inner.known).remove(&address);
                for (_, room) in lock(&peer.rooms).drain() {
                    let _ = room.send(KvEvent::LostPrefill);
                }
            }
        });
        Ok(peer)
    }

    /// Gets the topology and then the rank's address, in two requests to the registry.
    async fn find_rank(&self, address: &str) -> Option<String> {
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(self.inner.retry).await;
            }
            if let Some(topology) = registry::ask(address, registry::TOPOLOGY).await {
                topology.get("dp_size").and_then(Value::as_u64)?;
                // The rank of a room is the room modulo `dp_size`. Those of a simulated worker have one address.
                return self.rank_address(address).await;
            }
        }
        None
    }

    async fn rank_address(&self, address: &str) -> Option<String> {
        let rank = registry::ask(address, registry::FIRST_RANK).await?;
        let port = rank.get("rank_port")?.as_u64()?;
        let ip: std::net::IpAddr = rank.get("rank_ip")?.as_str()?.parse().ok()?;
        if ip.is_unspecified() {
            // A rank that listens on all addresses has the host of its registry.
            let (host, _) = address.rsplit_once(':')?;
            return Some(format!("{host}:{port}"));
        }
        Some(std::net::SocketAddr::new(ip, u16::try_from(port).ok()?).to_string())
    }
}

impl RoomOnDecode {
    /// Connects to the prefill worker at `address`. It does not know the room yet.
    pub(crate) async fn resolve(&self, address: &str) -> Result<Resolved, PeerUnreachable> {
        Ok(Resolved {
            peer: self.peers.peer(address).await?,
            room: self.room,
        })
    }

    pub(crate) fn state(&self, state: RoomState) {
        self.peers.inner.journal.room(self.room, state);
    }

    pub(crate) fn succeeded(mut self) {
        self.outcome = RoomState::Success;
    }
}

impl Drop for RoomOnDecode {
    fn drop(&mut self) {
        lock(&self.peers.inner.live).remove(&self.room);
        self.peers
            .inner
            .journal
            .room_closed(self.room, self.outcome);
    }
}

/// A room whose prefill worker is connected.
pub(crate) struct Resolved {
    peer: Arc<Peer>,
    room: Room,
}

impl Resolved {
    /// Presents the room to prefill.
    pub(crate) fn present(self) -> Meeting {
        let (sender, events) = unbounded_channel();
        lock(&self.peer.rooms).insert(self.room, sender);
        self.peer.send(&ToPrefill::Destination(self.room));
        Meeting {
            peer: self.peer,
            room: self.room,
            events,
            over: false,
        }
    }
}

impl Meeting {
    pub(crate) async fn event(&mut self) -> KvEvent {
        let event = self.events.recv().await.unwrap_or(KvEvent::LostPrefill);
        self.over = !matches!(event, KvEvent::Arrived(_));
        event
    }

    /// Confirms to prefill that the KV cache has arrived.
    pub(crate) fn taken(&mut self) {
        self.over = true;
        self.peer.send(&ToPrefill::Taken(self.room));
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        lock(&self.peer.rooms).remove(&self.room);
        if !self.over {
            self.peer.send(&ToPrefill::Abort(self.room));
        }
    }
}

impl Peer {
    /// An error means a closed connection, which the task that serves it notices.
    fn send(&self, message: &ToPrefill) {
        let _ = self.lines.send(message.line());
    }

    fn receive(&self, message: ToDecode) {
        let (room, event) = match message {
            ToDecode::Kv(room, record) => (room, KvEvent::Arrived(*record)),
            ToDecode::Refused(room) => (room, KvEvent::Refused),
            // In SGLang it frees KV memory, which is not simulated.
            ToDecode::AbortAck(_) => return,
        };
        if let Some(owner) = lock(&self.rooms).get(&room) {
            let _ = owner.send(event);
        }
    }
}

async fn serve_peer(
    stream: TcpStream,
    mut outgoing: UnboundedReceiver<String>,
    peer: std::sync::Weak<Peer>,
) {
    let (reader, mut writer) = stream.into_split();
    let writing = async move {
        while let Some(line) = outgoing.recv().await {
            if writer.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
    };
    let reading = async move {
        let mut incoming = BufReader::new(reader).lines();
        while let Ok(Some(line)) = incoming.next_line().await {
            let (Some(message), Some(peer)) = (ToDecode::parse(&line), peer.upgrade()) else {
                break;
            };
            peer.receive(message);
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
}

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
