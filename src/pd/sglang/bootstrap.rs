//! INJECT: the fields by which prefill and decode find each other, spliced into the client's own bytes.
//!
//! What lives here: the wire form of rooms and bootstrap addresses, and the splice. What may not: the
//! choice of a room (randomness and uniqueness are the caller's) and any other change of the body.
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`GenerateReqInput`) and
//! `srt/disaggregation/decode.py`.

use std::fmt::{self, Write};

use bytes::{Bytes, BytesMut};

use super::ids::RequestId;
use super::request::{Batch, Facts};

/// A rendezvous number, 1..=2^63-1. It must be unique among the live requests of both workers.
///
/// Room 0 means "not written yet" to decode, which then waits until its timeout; above 2^63-1 the worker
/// refuses the body. Source: SGLang 0.5.23, `srt/disaggregation/utils.py` (`_apply_metadata_gate`).
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

/// Where the bootstrap registry of one prefill worker listens, as decode reaches it. The JSON text is
/// made once for each worker, so that a request formats nothing but its rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    host: String,
    port: Option<u16>,
    host_json: String,
    port_json: String,
}

impl Bootstrap {
    /// The registry at `host`, a name or an address. An IPv6 address is put into brackets if it is not,
    /// because older workers join host and port with a colon. Without a port decode takes its own.
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

    /// The host, bracketed if it is an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; `None` stands for decode's own default.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// What [`inject`] writes into a body.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// Where the chosen prefill worker's registry listens.
    pub bootstrap: &'a Bootstrap,
    /// One room for each prompt.
    pub rooms: &'a [Room],
    /// One id for each prompt, where the client sent none and the endpoint takes one.
    pub rids: Option<&'a [RequestId]>,
}

/// A body with its fields, and what is needed to give it others.
#[derive(Clone, Debug)]
pub struct Injected {
    /// What the workers get.
    pub body: Bytes,
    /// Where the fields begin.
    end: usize,
    batch: Batch,
    /// Whether nothing stands before the fields.
    bare: bool,
}

/// Room that a body of so many prompts should have to spare, for [`inject`] to write without moving the
/// body. It suffices for host names of up to 64 bytes.
pub const fn tail_reserve(prompts: usize) -> usize {
    const NAMES: usize =
        r#","bootstrap_host":[],"bootstrap_port":[],"bootstrap_room":[],"rid":[]}"#.len();
    const HOST: usize = 64 + r#""","#.len();
    const PORT: usize = "65535,".len();
    const ROOM: usize = "9223372036854775807,".len();
    const RID: usize = 32 + r#""","#.len();
    NAMES + prompts * (HOST + PORT + ROOM + RID)
}

/// Writes the fields into a body: cuts out every field of these names that the client sent, in any
/// spelling, each with one comma, and puts the new ones in front of the closing brace; a list of prompts
/// gets lists. Every other byte stays as it is and in order, except that white space behind the closing
/// brace is dropped. When nothing is cut and `body` has room to spare, no byte of it is copied or moved.
///
/// `facts` must have been read from this `body`.
///
/// # Panics
/// When there is not exactly one room for each prompt of `facts`, which is a mistake of the caller: each
/// prompt has one rendezvous.
pub fn inject(mut body: BytesMut, facts: &Facts, fields: &Fields<'_>) -> Injected {
    let end = cut(&mut body, facts);
    body.truncate(end);
    close(body, facts.batch, facts.cuts.leaves_nothing(), fields)
}

impl Injected {
    /// The same body with other fields, for another pair.
    ///
    /// # Panics
    /// As [`inject`].
    pub fn again(&self, fields: &Fields<'_>) -> Self {
        let mut body = BytesMut::with_capacity(self.end + tail_reserve(self.batch.prompts()));
        body.extend_from_slice(&self.body[..self.end]);
        close(body, self.batch, self.bare, fields)
    }
}

/// Adds the fields and the closing brace to a body that ends before it.
fn close(mut body: BytesMut, batch: Batch, bare: bool, fields: &Fields<'_>) -> Injected {
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

/// Closes the gaps of what is cut, up to the closing brace, and gives where that would stand now.
fn cut(body: &mut [u8], facts: &Facts) -> usize {
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

/// The end of a body, where fields are added.
struct Tail<'a> {
    body: &'a mut BytesMut,
    batch: Batch,
    first: bool,
}

impl Tail<'_> {
    /// Adds one field: the value for the one prompt, or the list of the values for all of them.
    fn field<F>(&mut self, name: &str, value: F)
    where
        F: Fn(&mut BytesMut, usize),
    {
        if !self.first {
            self.body.extend_from_slice(b",");
        }
        self.first = false;
        self.body.extend_from_slice(name.as_bytes());
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
}

#[cfg(test)]
mod tests;
