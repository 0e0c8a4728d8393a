//! Where the body of a response begins and ends: bytes in, body bytes out, no I/O.
//!
//! The rules are those of RFC 9112 section 6.3, and the same for both legs. [`transfer`] decides about every
//! response, decode's included, whose body Pingora reads. Where Pingora takes more
//! than it would have to, so does this file: a response must not be taken from one worker and refused from the other.
//!
//! Source: pingora-core 0.9.1 `protocols/http/v1/client.rs` (`read_response`), `v1/common.rs`
//! (`content_length_parse_all`), `v1/body.rs` (`parse_chunked_buf`).

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode};
use pingora::{Error, ErrorType};

use super::response_head::{Head, bad_head};

/// The longest chunk-size line, in bytes; also the limit of all trailers together.
const MAX_CHUNK_LINE_BYTES: usize = 4 << 10;

/// The error of a body that breaks its framing.
pub(super) const BAD_FRAMING: ErrorType = ErrorType::new("InvalidFraming");

/// The part of a body that has not been decoded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Nothing: the body has ended.
    Done,
    /// This many bytes.
    Length(u64),
    /// A chunked body, at the line with the size of the next chunk.
    ChunkSize,
    /// A chunked body, with this many bytes of the current chunk missing.
    Chunk(u64),
    /// A chunked body, at the line end after the data of a chunk.
    ChunkEnd,
    /// A chunked body, after its last chunk.
    Trailers,
    /// Everything up to the end of the connection.
    UntilClosed,
}

impl Framing {
    /// The framing of the response with this head to a request with this method.
    ///
    /// # Errors
    /// `InvalidHTTPHeader`: the head allows more than one framing.
    pub(super) fn of(head: &Head, method: &Method) -> pingora::Result<Self> {
        let transfer = match transfer(&head.headers, head.is_http_11) {
            Ok(transfer) => transfer,
            Err(why) => return bad_head(why),
        };
        let status = head.status;
        let has_no_body = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || *method == Method::HEAD;
        Ok(match transfer {
            _ if has_no_body => Framing::Done,
            Transfer::Chunks => Framing::ChunkSize,
            Transfer::Length(0) => Framing::Done,
            Transfer::Length(length) => Framing::Length(length),
            Transfer::UntilClosed => Framing::UntilClosed,
        })
    }

    /// Takes the body bytes that have arrived off the front of `buf`; empty when there are none, or when the body
    /// has ended ([`Framing::Done`]). The data of several chunks comes out as one piece.
    ///
    /// # Errors
    /// [`BAD_FRAMING`].
    pub(super) fn decode(&mut self, buf: &mut BytesMut) -> pingora::Result<Bytes> {
        match *self {
            Framing::Done => Ok(Bytes::new()),
            Framing::UntilClosed => Ok(buf.split().freeze()),
            Framing::Length(left) => {
                let piece = split(buf, left);
                *self = match left - piece.len() as u64 {
                    0 => Framing::Done,
                    left => Framing::Length(left),
                };
                Ok(piece)
            }
            _ => self.decode_chunks(buf),
        }
    }

    fn decode_chunks(&mut self, buf: &mut BytesMut) -> pingora::Result<Bytes> {
        // The data of a single chunk is a slice of `buf`; only a second chunk makes a copy necessary.
        let mut first = Bytes::new();
        let mut joined = BytesMut::new();
        while *self != Framing::Done {
            let before = (*self, buf.len());
            if let Framing::Chunk(left) = *self {
                let piece = split(buf, left);
                *self = match left - piece.len() as u64 {
                    0 => Framing::ChunkEnd,
                    left => Framing::Chunk(left),
                };
                if first.is_empty() && joined.is_empty() {
                    first = piece;
                } else {
                    joined.extend_from_slice(&std::mem::take(&mut first));
                    joined.extend_from_slice(&piece);
                }
            } else {
                self.skip_line(buf)?;
            }
            // Neither the state nor the buffer has changed: the rest has not arrived.
            if before == (*self, buf.len()) {
                break;
            }
        }
        Ok(if joined.is_empty() {
            first
        } else {
            joined.freeze()
        })
    }

