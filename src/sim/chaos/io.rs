//! The raw writer under hyper: where an answer's bytes can be cut, mangled or torn.
//!
//! hyper stays the server. A request's fault gives an order, and the connection's IO obeys it while the
//! answer's bytes pass by; without an order they pass untouched.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::rule::End;

/// What is done to the bytes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireFault {
    /// Half of the head, then FIN.
    HalfHead,
    /// The connection ends after so many bytes of the body.
    CutAfter { bytes: usize, end: End },
    /// Added to `content-length`.
    Length(i64),
    /// The first chunk's size is no number.
    BadChunk,
    /// So many bytes per write.
    Dribble(usize),
}

/// How a request tells its connection's IO. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Orders {
    inner: Arc<Mutex<Given>>,
}

#[derive(Default)]
struct Given {
    fault: Option<WireFault>,
    /// No byte of the answer has been written yet.
    fresh: bool,
    reset: bool,
    deadly: bool,
}

/// A connection that obeys its orders.
pub(crate) struct ChaosIo {
    stream: TcpStream,
    orders: Orders,
    tape: Tape,
}

/// An answer's bytes under a fault, on their way to the socket.
#[derive(Default)]
struct Tape {
    /// The head as far as it is known; `body` says that it has gone by.
    head: Vec<u8>,
    body: bool,
    /// What the socket is to get.
    pending: Vec<u8>,
    written: usize,
    /// Bytes of the body that have gone by.
    passed: usize,
    /// The first chunk's size has gone by.
    sized: bool,
    /// Nothing more after `pending`.
    cut: bool,
}

impl Orders {
    /// For the answer that comes next on the connection; replaces the last answer's.
    pub(crate) fn give(&self, fault: Option<WireFault>) {
        let mut given = self.given();
        (given.fault, given.fresh) = (fault, true);
    }

    /// However the connection ends, it ends with RST.
    pub(crate) fn end_with_reset(&self) {
        self.given().reset = true;
    }

    /// The worker dies when the connection has ended.
    pub(crate) fn die_afterwards(&self) {
        self.given().deadly = true;
    }

    pub(crate) fn is_deadly(&self) -> bool {
        self.given().deadly
    }

    /// The fault of the answer under way, and whether it begins now.
    fn take(&self) -> (Option<WireFault>, bool) {
        let mut given = self.given();
        (given.fault, std::mem::take(&mut given.fresh))
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChaosIo {
    pub(crate) fn new(stream: TcpStream, orders: Orders) -> ChaosIo {
        ChaosIo {
            stream,
            orders,
            tape: Tape::default(),
        }
    }

    /// Writes what is pending; an error when the fault says so.
    fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        fault: Option<WireFault>,
    ) -> Poll<io::Result<()>> {
        while self.tape.written < self.tape.pending.len() {
            let rest = &self.tape.pending[self.tape.written..];
            let piece = match fault {
                Some(WireFault::Dribble(bytes)) => &rest[..rest.len().min(bytes)],
                _ => rest,
            };
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, piece))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.tape.written += written;
        }
        self.tape.pending.clear();
        self.tape.written = 0;
        if self.tape.cut {
            if let Some(WireFault::CutAfter {
                end: End::Reset, ..
            }) = fault
            {
                self.orders.end_with_reset();
            }
            return Poll::Ready(Err(io::Error::other("cut on purpose")));
        }
        Poll::Ready(Ok(()))
    }
}

