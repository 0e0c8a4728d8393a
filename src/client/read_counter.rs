//! What is known of the bytes read from a client: how many they are, which of them belong to a request, and whether they are
//! those of HTTP/2. [`super::counted`] writes it, [`super::connection`] reads it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::http2::Rewound;

/// The bytes read on one connection, and the part of them that is known to belong to a request.
// Relaxed everywhere: only the task of the connection reads and writes these. They are atomics because Pingora holds
// the stream while `connection.rs` watches the counter.
#[derive(Debug, Default)]
pub(crate) struct ReadCounter {
    read: AtomicU64,
    /// Bytes of requests whose heads have been received.
    attributed: AtomicU64,
    /// Whether the last of these requests has a body of unknown length.
    open_ended: AtomicBool,
    /// What is known of the head of the current request: one of the constants below.
    head: AtomicU8,
    /// The connection, where it begins as one of HTTP/2.
    http2: Mutex<Option<Rewound>>,
}

/// The head has not been received.
const AWAITED: u8 = 0;
/// The head has been received, or never will be.
const FINISHED: u8 = 1;
/// There is no head, because the connection speaks HTTP/2.
const HTTP2: u8 = 2;

impl ReadCounter {
    /// Begins the next request. Returns whether a part of it has already been read, together with the request before,
    /// as far as that can be known.
    ///
    /// After a chunked body it cannot: Pingora reads ahead and does not say how long the body was. Such a part is
    /// then taken for an idle connection, and may stay as long as one.
    pub(crate) fn next_request(&self) -> bool {
        self.head.store(AWAITED, Ordering::Relaxed);
        let read = self.bytes_read();
        if self.open_ended.swap(false, Ordering::Relaxed) {
            self.attributed.store(read, Ordering::Relaxed);
        }
        read > self.attributed.load(Ordering::Relaxed)
    }

    /// Records a read.
    pub(crate) fn record_read(&self, bytes: u64) {
        // Most polls read nothing, and an atomic addition costs more than this branch.
        if bytes > 0 {
            self.read.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// All bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Attributes the bytes of a request, head and body, once its head has been received; `None` when the length of
    /// its body is unknown.
    pub(crate) fn attribute(&self, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => {
                self.attributed.fetch_add(bytes, Ordering::Relaxed);
            }
            None => self.open_ended.store(true, Ordering::Relaxed),
        }
    }

    /// Notes that the head of the current request has been received, or has been given up.
    pub(crate) fn finish_head(&self) {
        self.head.store(FINISHED, Ordering::Relaxed);
    }

    pub(crate) fn is_head_finished(&self) -> bool {
        self.head.load(Ordering::Relaxed) == FINISHED
    }

    /// Whether the connection has turned out to speak HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.head.load(Ordering::Relaxed) == HTTP2
    }

    pub(super) fn give_back(&self, connection: Rewound) {
        *self.http2.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        self.head.store(HTTP2, Ordering::Relaxed);
    }

    /// The connection that was given back.
    pub(crate) fn take_http2(&self) -> Option<Rewound> {
        self.http2
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_with_the_request_before_are_the_beginning_of_the_next() {
        let counter = ReadCounter::default();
        assert!(!counter.next_request());
        counter.record_read(120);
        counter.attribute(Some(100));
        assert!(counter.next_request(), "20 bytes belong to no request yet");
        counter.record_read(80);
        counter.attribute(Some(100));
        assert!(!counter.next_request());
    }

    #[test]
    fn bytes_after_a_body_of_unknown_length_are_not_taken_for_a_request() {
        let counter = ReadCounter::default();
        counter.record_read(300);
        counter.attribute(None);
        assert!(!counter.next_request());
        counter.record_read(1);
        assert!(
            counter.next_request(),
            "only the request before was unknown"
        );
    }

    #[test]
    fn the_next_request_waits_for_its_own_head() {
        let counter = ReadCounter::default();
        counter.finish_head();
        assert!(counter.is_head_finished());
        counter.next_request();
        assert!(!counter.is_head_finished());
    }
}
