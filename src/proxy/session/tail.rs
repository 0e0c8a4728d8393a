//! The tail of a stream: what a worker sends after the end marker.
//!
//! Once the marker has been written, the client has the whole response, and SDKs hang up without waiting for the end of
//! the body. From then on neither the client's leaving nor a failed write ends decode's leg: what comes is read to its
//! end, so that the worker's connection goes back to the pool. [`super::super::deadlines::TAIL_TIMEOUT`] and
//! [`TAIL_LIMIT`] bound the tail; beyond them the leg ends without the worker's consent, and the request is served all the
//! same.
//!
//! Seen with openai 2.54: its iterator ends at `[DONE]`, and closes the response before the last chunk has come.

use pingora::protocols::http::HttpTask;
use pingora::{Error, Result};

use super::super::deadlines::DELIVERED;
use super::{ReplacedSession, is_end};

/// The longest tail that is read, in bytes. SGLang sends nothing but the last chunk.
const TAIL_LIMIT: usize = 64 << 10;

/// The progress of the tail.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Bytes that have come after the marker.
    bytes: usize,
    /// Whether the client's connection is no longer read, because it has been closed or has sent something.
    pub(super) unwatched: bool,
    /// Whether a write has failed, so that nothing is written any more.
    pub(super) client_left: bool,
}

impl ReplacedSession {
    /// Writes tasks that have the marker, or that come after it; their bytes are followed already. Whether the response has
    /// ended.
    pub(super) async fn write_end(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        for task in &mut tasks {
            // A worker that fails now has sent its whole response.
            if matches!(task, HttpTask::Failed(_)) {
                *task = HttpTask::Done;
            }
        }
        let ended = tasks.iter().any(is_end);
        let bytes = tasks.iter().map(body_len).sum();
        if self.sent.delivered {
            self.tail.bytes += bytes;
            if self.tail.bytes > TAIL_LIMIT {
                return Error::e_explain(DELIVERED, "more bytes after the end of the stream");
            }
        }
        if self.tail.client_left {
            return Ok(ended);
        }
        let before = self.client().body_bytes_sent();
        let written = self.client_mut().response_duplex_vec(tasks).await;
        if !self.sent.delivered {
            // The client may leave between the marker and the end of the body, which are separate writes.
            let has_marker = self.client().body_bytes_sent() - before >= bytes;
            if written.is_err() && !has_marker {
                return written;
            }
            self.sent.delivered = true;
            self.clock.begin_tail();
        }
        written.or_else(|_| {
            self.client_has_left();
            Ok(ended)
        })
    }

    /// Ends the response to the client.
    pub(super) async fn end_response(&mut self) -> Result<()> {
        if self.tail.client_left {
            return Ok(());
        }
        let ended = self.client_mut().finish_body().await;
        if ended.is_err() && self.sent.delivered {
            self.client_has_left();
            return Ok(());
        }
        ended
    }

    fn client_has_left(&mut self) {
        self.tail.client_left = true;
        self.client_mut().set_keepalive(None);
    }
}

fn body_len(task: &HttpTask) -> usize {
    match task {
        HttpTask::Body(Some(chunk), _) => chunk.len(),
        _ => 0,
    }
}
