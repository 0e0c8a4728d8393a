//! [`Http2Session`] as Pingora sees it: its hidden trait for sessions that are not its own.
//! Source: pingora-core 0.9.1 `protocols/http/custom/server.rs`.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{ErrorSource, ErrorType, OrErr, Result};

use super::Http2Session;
use crate::client::unused_methods;
use crate::endpoint::write_fields;

#[async_trait]
impl CustomSession for Http2Session {
    fn req_header(&self) -> &RequestHeader {
        &self.head
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.head
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        let data = self.body.data().await.transpose();
        let data = data.or_err(ErrorType::ReadError, "the body of a request")?;
        match &data {
            Some(data) => {
                self.read_bytes += data.len();
                // Fails only where the stream has ended.
                let _ = self.body.flow_control().release_capacity(data.len());
            }
            // Trailers may follow. They are of no use to a worker.
            None => self.body_ended = true,
        }
        Ok(data)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        while !self.is_body_done() && self.read_body_bytes().await?.is_some() {}
        Ok(())
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.begin(head, end)
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.begin(Box::new(head.clone()), end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.write(HttpTask::Body(Some(data), end)).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.write(HttpTask::Trailer(Some(Box::new(trailers))))
            .await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.queue.extend(tasks);
        let ended = match self.write_queue().await {
            Ok(ended) => ended,
            // A worker's failure is among the tasks, and is no failure of the client's.
            Err(error) if *error.esource() == ErrorSource::Unset => return Err(error.into_down()),
            Err(error) => return Err(error),
        };
        if ended {
            self.end().map_err(|error| error.into_down())?;
        }
        Ok(ended)
    }

    fn proxy_tasks_enabled(&self) -> bool {
        true
    }

    fn send_proxy_task(&mut self, task: HttpTask) {
        self.queue.push_back(task);
    }

    fn has_pending_proxy_tasks(&self) -> bool {
        !self.queue.is_empty()
    }

    async fn write_proxy_tasks(&mut self) -> Result<bool> {
        self.write_queue().await
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        None
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.head.method, self.head.uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    /// The stream is reset when this is dropped, behind what has been written.
    async fn shutdown(&mut self, _code: u32, _context: &str) {}

    fn is_body_done(&mut self) -> bool {
        self.body_ended || self.body.is_end_stream()
    }

    async fn finish(&mut self) -> Result<()> {
        self.end()
    }

    fn is_body_empty(&mut self) -> bool {
        self.read_bytes == 0 && self.is_body_done()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            return Err(poll_fn(|cx| self.poll_left(cx)).await);
        }
        self.read_body_bytes().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent_bytes
    }

    fn body_bytes_read(&self) -> usize {
        self.read_bytes
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    /// The head as HTTP/1.1 has it: Pingora parses it again for the request of a sample.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        let mut raw = format!("{} {} HTTP/1.1\r\n", self.head.method, self.head.uri).into_bytes();
        write_fields(&mut raw, &self.head.headers);
        if self.head.version == Version::HTTP_2 && !self.head.headers.contains_key(CONTENT_LENGTH) {
            raw.extend_from_slice(b"content-length: 0\r\n");
        }
        raw.extend_from_slice(b"\r\n");
        raw.into()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    unused_methods!();
}
