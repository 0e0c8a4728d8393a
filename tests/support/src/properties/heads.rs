//! Properties of the request filter: a request that it accepts has one reading. Pingora's session reads the bytes, the
//! filter checks them as the proxy does, and a strict reader that shares no code with either must find the
//! same requests: the same fields, bodies and ends.
//!
//! Input: how many bytes reach Pingora at once, the bytes of a connection.
//!
//! Source: RFC 9112; httparse 1.10.1 (`parse_chunk_size`) for what Pingora takes beyond it.

use bytes::{Bytes, BytesMut};
use mini_lb::inside::{check as check_head, is_served};
use pingora::protocols::http::v1::server::HttpSession;
use tokio::io::AsyncWriteExt;

use super::decisions::Decisions;

/// The check reads no more requests than this from one connection.
const MAX_REQUESTS: usize = 8;

/// The outcome of the connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that the filter accepted, with their whole bodies.
    pub admitted: usize,
    /// Whether the filter refused a head that Pingora accepts.
    pub refused: bool,
}

pub fn check(bytes: &[u8]) -> Outcome {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
    }
    let mut choices = Decisions::new(bytes);
    let step = match choices.below(64) {
        0 => 1 << 16,
        step => step,
    };
    let connection = choices.rest();
    let (mut client, server) = tokio::io::duplex(step);
    let sent = async move {
        // The server closes the connection when it stops reading.
        let _ = client.write_all(connection).await;
    };
    RUNTIME
        .with(|runtime| runtime.block_on(async { tokio::join!(sent, read(server, connection)).1 }))
}

/// Reads requests as long as the filter accepts them and the connection stays open.
async fn read(server: tokio::io::DuplexStream, mut bytes: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut session = HttpSession::new(Box::new(server));
    while outcome.admitted < MAX_REQUESTS {
        let Ok(Some(_)) = session.read_request().await else {
            return outcome;
        };
        session.set_pipelining_enabled(true);
        if check_head(&session.get_headers_raw_bytes()).is_err() {
            outcome.refused = true;
            return outcome;
        }
        let (wanted, behind) = Head::read(bytes).unwrap_or_else(|| panic!("one reading only"));
        wanted.is_as_pingora_has_it(&session);
        wanted.is_served_as_it_is_written(&session);
        let mut body = BytesMut::new();
        let whole = loop {
            match session.read_body_bytes().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        if !whole {
            return outcome;
        }
        let (wanted, behind) = wanted.framing.body(behind).expect("the same end");
        assert_eq!(body, wanted);
        outcome.admitted += 1;
        let Ok(Some(next)) = session.reuse().await else {
            return outcome;
        };
        let (stream, prefix) = next.into_parts();
        session = HttpSession::new(stream);
        if let Some(prefix) = prefix {
            assert!(behind.starts_with(&prefix));
            session.set_pipelined_prefix(prefix);
        }
        bytes = behind;
    }
    outcome
}

/// A head by the letter of RFC 9112.
struct Head<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: http::Version,
    fields: Vec<(&'a [u8], &'a [u8])>,
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    None,
    Length(usize),
    Chunked,
}

impl<'a> Head<'a> {
    /// The head at the beginning of these bytes, and the rest.
    fn read(mut bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        while let Some(rest) = bytes.strip_prefix(b"\r\n") {
            bytes = rest;
        }
        let end = find(bytes, b"\r\n\r\n")?;
        let (head, behind) = (&bytes[..end], &bytes[end + 4..]);
        let mut lines = split(head, b"\r\n").into_iter();
        let line = lines.next()?;
        // Pingora escapes spaces in the target before a worker gets it, so they have one meaning.
        let method = &line[..find(line, b" ")?];
        let version_at = line.iter().rposition(|byte| *byte == b' ')? + 1;
        let target = line.get(method.len() + 1..version_at - 1)?;
        let version = match &line[version_at..] {
            b"HTTP/1.1" => http::Version::HTTP_11,
            b"HTTP/1.0" => http::Version::HTTP_10,
            _ => return None,
        };
        let is_text = |byte: &u8| !byte.is_ascii_control();
        if !is_token(method) || !target.iter().all(is_text) || !is_target(target, method) {
            return None;
        }
        let fields = lines.map(field).collect::<Option<Vec<_>>>()?;
        let framing = Framing::of(&fields, version)?;
        let head = Head {
            method,
            target,
            version,
            fields,
            framing,
        };
        Some((head, behind))
    }

