//! The bootstrap rooms of live requests.
//!
//! A room names one rendezvous, so two live requests never share one: the random draw is checked against the
//! rooms that are in use.
//! Source: SGLang 0.5.23, `disaggregation/decode.py`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::Spread;
use crate::pd::Room;

/// The set of rooms that are in use now.
#[derive(Default)]
pub struct LiveRooms {
    rooms: Mutex<HashSet<Room>>,
}

/// The rooms of one request, one for each prompt. Given back when dropped.
pub struct Rooms {
    rooms: Vec<Room>,
    /// The rank of prefill that the request must name.
    rank: Option<u32>,
    live: Arc<LiveRooms>,
}

impl LiveRooms {
    /// Takes `count` rooms that no live request has, each on the rank that `spread` has for its prompt. `random` must give
    /// uniform 64-bit values.
    pub fn take(
        self: &Arc<Self>,
        count: usize,
        spread: Option<Spread>,
        mut random: impl FnMut() -> u64,
    ) -> Rooms {
        let mut live = self.lock();
        let mut rooms = Vec::with_capacity(count);
        while rooms.len() < count {
            // The sign bit goes: a room is a positive signed 64-bit integer.
            let drawn = random() >> 1;
            let room = match spread {
                None => Some(drawn),
                Some(spread) => spread.room(rooms.len(), drawn),
            };
            if let Some(room) = room.and_then(Room::new)
                && live.insert(room)
            {
                rooms.push(room);
            }
        }
        drop(live);
        Rooms {
            rooms,
            rank: spread.and_then(Spread::named),
            live: self.clone(),
        }
    }

    /// How many rooms are in use.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no room is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Room>> {
        // Nothing panics while the lock is held, and a set of integers has no state to be broken.
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rooms {
    /// The rooms, in the order of the prompts.
    pub fn as_slice(&self) -> &[Room] {
        &self.rooms
    }

    /// The rank of prefill that the request must name to both workers, on which all of them are; `None` where they say it
    /// themselves.
    pub fn rank(&self) -> Option<u32> {
        self.rank
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        let mut live = self.live.lock();
        for room in &self.rooms {
            live.remove(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_in_use_and_room_zero_are_never_given_out() {
        let live = Arc::new(LiveRooms::default());
        let mut draws = [2, 0, 1, 3, 2, 5, 4, 12].into_iter();
        let mut random = || draws.next().unwrap_or(u64::MAX);
        let first = live.take(1, None, &mut random); // draws 2: room 1
        let second = live.take(2, None, &mut random); // 0 and 1 are room 0, 3 and 2 are room 1 again, 5 is room 2, 4 the same
        let numbers = |rooms: &Rooms| {
            rooms
                .as_slice()
                .iter()
                .map(|room| room.number())
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(&first), [1]);
        assert_eq!(numbers(&second), [2, 6]);
        assert_eq!(live.len(), 3);
        drop(first);
        drop(second);
        assert!(live.is_empty());
    }

    #[test]
    fn rooms_are_on_the_ranks_of_their_prompts() {
        let live = Arc::new(LiveRooms::default());
        let mut draws = (0..).map(|draw: u64| draw * 20);
        let mut random = || draws.next().unwrap_or_default();
        let rooms = live.take(6, Some(Spread::new(2, 4, 6)), &mut random);
        let numbers = rooms.as_slice().iter().map(|room| room.number() % 4);
        assert_eq!(numbers.collect::<Vec<_>>(), [2, 3, 0, 1, 2, 3]);
        let others = live.take(1, Some(Spread::new(2, 4, 1)), &mut random);
        assert_eq!(others.as_slice()[0].number() % 4, 2);
        assert_eq!(live.len(), 7);
        assert_eq!((rooms.rank(), others.rank()), (None, None));
        let named = live.take(3, Some(Spread::on_replica(1, 4)), &mut random);
        let numbers = named.as_slice().iter().map(|room| room.number() % 4);
        assert_eq!(numbers.collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(named.rank(), Some(1));
    }
}
