//! INJECT: the fields by which prefill and decode find each other, spliced into the client's own bytes.
//!
//! What lives here: the wire form of rooms and bootstrap addresses, and the splice. What may not: the choice of a room,
//! which the caller makes random and unique, and any other change of the body.
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`GenerateReqInput`) and
//! `srt/disaggregation/decode.py`.

use std::fmt::{self, Write};

use bytes::{Bytes, BytesMut};

use super::ids::RequestId;
use super::request::{Batch, Facts};

/// The number under which the two legs of one prompt find each other, 1..=2^63-1. It must be unique among the live
/// requests of both workers.
///
/// Source: SGLang 0.5.23, `srt/disaggregation/utils.py` (`_apply_metadata_gate`: 0 is no room).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Room(u64);

impl Room {
    /// The largest room.
    pub const MAX: u64 = i64::MAX as u64;

    /// A room of this number; `None` when it is out of range.
    pub const fn new(number: u64) -> Option<Self> {
        if number >= 1 && number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The address of one prefill worker's bootstrap server, as decode reaches it. Its JSON is made once for each worker, so
/// that a request formats only its rooms and ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    host: String,
    port: Option<u16>,
    host_json: String,
    port_json: String,
}

impl Bootstrap {
    /// The bootstrap server at `host`, a name or an address, and `port`; without a port decode uses its own default. An
    /// IPv6 address gets brackets if it has none, because older workers join host and port with a colon.
    pub fn new(host: &str, port: Option<u16>) -> Self {
        let bare_ipv6 = host.contains(':') && !host.starts_with('[');
        let host = if bare_ipv6 {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let host_json = serde_json::Value::from(host.as_str()).to_string();
        let port_json = port.map_or_else(|| "null".to_owned(), |port| port.to_string());
        Self {
            host,
            port,
            host_json,
            port_json,
        }
    }

    /// The host; an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; `None` is decode's own default.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// The fields that [`inject`] writes into a body.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// The bootstrap server of the prefill worker of this attempt.
    pub bootstrap: &'a Bootstrap,
    /// One room for each prompt.
    pub rooms: &'a [Room],
    /// The data parallel rank of prefill that the rooms are on, where the workers must be told it; one for all prompts.
    ///
    /// Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`disagg_prefill_dp_rank`, no list).
    pub rank: Option<u32>,
    /// One id for each prompt; `None` where the client sent its own, or the endpoint takes none.
    pub rids: Option<&'a [RequestId]>,
}

/// A body with the fields of one attempt. The next attempt's body is made from it: see [`Self::again`].
#[derive(Clone, Debug)]
pub struct Injected {
    /// The body of both legs.
    pub body: Bytes,
    /// Length of the client's part, in bytes: the fields begin here.
    end: usize,
    batch: Batch,
    /// Whether the client's part has no member, so that the first field needs no comma.
    bare: bool,
}

/// The spare capacity, in bytes, with which [`inject`] moves no byte of the body of so many prompts. Enough for host
/// names of up to 64 bytes, or of up to 34 with a rank.
pub const fn tail_reserve(prompts: usize) -> usize {
    const NAMES: usize =
        r#","bootstrap_host":[],"bootstrap_port":[],"bootstrap_room":[],"rid":[]}"#.len();
    const HOST: usize = 64 + r#""","#.len();
    const PORT: usize = "65535,".len();
    const ROOM: usize = "9223372036854775807,".len();
    const RID: usize = 32 + r#""","#.len();
    NAMES + prompts * (HOST + PORT + ROOM + RID)
}

/// Writes the fields into a body. The client's fields of these names are cut out in any spelling, each with one comma,
/// and the new ones come before the closing brace; a list of prompts gets lists. All other bytes stay unchanged and in
/// order, except that white space after the closing brace is dropped. When nothing is cut and `body` has the capacity of
/// [`tail_reserve`], no byte is copied or moved.
///
/// `facts` must have been read from this `body`.
///
/// # Panics
/// There is not exactly one room for each prompt of `facts`, or not one id where there are ids: a defect of the caller.
pub fn inject(mut body: BytesMut, facts: &Facts, fields: &Fields<'_>) -> Injected {
    let end = close_gaps(&mut body, facts);
    body.truncate(end);
    write_fields(body, facts.batch, facts.cuts.leaves_nothing(), fields)
}

/// The client's part of a body in pieces: without the closing brace, and without the fields that only the proxy may set.
///
/// `facts` must have been read from this `body`.
pub fn client_part<'a>(body: &'a [u8], facts: &Facts) -> impl Iterator<Item = &'a [u8]> {
    facts.client_part(body)
}

