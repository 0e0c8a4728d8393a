//! Which protocol a connection speaks that has no ALPN: HTTP/2 with prior knowledge begins with a preface that no request
//! of HTTP/1.1 begins with.
//!
//! The bytes are compared as HTTP/1.1's session reads them, so that such a connection pays for no read and no copy: one
//! that begins otherwise is known by its first byte, or by its second where its method begins with `P`. Source: RFC 9113
//! section 3.4.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The beginning of the preface that decides. Pingora's parser refuses a head as soon as it sees one byte more.
const DECISIVE: &[u8] = b"PRI * HTTP/2";

/// How far the bytes of a connection are equal to the preface.
#[derive(Debug)]
pub(in super::super) enum Beginning {
    /// All that were read, this many.
    Equal(usize),
    /// Not all: the connection speaks HTTP/1.1.
    Http1,
}

impl Beginning {
    /// Compares what was read next. What was read in all, where it is HTTP/2's.
    pub(in super::super) fn read(&mut self, bytes: &[u8]) -> Option<Bytes> {
        let Beginning::Equal(before) = *self else {
            return None;
        };
        let rest = &DECISIVE[before..];
        let common = rest.len().min(bytes.len());
        if rest[..common] != bytes[..common] {
            *self = Beginning::Http1;
            return None;
        }
        if common < rest.len() {
            *self = Beginning::Equal(before + common);
            return None;
        }
        Some([&DECISIVE[..before], bytes].concat().into())
    }
}

/// A connection of which some bytes have been read: they are read again, before all others.
#[derive(Debug)]
pub(in super::super) struct Rewound {
    read: Bytes,
    stream: Stream,
}

impl Rewound {
    pub(in super::super) fn new(read: Bytes, stream: Stream) -> Self {
        Self { read, stream }
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..length]);
        self.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[test]
    fn the_preface_is_known_however_it_arrives() {
        for split in 0..PREFACE.len() {
            let mut beginning = Beginning::Equal(0);
            let (first, second) = PREFACE.split_at(split);
            let all = match beginning.read(first) {
                Some(read) => [&read, second].concat(),
                None => beginning.read(second).unwrap().to_vec(),
            };
            assert_eq!(all, PREFACE, "{split}");
        }
    }

    #[test]
    fn requests_of_http_1_are_none() {
        for pieces in [
            ["POST / HTTP/1.1\r\n", "PRI * HTTP/2.0"],
            ["P", "UT / HTTP/1.1\r\n"],
            ["PRI * ", "HTTP/1.1\r\n"],
            ["", "GET / HTTP/1.1\r\n"],
        ] {
            let mut beginning = Beginning::Equal(0);
            for piece in pieces {
                assert_eq!(beginning.read(piece.as_bytes()), None, "{pieces:?}");
            }
            assert!(matches!(beginning, Beginning::Http1), "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn what_was_read_is_read_again_before_the_rest() {
        let (ours, mut client) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"rest")
            .await
            .unwrap();
        drop(client);
        let mut rewound = Rewound::new(Bytes::from_static(b"read and "), Box::new(ours));
        let mut all = String::new();
        rewound.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "read and rest");
    }
}
