//! [`ReplacedSession`] as Pingora sees it: its hidden trait for sessions that are not its own.
//!
//! What lives here: the body that is handed out, the events that end a leg, and the delegation of everything else to the
//! client's session. What is written to the client, and when, is decided in [`super`].
//! Source: pingora-core 0.9.1 `protocols/http/custom/server.rs`.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, Result};

use super::super::deadlines::{DELIVERED, Relayed};
use super::relay::Relay;
use super::{PREFILL_FAILED, ReplacedSession, SHUTTING_DOWN};
use crate::client::unused_methods;

#[async_trait]
impl CustomSession for ReplacedSession {
    fn req_header(&self) -> &RequestHeader {
        self.client().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.client_mut().req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        if self.taken {
            return Ok(None);
        }
        self.taken = true;
        Ok(Some(self.body.clone()))
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.taken = true;
        Ok(())
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.client_mut().write_response_header(head).await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, _end: bool) -> Result<()> {
        self.client_mut().write_response_header_ref(head).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.client_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.client_mut().write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        // Pingora has something to write only when the relay has ended.
        if let Some(failure) = self.end_relay() {
            return Err(failure);
        }
        if self.has_comments() {
            // Boxed, as every rare write here: the future of each event would carry it.
            Box::pin(self.client_mut().write_downstream_proxy_tasks()).await?;
        }
        if self.sent.head_is_out
            && let Some(unfit) = self.drop_head(&mut tasks)
        {
            return Err(unfit);
        }
        let has_trailers = self.part_end(&mut tasks);
        let (mut tasks, mut failure) = self.release(tasks);
        if self.is_stream
            && let Some(cut_short) = self.follow(&mut tasks)
        {
            failure = Some(cut_short);
        }
        let mut ended = false;
        if !tasks.is_empty() {
            self.note_sent(&tasks);
            ended = if has_trailers && failure.is_none() {
                Box::pin(self.write_trailers_last(tasks)).await?
            } else if self.sent.events.is_complete() {
                Box::pin(self.write_end(tasks)).await?
            } else {
                self.client_mut().response_duplex_vec(tasks).await?
            };
            let now = self.clock.note_sent();
            self.note_gaps(now);
            if let Some(keepalive) = &mut self.keepalive {
                keepalive.note_sent();
            }
        }
        failure.map_or(Ok(ended), Err)
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && !self.taken {
            return self.read_body_bytes().await;
        }
        loop {
            self.begin_relay();
            #[allow(clippy::expect_used)]
            // the field itself, because other fields are borrowed beside it
            let client = self.client.as_mut().expect("present until the drop");
            let prefill_failed = async {
                match self.prefill_failed.as_mut() {
                    Some(failed) => failed.await,
                    None => std::future::pending().await,
                }
            };
            let delivered = self.sent.delivered;
            let mut keepalive = self.keepalive.as_mut();
            let due = poll_fn(|cx| match &mut keepalive {
                Some(keepalive) => keepalive.poll_due(cx),
                None => Poll::Pending,
            });
            let relay = self.relay.as_ref();
            let relay_ended = poll_fn(|cx| match relay {
                Some(relay) => relay.poll_ended(cx),
                None => Poll::Pending,
            });
            let relayed = || relay.map_or(Relayed::Nothing, Relay::relayed);
            let queued = client.has_pending_downstream_proxy_tasks();
            let watched = async {
                if queued {
                    // Boxed, because every future of this kind would carry it.
                    let written = Box::pin(client.write_downstream_proxy_tasks()).await;
                    written.map(|_| None)
                } else {
                    client.read_body_or_idle(true).await
                }
            };
            let read = tokio::select! {
                read = watched, if !self.tail.unwatched => read,
                () = relay_ended => match self.end_relay() {
                    Some(failure) => return Err(failure),
                    None => continue,
                },
                () = due, if !queued => {
                    self.keep_alive();
                    continue;
                }
                () = prefill_failed => {
                    // A resolved future must not be polled again.
                    self.prefill_failed = None;
                    return Error::e_explain(PREFILL_FAILED, "the prefill leg failed first");
                }
                () = &mut self.cut_off => {
                    let delivered = delivered || relay.is_some_and(Relay::is_delivered);
                    let error = if delivered { DELIVERED } else { SHUTTING_DOWN };
                    return Error::e_explain(error, "the process is shutting down");
                }
                error = self.clock.expired(relayed) => return Error::e_explain(error, "decode took too long"),
            };
            match read {
                // The client has left, or sends its next request early. It may still read.
                Err(_) if delivered || relay.is_some_and(Relay::is_delivered) => {
                    self.tail.unwatched = true;
                    client.set_keepalive(None);
                }
                Ok(_) if queued => {}
                read => return read,
            }
        }
    }

    fn is_body_done(&mut self) -> bool {
        self.taken
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.is_empty()
    }

    /// The whole body, of any size, once Pingora has taken it: it is sent again when a pooled connection turns out to be
    /// closed.
    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.taken.then(|| self.body.clone())
    }

    async fn finish(&mut self) -> Result<()> {
        self.end_response().await
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.client_mut().shutdown().await;
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.client_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.client().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.client_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.client().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.client_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.client().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.client().request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.client().response_written()
    }

    fn body_bytes_sent(&self) -> usize {
        self.client().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.client().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.client().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.client_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.client().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.client().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.client().to_h1_raw()
    }

    unused_methods!();
}
