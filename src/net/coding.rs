//! The coding of a body: gzip and zstd, where this crate must read what a worker, or a sidecar in front of it, has
//! compressed unasked. What only passes through is never decoded.
//!
//! Source: RFC 9110 section 8.4; RFC 9659 (the window of zstd).

use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use pingora::protocols::http::compression::{Algorithm, Encode};
use zstd::stream::raw::{Decoder as ZstdDecoder, Operation};
use zstd::zstd_safe::DParameter;

/// Input is decoded in steps of this size, so that a limit is noticed before a bomb has filled the memory: gzip gives at
/// most a thousand times as much.
const IN_STEP: usize = 1 << 10;
/// The output of one step of zstd, in bytes.
const OUT_STEP: usize = 16 << 10;
/// The largest window of zstd, as a power of two: 8 MiB.
const ZSTD_WINDOW: u32 = 23;
/// The longest name of a coding that is quoted.
const NAME_LIMIT: usize = 32;

/// A coding that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Zstd,
}

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CodingError {
    /// It has this coding, which is not decoded.
    Unknown(String),
    /// It is not what its coding says.
    Invalid(Coding),
    /// It has more than this many bytes when it is decoded.
    TooLong(usize),
}

impl fmt::Display for CodingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodingError::Unknown(name) => {
                write!(f, "content coding {name}, which is not decoded here")
            }
            CodingError::Invalid(coding) => write!(f, "not valid {}", coding.name()),
            CodingError::TooLong(limit) => write!(f, "more than {limit} bytes once decoded"),
        }
    }
}

impl Coding {
    /// The coding of a message with these fields; `None` where it is not compressed.
    ///
    /// # Errors
    /// [`CodingError::Unknown`].
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, CodingError> {
        let mut coding = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            let name = value.as_bytes().trim_ascii().to_ascii_lowercase();
            let this = match &name[..] {
                b"identity" | b"" => continue,
                b"gzip" | b"x-gzip" => Self::Gzip,
                b"zstd" => Self::Zstd,
                _ => return Err(CodingError::Unknown(quoted(&name))),
            };
            if coding.replace(this).is_some() {
                return Err(CodingError::Unknown("of more than one kind".to_owned()));
            }
        }
        Ok(coding)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// A whole body, which has at most `limit` bytes when it is decoded.
    ///
    /// # Errors
    /// [`CodingError`]. A body that lacks its end is invalid.
    pub(crate) fn decode(self, body: &[u8], limit: usize) -> Result<Bytes, CodingError> {
        let mut decoder = Decoder::new(self, limit)?;
        let decoded = decoder.decode(body)?;
        decoder.finish()?;
        Ok(decoded)
    }

    /// The begin of a body of which this much has come, up to about `limit` bytes of it.
    ///
    /// # Errors
    /// [`CodingError::Invalid`].
    pub(crate) fn decode_begin(self, begin: &[u8], limit: usize) -> Result<Bytes, CodingError> {
        let mut out = BytesMut::new();
        match Decoder::new(self, limit)?.decode_into(begin, &mut out) {
            Ok(()) | Err(CodingError::TooLong(_)) => Ok(out.freeze()),
            Err(error) => Err(error),
        }
    }
}

/// A name for a message, without bytes that would need quotes.
fn quoted(name: &[u8]) -> String {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_., ".contains(byte);
    match std::str::from_utf8(name) {
        Ok(text) if text.len() <= NAME_LIMIT && name.iter().all(is_token) => text.to_owned(),
        _ => "without a valid name".to_owned(),
    }
}

/// Decodes one body piece by piece.
pub(crate) struct Decoder {
    coding: Coding,
    engine: Engine,
    /// The most bytes that one piece may become.
    limit: usize,
}

enum Engine {
    Gzip(Box<dyn Encode + Send + Sync>),
    Zstd {
        decoder: ZstdDecoder<'static>,
        at_frame_end: bool,
    },
}

impl Decoder {
    /// A decoder at the begin of a body. One piece may become `limit` bytes.
    ///
    /// # Errors
    /// [`CodingError::Unknown`]: not in this build.
    pub(crate) fn new(coding: Coding, limit: usize) -> Result<Self, CodingError> {
        let engine = match coding {
            Coding::Gzip => Algorithm::Gzip.decompressor(true).map(Engine::Gzip),
            Coding::Zstd => zstd_decoder().ok().map(|decoder| Engine::Zstd {
                decoder,
                at_frame_end: false,
            }),
        };
        let unknown = || CodingError::Unknown(coding.name().to_owned());
        Ok(Self {
            coding,
            engine: engine.ok_or_else(unknown)?,
            limit,
        })
    }

    /// The next piece.
    ///
    /// # Errors
    /// [`CodingError`].
    pub(crate) fn decode(&mut self, piece: &[u8]) -> Result<Bytes, CodingError> {
        let mut out = BytesMut::new();
        self.decode_into(piece, &mut out)?;
        Ok(out.freeze())
    }