    /// Consumes the line between two chunks, or the trailers, if its end has arrived.
    fn skip_line(&mut self, buf: &mut BytesMut) -> pingora::Result<()> {
        match *self {
            Framing::ChunkSize => match httparse::parse_chunk_size(buf) {
                Ok(httparse::Status::Complete((line, size))) => {
                    buf.advance(line);
                    *self = match size {
                        0 => Framing::Trailers,
                        size => Framing::Chunk(size),
                    };
                }
                Ok(httparse::Status::Partial) if buf.len() > MAX_CHUNK_LINE_BYTES => {
                    return Error::e_explain(BAD_FRAMING, "a chunk-size line that is too long");
                }
                Ok(httparse::Status::Partial) => {}
                Err(_) => {
                    return Error::e_explain(BAD_FRAMING, "a chunk without a valid size");
                }
            },
            Framing::ChunkEnd if buf.len() >= 2 => {
                if !buf.starts_with(b"\r\n") {
                    return Error::e_explain(BAD_FRAMING, "a chunk longer than its size");
                }
                buf.advance(2);
                *self = Framing::ChunkSize;
            }
            Framing::Trailers => {
                let end = if buf.starts_with(b"\r\n") {
                    Some(2)
                } else {
                    memchr::memmem::find(buf, b"\r\n\r\n").map(|at| at + 4)
                };
                match end {
                    // Discarded: no reader of this crate needs trailers.
                    Some(end) => {
                        buf.advance(end);
                        *self = Framing::Done;
                    }
                    None if buf.len() > MAX_CHUNK_LINE_BYTES => {
                        return Error::e_explain(BAD_FRAMING, "trailers that are too long");
                    }
                    None => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first `most` bytes of `buf`, or all of it when it has fewer.
fn split(buf: &mut BytesMut, most: u64) -> Bytes {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    buf.split_to(most.min(buf.len())).freeze()
}

/// How a response brings its body, by its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    /// In chunks.
    Chunks,
    /// This many bytes.
    Length(u64),
    /// Everything up to the end of the connection.
    UntilClosed,
}

/// How a response with these fields brings its body. Chunks override a length, whatever that is, because Pingora removes
/// it before this crate sees decode's head.
///
/// # Errors
/// Why the response is refused: its body comes in another way, or in two.
pub(super) fn transfer(headers: &HeaderMap, is_http_11: bool) -> Result<Transfer, &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(_), _) if !is_http_11 => return Err("a transfer coding in HTTP/1.0"),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            return Ok(Transfer::Chunks);
        }
        _ => return Err("a transfer coding other than chunked"),
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(Transfer::UntilClosed),
        (Some(_), Some(_)) => Err("two Content-Lengths"),
        (Some(only), None) => {
            let digits = only.to_str().unwrap_or_default();
            // `parse` alone would take a sign.
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            let length = digits.parse().ok().filter(|_| is_number);
            length
                .map(Transfer::Length)
                .ok_or("a Content-Length that is not a number")
        }
    }
}

/// The size in a chunk-size line, given up to but without its line feed; `None` for any other line.
///
/// For chunks that are joined. `httparse::parse_chunk_size` takes more: a line without digits for the last chunk, and a
/// line feed for part of an extension.
pub(super) fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r")?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
    let (size, extension) = line.split_at(digits.count());
    let first = extension.trim_ascii_start().first();
    if extension.contains(&b'\r') || first.is_some_and(|first| *first != b';') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_size_line_has_digits_and_at_most_an_extension() {
        for (line, size) in [
            ("5\r", Some(5)),
            ("0\r", Some(0)),
            ("00a\r", Some(10)),
            ("fF;a=b\r", Some(255)),
            ("5 \t;x\r", Some(5)),
            ("5 \r", Some(5)),
            ("ffffffffffffffff\r", Some(u64::MAX)),
            ("10000000000000000\r", None),
            ("5", None),
            ("\r", None),
            (";a\r", None),
            ("+5\r", None),
            ("0x5\r", None),
            ("5 5\r", None),
            ("5;a\rb\r", None),
        ] {
            assert_eq!(chunk_size(line.as_bytes()), size, "{line:?}");
        }
    }

    #[test]
    fn one_chunk_is_a_slice_of_the_buffer_and_several_are_one_piece() {
        let mut framing = Framing::ChunkSize;
        let mut buf = BytesMut::from(&b"5\r\nhello"[..]);
        let data = buf[3..].as_ptr();
        let piece = framing.decode(&mut buf).unwrap();
        assert_eq!((piece.as_ptr(), &piece[..]), (data, &b"hello"[..]));
        assert_eq!(framing, Framing::ChunkEnd);
        buf.extend_from_slice(b"\r\n1\r\na\r\n2\r\nbc\r\n3\r\nd");
        assert_eq!(framing.decode(&mut buf).unwrap(), "abcd");
        assert_eq!(framing, Framing::Chunk(2));
        buf.extend_from_slice(b"ef\r\n0\r\n\r\nnext");
        assert_eq!(framing.decode(&mut buf).unwrap(), "ef");
        assert_eq!((framing, &buf[..]), (Framing::Done, &b"next"[..]));
    }
}
