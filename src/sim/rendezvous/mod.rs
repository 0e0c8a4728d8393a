//! Rooms: how the two legs of a request find each other over TCP.
//!
//! Decode gets the rank port from prefill's registry, connects, and presents the room. Only then does prefill compute
//! the prompt. It sends the metadata record with the first token, and is done when decode has taken it. One connection
//! for each pair of workers carries all rooms, as one ZeroMQ socket does in SGLang. Its lines:
//!
//! ```text
//! decode -> prefill:  destination R | taken R | abort R
//! prefill -> decode:  kv R {record} | abort_ack R | refused R
//! ```
//!
//! Request ids, error bodies and timeouts are `engine`'s.
//! Source of the sequence: SGLang 0.5.23, `disaggregation/common/conn.py` and `mooncake/conn.py`.

mod decode;
mod prefill;

use serde::{Deserialize, Serialize};

pub(crate) use decode::{KvEvent, Meeting, Peers};
pub(crate) use prefill::{RoomEvent, RoomOnPrefill, Rooms, serve_rank};

/// The id of a rendezvous. An unbounded integer in SGLang, except on `/generate`, whose schema bounds it.
pub(crate) type Room = i128;

/// The room is live on this worker already; the journal has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DuplicateRoom;

/// The metadata that prefill hands to decode with the KV cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) first_token: u32,
    #[serde(with = "exact")]
    pub(crate) logprob: f64,
    #[serde(with = "exact_rows")]
    pub(crate) top: Vec<(f64, u32)>,
    pub(crate) cached_tokens: usize,
    /// Not in SGLang's record. Decode compares it to detect legs with different prompts.
    pub(crate) prompt_fingerprint: u64,
}

/// A float as its bits, because its decimal form could differ in the last digit.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

mod exact_rows {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        rows: &[(f64, u32)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(rows.iter().map(|(value, token)| (value.to_bits(), token)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(f64, u32)>, D::Error> {
        let rows = Vec::<(u64, u32)>::deserialize(deserializer)?;
        Ok(rows
            .into_iter()
            .map(|(bits, token)| (f64::from_bits(bits), token))
            .collect())
    }
}

/// A line from decode to prefill.
#[derive(Debug, PartialEq)]
enum ToPrefill {
    Destination(Room),
    Taken(Room),
    Abort(Room),
}

/// A line from prefill to decode.
#[derive(Debug, PartialEq)]
enum ToDecode {
    Kv(Room, Box<Record>),
    AbortAck(Room),
    /// Another decode is in this room.
    Refused(Room),
}

impl ToPrefill {
    fn line(&self) -> String {
        match self {
            ToPrefill::Destination(room) => format!("destination {room}\n"),
            ToPrefill::Taken(room) => format!("taken {room}\n"),
            ToPrefill::Abort(room) => format!("abort {room}\n"),
        }
    }

    fn parse(line: &str) -> Option<ToPrefill> {
        let (word, room) = line.split_once(' ')?;
        let room = room.parse().ok()?;
        match word {
            "destination" => Some(ToPrefill::Destination(room)),
            "taken" => Some(ToPrefill::Taken(room)),
            "abort" => Some(ToPrefill::Abort(room)),
            _ => None,
        }
    }
}

impl ToDecode {
    fn line(&self) -> String {
        match self {
            ToDecode::Kv(room, record) => {
                // A record has no map and no foreign type: it always serializes.
                let record = serde_json::to_string(record).unwrap_or_default();
                format!("kv {room} {record}\n")
            }
            ToDecode::AbortAck(room) => format!("abort_ack {room}\n"),
            ToDecode::Refused(room) => format!("refused {room}\n"),
        }
    }

    fn parse(line: &str) -> Option<ToDecode> {
        let mut parts = line.splitn(3, ' ');
        let (word, room) = (parts.next()?, parts.next()?.parse().ok()?);
        match word {
            "kv" => Some(ToDecode::Kv(
                room,
                serde_json::from_str(parts.next()?).ok()?,
            )),
            "abort_ack" => Some(ToDecode::AbortAck(room)),
            "refused" => Some(ToDecode::Refused(room)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_parses_to_what_wrote_it() {
        let record = Record {
            first_token: 522,
            logprob: -0.008722892962396145,
            top: vec![(-0.1, 522), (-0.98586328125, 1658)],
            cached_tokens: 9,
            prompt_fingerprint: u64::MAX,
        };
        for message in [
            ToDecode::Kv(i128::from(u64::MAX) + 1, Box::new(record)),
            ToDecode::AbortAck(-1),
            ToDecode::Refused(4),
        ] {
            assert_eq!(ToDecode::parse(message.line().trim_end()), Some(message));
        }
        for message in [
            ToPrefill::Destination(1),
            ToPrefill::Taken(2),
            ToPrefill::Abort(3),
        ] {
            assert_eq!(ToPrefill::parse(message.line().trim_end()), Some(message));
        }
    }

    #[test]
    fn a_malformed_line_is_refused() {
        assert_eq!(ToPrefill::parse("destination x"), None);
        assert_eq!(ToDecode::parse("kv 7 {}"), None);
    }
}
