//! A connection with a fault, below hyper: a response's bytes can be cut, changed or split here.
//!
//! hyper stays the server. A request sets the fault of its response on [`ConnectionFaults`], and [`ChaosIo`] applies
//! it while the bytes pass; without a fault they pass unchanged.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::rule::End;

/// What is done to the bytes of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireFault {
    /// Half of the head, then FIN.
    HalfHead,
    /// The connection ends after this many bytes of the body, chunk framing included.
    CutAfter { bytes: usize, end: End },
    /// This number is added to `content-length`.
    Length(i64),
    /// The size of the first chunk is not a hexadecimal number.
    BadChunk,
    /// This many bytes per write.
    Dribble(usize),
}

/// The faults of one connection, shared by its requests and its IO. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ConnectionFaults {
    inner: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    fault: Option<WireFault>,
    /// No byte of the response has been written yet.
    fresh: bool,
    reset: bool,
    crash: bool,
}

/// A client's connection with its faults.
pub(crate) struct ChaosIo {
    stream: TcpStream,
    faults: ConnectionFaults,
    buffer: FaultBuffer,
}

/// A response's bytes with a fault in them, on their way to the socket.
#[derive(Default)]
struct FaultBuffer {
    /// The head until it is complete; then `body` is set and this is empty.
    head: Vec<u8>,
    body: bool,
    /// Bytes for the socket, of which `written` are out.
    pending: Vec<u8>,
    written: usize,
    /// Bytes of the body so far.
    passed: usize,
    /// The size of the first chunk has passed.
    sized: bool,
    /// Nothing follows `pending`.
    cut: bool,
}

impl ConnectionFaults {
    /// Sets the fault of the next response, in place of the last one's.
    pub(crate) fn set(&self, fault: Option<WireFault>) {
        let mut state = self.state();
        (state.fault, state.fresh) = (fault, true);
    }

    /// The connection ends with RST, whatever ends it.
    pub(crate) fn reset_on_close(&self) {
        self.state().reset = true;
    }

    /// The worker goes down when the connection has ended.
    pub(crate) fn crash_on_close(&self) {
        self.state().crash = true;
    }

    pub(crate) fn crashes_on_close(&self) -> bool {
        self.state().crash
    }

    /// The fault of the response under way, and whether this is its first byte.
    fn take(&self) -> (Option<WireFault>, bool) {
        let mut state = self.state();
        (state.fault, std::mem::take(&mut state.fresh))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChaosIo {
    pub(crate) fn new(stream: TcpStream, faults: ConnectionFaults) -> ChaosIo {
        ChaosIo {
            stream,
            faults,
            buffer: FaultBuffer::default(),
        }
    }

    /// Writes the pending bytes. Fails after the last of them when the fault cuts the connection.
    fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        fault: Option<WireFault>,
    ) -> Poll<io::Result<()>> {
        while self.buffer.written < self.buffer.pending.len() {
            let rest = &self.buffer.pending[self.buffer.written..];
            let piece = match fault {
                Some(WireFault::Dribble(bytes)) => &rest[..rest.len().min(bytes)],
                _ => rest,
            };
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, piece))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.written += written;
        }
        self.buffer.pending.clear();
        self.buffer.written = 0;
        if self.buffer.cut {
            if let Some(WireFault::CutAfter {
                end: End::Reset, ..
            }) = fault
            {
                self.faults.reset_on_close();
            }
            return Poll::Ready(Err(io::Error::other("cut on purpose")));
        }
        Poll::Ready(Ok(()))
    }
}

impl FaultBuffer {
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
        // Pending bytes first, so that a slow reader slows the writer.
        let fault = this.faults.state().fault;
        ready!(this.poll_drain(context, fault))?;
        let (fault, fresh) = this.faults.take();
        let Some(wire_fault) = fault else {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        };
        if fresh {
            this.buffer = FaultBuffer::default();
        }
        this.buffer.take(wire_fault, bytes);
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
        if self.faults.state().fault.is_none() && self.buffer.pending.is_empty() {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty());
        self.poll_write(context, first.map_or(&[], |part| part))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let fault = self.faults.state().fault;
        ready!(self.poll_drain(context, fault))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.faults.state();
        let (fault, reset) = (state.fault, state.reset);
        drop(state);
        ready!(self.poll_drain(context, fault))?;
        if reset {
            // No FIN before the RST.
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
        if self.faults.state().reset {
            // Without lingering the close sends RST. An error means that the peer is gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// The head with `add` added to its `content-length`, if it has one.
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

    const RESPONSE: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n1a\r\nbody";

    fn written(fault: WireFault, piece: usize) -> (String, bool) {
        let mut buffer = FaultBuffer::default();
        for bytes in RESPONSE.chunks(piece) {
            buffer.take(fault, bytes);
        }
        (
            String::from_utf8_lossy(&buffer.pending).into_owned(),
            buffer.cut,
        )
    }

    #[test]
    fn a_fault_does_not_depend_on_the_size_of_the_writes() {
        let whole = String::from_utf8_lossy(RESPONSE).into_owned();
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
            for piece in [1, 7, RESPONSE.len()] {
                assert_eq!(
                    written(fault, piece),
                    (wanted.clone(), cut),
                    "{fault:?} in pieces of {piece}"
                );
            }
        }
    }
}