impl Injected {
    /// A body that gets no fields.
    pub fn without_fields(body: Bytes) -> Self {
        Self {
            end: body.len(),
            batch: Batch::Single,
            bare: false,
            body,
        }
    }

    /// The client's part, as [`client_part`] gives it.
    pub fn client_part(&self) -> &[u8] {
        &self.body[..self.end]
    }

    /// The client's part in a new body, with the fields of another attempt.
    ///
    /// # Panics
    /// As [`inject`].
    pub fn again(&self, fields: &Fields<'_>) -> Self {
        let mut body = BytesMut::with_capacity(self.end + tail_reserve(self.batch.prompts()));
        body.extend_from_slice(&self.body[..self.end]);
        write_fields(body, self.batch, self.bare, fields)
    }
}

/// Adds the fields and the closing brace to the client's part of a body.
fn write_fields(mut body: BytesMut, batch: Batch, bare: bool, fields: &Fields<'_>) -> Injected {
    let prompts = batch.prompts();
    assert_eq!(fields.rooms.len(), prompts, "one room for each prompt");
    let end = body.len();
    let mut tail = Tail {
        body: &mut body,
        batch,
        first: bare,
    };
    tail.field(r#""bootstrap_host":"#, |body, _| {
        body.extend_from_slice(fields.bootstrap.host_json.as_bytes());
    });
    tail.field(r#""bootstrap_port":"#, |body, _| {
        body.extend_from_slice(fields.bootstrap.port_json.as_bytes());
    });
    tail.field(r#""bootstrap_room":"#, |body, prompt| {
        append(body, format_args!("{}", fields.rooms[prompt]));
    });
    if let Some(rank) = fields.rank {
        tail.name(r#""disagg_prefill_dp_rank":"#);
        append(tail.body, format_args!("{rank}"));
    }
    if let Some(rids) = fields.rids {
        assert_eq!(rids.len(), prompts, "one id for each prompt");
        tail.field(r#""rid":"#, |body, prompt| {
            append(body, format_args!("\"{}\"", rids[prompt]));
        });
    }
    body.extend_from_slice(b"}");
    Injected {
        body: body.freeze(),
        end,
        batch,
        bare,
    }
}

fn append(body: &mut BytesMut, text: fmt::Arguments<'_>) {
    let written = body.write_fmt(text);
    debug_assert!(written.is_ok(), "a BytesMut grows as needed");
}

/// Closes the gaps that the cuts leave, and returns the new offset of the closing brace.
fn close_gaps(body: &mut [u8], facts: &Facts) -> usize {
    let gaps = facts.cuts.ranges();
    let Some(first) = gaps.first() else {
        return facts.close;
    };
    let mut end = first.start;
    let next = gaps[1..].iter().map(|gap| gap.start).chain([facts.close]);
    for (gap, next) in gaps.iter().zip(next) {
        body.copy_within(gap.end..next, end);
        end += next - gap.end;
    }
    end
}

/// The end of a body, to which fields are added.
struct Tail<'a> {
    body: &'a mut BytesMut,
    batch: Batch,
    /// Whether the next member is the first of the object.
    first: bool,
}

impl Tail<'_> {
    /// Adds one field: the value of the only prompt, or the list of the values of all prompts.
    fn field<F>(&mut self, name: &str, value: F)
    where
        F: Fn(&mut BytesMut, usize),
    {
        self.name(name);
        let list = matches!(self.batch, Batch::Of(_));
        if list {
            self.body.extend_from_slice(b"[");
        }
        for prompt in 0..self.batch.prompts() {
            if prompt > 0 {
                self.body.extend_from_slice(b",");
            }
            value(self.body, prompt);
        }
        if list {
            self.body.extend_from_slice(b"]");
        }
    }

    /// Adds the name of a field, behind a comma where it is not the first.
    fn name(&mut self, name: &str) {
        if !self.first {
            self.body.extend_from_slice(b",");
        }
        self.first = false;
        self.body.extend_from_slice(name.as_bytes());
    }
}

#[cfg(test)]
mod tests;
