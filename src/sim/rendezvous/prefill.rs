//! Prefill's side of the rendezvous: the table of rooms, and the rank port that decode workers connect to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{DuplicateRoom, Record, Room, ToDecode, ToPrefill};
use crate::sim::journal::{Event, Journal, RoomState, Violation};

/// An event of a room, for prefill's request.
#[derive(Debug)]
pub(crate) enum RoomEvent {
    /// Decode has allocated memory and waits for the KV cache.
    Destination(Destination),
    /// Decode has the KV cache and the record.
    Taken,
    /// Decode gave the room up, or its connection is gone.
    Lost,
}

/// The decode worker that the KV cache of a room goes to.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    connection: u64,
    lines: UnboundedSender<String>,
}

impl Destination {
    /// An error means a closed connection, which its reader reports to the room.
    pub(crate) fn send_kv(&self, room: Room, record: Record) {
        let _ = self.lines.send(ToDecode::Kv(room, Box::new(record)).line());
    }
}

/// The rooms that live on one prefill worker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rooms {
    slots: Arc<Mutex<HashMap<Room, Slot>>>,
    journal: Journal,
}

enum Slot {
    /// Decode's leg came first.
    Early(Destination),
    /// Prefill's request is in the room.
    Owned {
        owner: UnboundedSender<RoomEvent>,
        destination: Option<Destination>,
    },
}

/// A request's room on this prefill worker. Dropping it frees the room.
pub(crate) struct RoomOnPrefill {
    rooms: Rooms,
    room: Room,
    events: UnboundedReceiver<RoomEvent>,
    outcome: RoomState,
}

impl Rooms {
    pub(crate) fn new(journal: Journal) -> Rooms {
        Rooms {
            slots: Arc::default(),
            journal,
        }
    }

    /// Takes a room for a request.
    ///
    /// # Errors
    /// When another request is in the room, which the journal notes.
    pub(crate) fn enter(&self, room: Room) -> Result<RoomOnPrefill, DuplicateRoom> {
        let (owner, events) = unbounded_channel();
        {
            let mut slots = self.slots();
            let destination = match slots.remove(&room) {
                None => None,
                Some(Slot::Early(destination)) => Some(destination),
                Some(owned) => {
                    slots.insert(room, owned);
                    return Err(self.duplicate(room));
                }
            };
            if let Some(destination) = &destination {
                // Cannot fail: the receiver is still here.
                let _ = owner.send(RoomEvent::Destination(destination.clone()));
            }
            slots.insert(room, Slot::Owned { owner, destination });
        }
        self.journal.room_opened(room);
        let outcome = RoomState::Failed;
        Ok(RoomOnPrefill {
            rooms: self.clone(),
            room,
            events,
            outcome,
        })
    }

    fn destination(&self, room: Room, destination: Destination) -> Result<(), DuplicateRoom> {
        let mut slots = self.slots();
        match slots.get_mut(&room) {
            None => {
                slots.insert(room, Slot::Early(destination));
                Ok(())
            }
            Some(Slot::Owned {
                owner,
                destination: none @ None,
            }) => {
                *none = Some(destination.clone());
                let _ = owner.send(RoomEvent::Destination(destination));
                Ok(())
            }
            Some(_) => Err(self.duplicate(room)),
        }
    }

    fn duplicate(&self, room: Room) -> DuplicateRoom {
        self.journal
            .violation(Violation::DuplicateRoom, || format!("room {room}"));
        DuplicateRoom
    }

    fn taken(&self, room: Room) {
        if let Some(Slot::Owned { owner, .. }) = self.slots().get(&room) {
            let _ = owner.send(RoomEvent::Taken);
        }
    }

    fn abort(&self, room: Room) {
        let mut slots = self.slots();
        match slots.get(&room) {
            Some(Slot::Owned { owner, .. }) => {
                let _ = owner.send(RoomEvent::Lost);
            }
            Some(Slot::Early(_)) => {
                slots.remove(&room);
            }
            None => {}
        }
    }

    /// A connection of decode has ended: its rooms with a request are lost, the others removed.
    fn disconnected(&self, connection: u64) {
        self.slots().retain(|_, slot| match slot {
            Slot::Early(destination) => destination.connection != connection,
            Slot::Owned { owner, destination } => {
                if destination
                    .as_ref()
                    .is_some_and(|d| d.connection == connection)
                {
                    let _ = owner.send(RoomEvent::Lost);
                }
                true
            }
        });
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Room, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RoomOnPrefill {
    pub(crate) async fn event(&mut self) -> RoomEvent {
        // The table keeps the sender until this is dropped.
        self.events.recv().await.unwrap_or(RoomEvent::Lost)
    }

    pub(crate) fn state(&self, state: RoomState) {
        self.rooms.journal.room(self.room, state);
    }

    pub(crate) fn succeeded(mut self) {
        self.outcome = RoomState::Success;
    }
}

impl Drop for RoomOnPrefill {
    fn drop(&mut self) {
        self.rooms.slots().remove(&self.room);
        self.rooms.journal.room_closed(self.room, self.outcome);
    }
}

/// Serves one decode's connection to the rank port until it ends.
pub(crate) async fn serve_rank(stream: TcpStream, connection: u64, rooms: Rooms) {
    let (lines, mut outgoing) = unbounded_channel::<String>();
    let (reader, mut writer) = stream.into_split();
    let writing = async move {
        while let Some(line) = outgoing.recv().await {
            if writer.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        let mut incoming = BufReader::new(reader).lines();
        while let Ok(Some(line)) = incoming.next_line().await {
            match ToPrefill::parse(&line) {
                Some(ToPrefill::Destination(room)) => {
                    let destination = Destination {
                        connection,
                        lines: lines.clone(),
                    };
                    if rooms.destination(room, destination).is_err() {
                        let _ = lines.send(ToDecode::Refused(room).line());
                    }
                }
                Some(ToPrefill::Taken(room)) => rooms.taken(room),
                Some(ToPrefill::Abort(room)) => {
                    rooms.journal.push(|| Event::AbortByPeer {
                        room: room.to_string(),
                    });
                    rooms.abort(room);
                    let _ = lines.send(ToDecode::AbortAck(room).line());
                }
                None => break,
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
    rooms.disconnected(connection);
}