    fn is_as_pingora_has_it(&self, session: &HttpSession) {
        let parsed = session.req_header();
        assert_eq!(parsed.method.as_str().as_bytes(), self.method);
        assert_eq!(parsed.version, self.version);
        let raw = session.get_headers_raw_bytes();
        let start = raw.iter().position(|byte| !b"\r\n".contains(byte)).unwrap();
        let line = &raw[start..start + find(&raw[start..], b"\r\n").unwrap()];
        let target = line
            .strip_prefix(self.method)
            .and_then(|rest| rest.get(1..rest.len().checked_sub(" HTTP/1.1".len())?))
            .unwrap();
        assert_eq!(unescaped(target), unescaped(self.target));
        let mut found: Vec<(Vec<u8>, &[u8])> = parsed
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().into(), value.as_bytes()))
            .collect();
        let lower = |name: &[u8]| name.to_ascii_lowercase();
        let mut wanted: Vec<(Vec<u8>, &[u8])> = self
            .fields
            .iter()
            .map(|(name, value)| (lower(name), *value))
            .collect();
        // A header map keeps no order between names.
        found.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found, wanted);
    }

    /// A path that is served is an entry of the table, byte for byte; below `/*` it has no `..`.
    fn is_served_as_it_is_written(&self, session: &HttpSession) {
        let path = session.req_header().uri.path();
        if !is_served(path) {
            return;
        }
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/_-".contains(byte);
        let open = ["/v1/models/", "/v1/responses/"];
        assert!(
            path.as_bytes().iter().all(is_plain)
                || open.iter().any(|above| path.starts_with(above)),
            "{path}"
        );
    }
}

impl Framing {
    /// `None` when two parsers could disagree.
    fn of(fields: &[(&[u8], &[u8])], version: http::Version) -> Option<Self> {
        let called = |wanted: &str| -> Vec<&[u8]> {
            let fields = fields.iter();
            let fields = fields.filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()));
            fields.map(|(_, value)| *value).collect()
        };
        let old = version == http::Version::HTTP_10;
        let is_authority = |host: &&[u8]| {
            let text = |byte: &u8| byte.is_ascii_graphic() && !b"\"#/<>?@\\^`{|}".contains(byte);
            host.iter().all(text)
        };
        match called("host")[..] {
            [] if old => {}
            [host] if is_authority(&host) => {}
            _ => return None,
        }
        for shadow in ["content_length", "transfer_encoding", "transfer_Encoding"] {
            if !called(shadow).is_empty() {
                return None;
            }
        }
        match (
            &called("content-length")[..],
            &called("transfer-encoding")[..],
        ) {
            ([], []) => Some(Framing::None),
            ([length], []) if length.iter().all(u8::is_ascii_digit) => {
                let length = std::str::from_utf8(length).ok()?;
                Some(Framing::Length(length.parse().ok()?))
            }
            ([], [coding]) if !old && coding.eq_ignore_ascii_case(b"chunked") => {
                Some(Framing::Chunked)
            }
            _ => None,
        }
    }

    /// The body at the beginning of these bytes, and the rest.
    fn body(self, bytes: &[u8]) -> Option<(Bytes, &[u8])> {
        match self {
            Framing::None => Some((Bytes::new(), bytes)),
            Framing::Length(length) => {
                let (body, behind) = bytes.split_at_checked(length)?;
                Some((Bytes::copy_from_slice(body), behind))
            }
            Framing::Chunked => chunks(bytes),
        }
    }
}

/// Section 7.1. Pingora accepts more, in a body whose chunks no worker sees: a missing size as
/// 0, blanks after a size, any octet but CR in an extension, anything as a trailer.
fn chunks(mut bytes: &[u8]) -> Option<(Bytes, &[u8])> {
    let mut body = BytesMut::new();
    loop {
        let end = find(bytes, b"\r\n")?;
        let line = &bytes[..end];
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let (digits, rest) = line.split_at(digits.count());
        let rest = rest.trim_ascii_start();
        if digits.len() > 16
            || !(rest.is_empty() || rest.starts_with(b";"))
            || rest.contains(&b'\r')
        {
            return None;
        }
        let size = digits.iter().fold(0, |size, digit| {
            size << 4 | u64::from(char::from(*digit).to_digit(16).unwrap())
        });
        bytes = &bytes[end + 2..];
        if size == 0 {
            let trailers = match bytes.starts_with(b"\r\n") {
                true => 2,
                false => find(bytes, b"\r\n\r\n")? + 4,
            };
            return Some((body.freeze(), &bytes[trailers..]));
        }
        let (chunk, behind) = bytes.split_at_checked(usize::try_from(size).ok()?)?;
        body.extend_from_slice(chunk);
        bytes = behind.strip_prefix(b"\r\n")?;
    }
}

/// Section 3.2: a path, a URL, `*`, or the authority of a CONNECT.
fn is_target(target: &[u8], method: &[u8]) -> bool {
    let lower = target.to_ascii_lowercase();
    let begins = |with: &str| lower.starts_with(with.as_bytes());
    begins("/") || begins("http://") || begins("https://") || lower == b"*" || method == b"CONNECT"
}

/// Section 5: a token, a colon, and a value that may have blanks around it.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = line.split_at(find(line, b":")?);
    let value = &value[1..];
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    if !is_token(name) || !value.iter().all(is_text) {
        return None;
    }
    Some((name, value.trim_ascii()))
}

fn is_token(word: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !word.is_empty() && word.iter().all(is_token)
}

fn unescaped(target: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut at = 0;
    while at < target.len() {
        let hex = |offset: usize| char::from(*target.get(at + offset)?).to_digit(16);
        match (target[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn split<'a>(mut bytes: &'a [u8], between: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = find(bytes, between) {
        parts.push(&bytes[..at]);
        bytes = &bytes[at + between.len()..];
    }
    parts.push(bytes);
    parts
}
