//! INJECT: the fields by which prefill and decode find each other, spliced into the client's own bytes.
//!
//! What lives here: the wire form of rooms and bootstrap addresses, and the splice. What may not: the
//! choice of a room (randomness and uniqueness are the caller's) and any other change of the body.
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`GenerateReqInput`) and
//! `srt/disaggregation/decode.py`.

use std::fmt::{self, Write};

use bytes::{Bytes, BytesMut};

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

/// The id under which a worker knows a request, made by the proxy: 32 hexadecimal digits like SGLang's own, so
/// that SGLang's matching by prefix hits nothing else.
///
/// Source: SGLang 0.5.23, `srt/managers/scheduler.py` (`abort_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::Route;
    use super::super::request::parse;
    use super::*;

    /// Injects rooms 1, 2, 3... for prefill `p:8998` into a body of `/generate`.
    fn injected(body: &str) -> String {
        let facts = parse(Route::Generate, body.as_bytes()).unwrap();
        let rooms: Vec<Room> = (1..)
            .take(facts.batch.prompts())
            .map(|n| Room::new(n).unwrap())
            .collect();
        let bootstrap = Bootstrap::new("p", Some(8998));
        let fields = Fields {
            bootstrap: &bootstrap,
            rooms: &rooms,
            rids: None,
        };
        let injected = inject(body.as_bytes().into(), &facts, &fields);
        String::from_utf8(injected.body.to_vec()).unwrap()
    }

    const SCALARS: &str = r#""bootstrap_host":"p","bootstrap_port":8998,"bootstrap_room":1}"#;

    #[test]
    fn a_scalar_room_is_spliced_for_one_prompt() {
        assert_eq!(injected("{}"), format!("{{{SCALARS}"));
        assert_eq!(
            injected(r#"{"text":"a"}"#),
            format!(r#"{{"text":"a",{SCALARS}"#)
        );
    }

    #[test]
    fn lists_are_spliced_for_a_batch_of_any_size() {
        for (body, fields) in [
            (
                r#"{"text":[]"#,
                r#""bootstrap_host":[],"bootstrap_port":[],"bootstrap_room":[]}"#,
            ),
            (
                r#"{"text":["a"]"#,
                r#""bootstrap_host":["p"],"bootstrap_port":[8998],"bootstrap_room":[1]}"#,
            ),
            (
                r#"{"text":["a","b"]"#,
                r#""bootstrap_host":["p","p"],"bootstrap_port":[8998,8998],"bootstrap_room":[1,2]}"#,
            ),
        ] {
            assert_eq!(injected(&format!("{body}}}")), format!("{body},{fields}"));
        }
    }

    #[test]
    fn the_clients_own_fields_are_cut_in_any_spelling_and_nothing_else_changes() {
        for (body, kept) in [
            (r#"{"bootstrap_room":7}"#, "{"),
            (
                r#"{ "bootstrap_room" : 7 , "bootstrap_host":"x" }"#,
                "{    ",
            ),
            (r#"{"bootstrap_room":7,"a":1}"#, r#"{"a":1,"#),
            (
                r#"{"a":1 , "bootstrap_room":{"b":[7]} , "c":1e400}"#,
                r#"{"a":1   , "c":1e400,"#,
            ),
            (
                r#"{"a":-0,"bootstrap_room":7,"\u0062ootstrap_room":8}"#,
                r#"{"a":-0,"#,
            ),
            (
                r#"{"a":{"bootstrap_room":7},"bootstrap_rooms":1}"#,
                r#"{"a":{"bootstrap_room":7},"bootstrap_rooms":1,"#,
            ),
            (
                "\n{\"a\":123456789012345678901234567890\t}\n\n",
                "\n{\"a\":123456789012345678901234567890\t,",
            ),
        ] {
            assert_eq!(injected(body), format!("{kept}{SCALARS}"), "{body}");
        }
    }

    #[test]
    fn no_byte_moves_when_nothing_is_cut_and_there_is_room_to_spare() {
        let text = format!(r#"{{"text":"{}"}}"#, "a".repeat(1000));
        let facts = parse(Route::Generate, text.as_bytes()).unwrap();
        let bootstrap = Bootstrap::new(&"h".repeat(64), Some(u16::MAX));
        let rooms = [Room::new(Room::MAX).unwrap()];
        let mut body = BytesMut::with_capacity(text.len() + tail_reserve(1));
        body.extend_from_slice(text.as_bytes());
        let before = body.as_ptr();
        let after = inject(
            body,
            &facts,
            &Fields {
                bootstrap: &bootstrap,
                rooms: &rooms,
                rids: Some(&[RequestId(u128::MAX)]),
            },
        );
        assert_eq!(after.body.as_ptr(), before);
    }

    #[test]
    fn another_pair_gets_the_same_body_with_other_fields() {
        let (one, two) = (Bootstrap::new("p", Some(1)), Bootstrap::new("q", None));
        let rooms = [1, 2, 3, 4].map(|n| Room::new(n).unwrap());
        for (body, kept) in [
            (r#"{"text":["a","b"]}"#, r#"{"text":["a","b"],"#),
            (r#"{"bootstrap_room":9}"#, "{"),
        ] {
            let facts = parse(Route::Generate, body.as_bytes()).unwrap();
            let prompts = facts.batch.prompts();
            let first = Fields {
                bootstrap: &one,
                rooms: &rooms[..prompts],
                rids: Some(&[RequestId(10), RequestId(11)][..prompts]),
            };
            let second = Fields {
                bootstrap: &two,
                rooms: &rooms[2..2 + prompts],
                rids: Some(&[RequestId(12), RequestId(13)][..prompts]),
            };
            let sent = inject(body.into(), &facts, &first);
            let again = sent.again(&second).again(&first).again(&second);
            let fresh = inject(body.into(), &facts, &second);
            assert_eq!(again.body, fresh.body);
            assert!(fresh.body.starts_with(kept.as_bytes()));
            assert_ne!(sent.body, fresh.body);
        }
    }

    #[test]
    fn an_id_is_one_for_one_prompt_and_a_list_for_a_batch() {
        let bootstrap = Bootstrap::new("p", None);
        let room = Room::new(1).unwrap();
        for (body, rid) in [
            ("{}", r#""rid":"000000000000000000000000000000ff"}"#),
            (
                r#"{"text":["a"]}"#,
                r#""rid":["000000000000000000000000000000ff"]}"#,
            ),
        ] {
            let facts = parse(Route::Generate, body.as_bytes()).unwrap();
            let fields = Fields {
                bootstrap: &bootstrap,
                rooms: &[room],
                rids: Some(&[RequestId(255)]),
            };
            let injected = inject(body.into(), &facts, &fields);
            assert!(
                injected.body.ends_with(rid.as_bytes()),
                "{:?}",
                injected.body
            );
        }
    }

    #[test]
    fn an_ipv6_address_is_bracketed_once_and_a_missing_port_is_null() {
        for (host, port, host_json, port_json) in [
            (
                "prefill-0.local",
                Some(8998),
                r#""prefill-0.local""#,
                "8998",
            ),
            ("10.0.0.1", None, r#""10.0.0.1""#, "null"),
            ("fd00::1", Some(1), r#""[fd00::1]""#, "1"),
            ("[fd00::1]", Some(65535), r#""[fd00::1]""#, "65535"),
            ("fe80::1%eth0", None, r#""[fe80::1%eth0]""#, "null"),
            ("a\"b", None, r#""a\"b""#, "null"),
        ] {
            let bootstrap = Bootstrap::new(host, port);
            assert_eq!(
                (&*bootstrap.host_json, &*bootstrap.port_json),
                (host_json, port_json)
            );
            assert_eq!(bootstrap.port(), port);
        }
        assert_eq!(Bootstrap::new("fd00::1", None).host(), "[fd00::1]");
    }

    #[test]
    fn a_room_is_neither_zero_nor_beyond_63_bits() {
        assert_eq!(Room::new(0), None);
        assert_eq!(Room::new(1).map(Room::number), Some(1));
        assert_eq!(
            Room::new(Room::MAX).unwrap().to_string(),
            "9223372036854775807"
        );
        assert_eq!(Room::new(Room::MAX + 1), None);
    }

    #[test]
    #[should_panic(expected = "one room for each prompt")]
    fn a_wrong_number_of_rooms_is_never_sent() {
        let facts = parse(Route::Generate, b"{}").unwrap();
        inject(
            "{}".into(),
            &facts,
            &Fields {
                bootstrap: &Bootstrap::new("p", None),
                rooms: &[],
                rids: None,
            },
        );
    }
}