impl Tape {
    fn take(&mut self, fault: WireFault, bytes: &[u8]) {
        if self.cut {
            return;
        }
        if self.body {
            return self.pass(fault, bytes);
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = memchr::memmem::find(&self.head, b"\r\n\r\n") else {
            return;
        };
        let mut head = std::mem::take(&mut self.head);
        let body = head.split_off(end + 4);
        match fault {
            WireFault::HalfHead => {
                head.truncate(head.len() / 2);
                self.cut = true;
            }
            WireFault::Length(add) => head = with_length(&head, add),
            WireFault::CutAfter { .. } | WireFault::BadChunk | WireFault::Dribble(_) => {}
        }
        self.body = true;
        self.pending.extend_from_slice(&head);
        self.pass(fault, &body);
    }

    fn pass(&mut self, fault: WireFault, bytes: &[u8]) {
        if self.cut {
            return;
        }
        let mut bytes = bytes;
        if let WireFault::CutAfter { bytes: limit, .. } = fault {
            let left = limit - self.passed;
            self.cut = bytes.len() >= left;
            bytes = &bytes[..bytes.len().min(left)];
        }
        self.passed += bytes.len();
        let from = self.pending.len();
        self.pending.extend_from_slice(bytes);
        if fault == WireFault::BadChunk && !self.sized {
            let size = self.pending[from..]
                .iter_mut()
                .take_while(|byte| byte.is_ascii_hexdigit());
            self.sized = size.map(|digit| *digit = b'Z').count() < bytes.len();
        }
    }
}

impl AsyncWrite for ChaosIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // What came before has priority, so that a slow reader slows the writer.
        let fault = this.orders.given().fault;
        ready!(this.poll_drain(context, fault))?;
        let (fault, fresh) = this.orders.take();
        let Some(order) = fault else {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        };
        if fresh {
            this.tape = Tape::default();
        }
        this.tape.take(order, bytes);
        match this.poll_drain(context, fault) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.orders.given().fault.is_none() && self.tape.pending.is_empty() {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty());
        self.poll_write(context, first.map_or(&[], |part| part))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let fault = self.orders.given().fault;
        ready!(self.poll_drain(context, fault))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let given = self.orders.given();
        let (fault, reset) = (given.fault, given.reset);
        drop(given);
        ready!(self.poll_drain(context, fault))?;
        if reset {
            // A FIN first would make an orderly end of it.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for ChaosIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Drop for ChaosIo {
    fn drop(&mut self) {
        if self.orders.given().reset {
            // Closed with nothing to linger for, the socket sends RST. The peer is gone if it fails.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// The head with another `content-length`; as it is when there is none.
fn with_length(head: &[u8], add: i64) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = head
        .split_inclusive(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    for line in &mut lines {
        let text = String::from_utf8_lossy(line);
        let length = text
            .split_once(':')
            .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse::<i64>().ok());
        if let Some(length) = length {
            let wrong = length.saturating_add(add).max(0);
            *line = format!("content-length: {wrong}\r\n").into_bytes();
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n1a\r\nbody";

    fn written(fault: WireFault, piece: usize) -> (String, bool) {
        let mut tape = Tape::default();
        for bytes in ANSWER.chunks(piece) {
            tape.take(fault, bytes);
        }
        (
            String::from_utf8_lossy(&tape.pending).into_owned(),
            tape.cut,
        )
    }

    #[test]
    fn a_fault_does_not_depend_on_how_the_answer_is_written() {
        let whole = String::from_utf8_lossy(ANSWER).into_owned();
        for (fault, wanted, cut) in [
            (WireFault::HalfHead, whole[..33].to_owned(), true),
            (
                WireFault::CutAfter {
                    bytes: 5,
                    end: End::Reset,
                },
                whole[..whole.len() - 3].to_owned(),
                true,
            ),
            (
                WireFault::Length(6),
                whole.replace("length: 4", "length: 10"),
                false,
            ),
            (
                WireFault::Length(-9),
                whole.replace("length: 4", "length: 0"),
                false,
            ),
            (
                WireFault::BadChunk,
                whole.replace("1a\r\n", "ZZ\r\n"),
                false,
            ),
            (WireFault::Dribble(1), whole.clone(), false),
        ] {
            for piece in [1, 7, ANSWER.len()] {
                assert_eq!(
                    written(fault, piece),
                    (wanted.clone(), cut),
                    "{fault:?} in pieces of {piece}"
                );
            }
        }
    }
}