    fn decode_into(&mut self, piece: &[u8], out: &mut BytesMut) -> Result<(), CodingError> {
        let (coding, limit) = (self.coding, self.limit);
        let append = |out: &mut BytesMut, decoded: &[u8]| {
            out.extend_from_slice(decoded);
            match out.len() > limit {
                true => Err(CodingError::TooLong(limit)),
                false => Ok(()),
            }
        };
        match &mut self.engine {
            Engine::Gzip(engine) => {
                for step in piece.chunks(IN_STEP) {
                    let decoded = engine.encode(step, false);
                    append(out, &decoded.map_err(|_| CodingError::Invalid(coding))?)?;
                }
            }
            Engine::Zstd {
                decoder,
                at_frame_end,
            } => {
                let mut rest = piece;
                let mut step = vec![0; OUT_STEP];
                while !rest.is_empty() {
                    let status = decoder.run_on_buffers(rest, &mut step);
                    let status = status.map_err(|_| CodingError::Invalid(coding))?;
                    rest = &rest[status.bytes_read..];
                    *at_frame_end = status.remaining == 0;
                    append(out, &step[..status.bytes_written])?;
                    if status.bytes_read == 0 && status.bytes_written == 0 {
                        return Err(CodingError::Invalid(coding));
                    }
                    // What the input gives beyond one step comes out before more of it is read.
                    let mut full = status.bytes_written == step.len();
                    while full {
                        let status = decoder.run_on_buffers(&[], &mut step);
                        let status = status.map_err(|_| CodingError::Invalid(coding))?;
                        *at_frame_end = status.remaining == 0;
                        append(out, &step[..status.bytes_written])?;
                        full = status.bytes_written == step.len();
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes that no piece follows.
    ///
    /// # Errors
    /// [`CodingError::Invalid`]: the body lacks its end.
    pub(crate) fn finish(&mut self) -> Result<(), CodingError> {
        let is_whole = match &mut self.engine {
            Engine::Gzip(engine) => engine.encode(&[], true).is_ok(),
            Engine::Zstd { at_frame_end, .. } => *at_frame_end,
        };
        match is_whole {
            true => Ok(()),
            false => Err(CodingError::Invalid(self.coding)),
        }
    }
}

fn zstd_decoder() -> io::Result<ZstdDecoder<'static>> {
    let mut decoder = ZstdDecoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW))?;
    Ok(decoder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn encoded(coding: Coding, plain: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Gzip => {
                let mut encoder = Algorithm::Gzip.compressor(6).unwrap();
                encoder.encode(plain, true).unwrap().to_vec()
            }
            Coding::Zstd => zstd::encode_all(plain, 3).unwrap(),
        }
    }

    #[test]
    fn a_body_is_decoded_whole_or_in_pieces_of_any_size() {
        let plain: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for coding in [Coding::Gzip, Coding::Zstd] {
            let body = encoded(coding, &plain);
            assert_eq!(coding.decode(&body, plain.len()).unwrap(), plain);
            let too_long = CodingError::TooLong(plain.len() - 1);
            assert_eq!(coding.decode(&body, plain.len() - 1), Err(too_long));
            for size in [1, 7, 4096] {
                let mut decoder = Decoder::new(coding, usize::MAX).unwrap();
                let mut decoded = Vec::new();
                for piece in body.chunks(size) {
                    decoded.extend(decoder.decode(piece).unwrap());
                }
                decoder.finish().unwrap();
                assert!(decoded == plain, "{coding:?} {size}");
            }
            let cut = &body[..body.len() - 1];
            assert_eq!(
                coding.decode(cut, usize::MAX),
                Err(CodingError::Invalid(coding))
            );
            assert!(coding.decode(b"no such thing", 100).is_err());
        }
    }

    #[test]
    fn the_begin_of_a_body_is_what_has_come_of_it() {
        let plain = b"data: {\"error\":1}\n\n".repeat(3);
        for coding in [Coding::Gzip, Coding::Zstd] {
            let body = encoded(coding, &plain);
            assert_eq!(coding.decode_begin(&body, 1 << 20).unwrap(), plain);
            let begin = coding.decode_begin(&body[..body.len() - 4], 1 << 20);
            assert!(plain.starts_with(&begin.unwrap()), "{coding:?}");
            assert!(coding.decode_begin(b"", 10).unwrap().is_empty());
            let invalid = CodingError::Invalid(coding);
            assert_eq!(coding.decode_begin(b"plain text", 10), Err(invalid));
        }
    }

    #[test]
    fn a_bomb_is_noticed_before_it_fills_the_memory() {
        let plain = vec![0; 64 << 20];
        for coding in [Coding::Gzip, Coding::Zstd] {
            let body = encoded(coding, &plain);
            let mut out = BytesMut::new();
            let mut decoder = Decoder::new(coding, 1 << 20).unwrap();
            let refused = decoder.decode_into(&body, &mut out);
            assert_eq!(refused, Err(CodingError::TooLong(1 << 20)));
            assert!(out.len() < 4 << 20, "{}", out.len());
        }
    }

    #[test]
    fn the_coding_is_the_one_that_the_fields_name() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            Coding::of(&headers)
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["identity"]), Ok(None));
        assert_eq!(of(&["GZip"]), Ok(Some(Coding::Gzip)));
        assert_eq!(of(&["zstd"]), Ok(Some(Coding::Zstd)));
        for (values, name) in [
            (&["br"][..], "br"),
            (&["gzip, br"], "gzip, br"),
            (&["gzip", "zstd"], "of more than one kind"),
            (&["\"<b>\""], "without a valid name"),
        ] {
            assert_eq!(of(values), Err(CodingError::Unknown(name.to_owned())));
        }
    }
}
