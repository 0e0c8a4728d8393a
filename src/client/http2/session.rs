//! One request of an HTTP/2 connection, as a session of Pingora's.
//!
//! Pingora's own has no queue for what is written while a worker is awaited, and cannot write `100 Continue`. This one is
//! of the kind that the proxy installs for a replaced body too, so that a request of HTTP/2 meets the same hooks in the
//! same order as one of HTTP/1.1. What is written, and when, is decided here; [`custom`] is how Pingora sees it.
//!
//! A response that is not ended is cut: its stream is reset. h2 would drop what it has not sent yet, and with it the error
//! event of a stream, so that the reset is left to the task of the connection, which has sent by then what the client takes.
//! Data that a client does not read waits in h2, up to [`super::MAX_SEND_BUFFER`], and its worker waits with it.
//! Source: pingora-core 0.9.1 `protocols/http/custom/server.rs`, `protocols/http/v2/server.rs`; h2 0.4.20 `server.rs`.

mod custom;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, DATE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Response, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::date::get_cached_date;
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::sync::mpsc::UnboundedSender;

use super::tally::Tally;

/// One stream: a request, and the response to it.
pub(super) struct Http2Session {
    head: RequestHeader,
    body: RecvStream,
    /// Whether the end of the body has been read.
    body_ended: bool,
    /// `Some` until the drop.
    respond: Option<SendResponse<Bytes>>,
    /// `Some` once the head of the response is written.
    out: Option<SendStream<Bytes>>,
    written: Option<Box<ResponseHeader>>,
    /// Whether the end of the response is written.
    ended: bool,
    read_bytes: usize,
    sent_bytes: usize,
    /// What is to be written while something else is awaited.
    queue: VecDeque<HttpTask>,
    write_timeout: Option<Duration>,
    digest: Arc<Digest>,
    tally: Arc<Tally>,
    cut: Cut,
}

/// Where responses that are cut are left for the task of their connection.
pub(super) type Cut = UnboundedSender<SendResponse<Bytes>>;

impl Http2Session {
    pub(super) fn new(
        head: RequestHeader,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        digest: Arc<Digest>,
        tally: Arc<Tally>,
        cut: Cut,
    ) -> Self {
        Self {
            head,
            body,
            body_ended: false,
            respond: Some(respond),
            out: None,
            written: None,
            ended: false,
            read_bytes: 0,
            sent_bytes: 0,
            queue: VecDeque::new(),
            write_timeout: None,
            digest,
            tally,
            cut,
        }
    }

    #[allow(clippy::expect_used)] // the drop is the only place that takes it
    fn respond(&mut self) -> &mut SendResponse<Bytes> {
        self.respond.as_mut().expect("present until the drop")
    }

    /// Writes a head. Does nothing where there is one.
    fn begin(&mut self, mut head: Box<ResponseHeader>, end: bool) -> Result<()> {
        if head.status.is_informational() {
            return self.inform(head.status);
        }
        if self.written.is_some() {
            return Ok(());
        }
        // Section 8.2.2: the fields of one connection of HTTP/1.1 make a response malformed.
        for name in [&CONNECTION, &TRANSFER_ENCODING, &UPGRADE] {
            head.remove_header(name);
        }
        for name in ["keep-alive", "proxy-connection"] {
            head.remove_header(name);
        }
        head.insert_header(DATE, get_cached_date())?;
        let has_no_body = self.head.method == Method::HEAD
            || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&head.status);
        let end = end || has_no_body;
        let response = Response::from_parts(head.as_owned_parts(), ());
        let out = self.respond().send_response(response, end);
        self.out = Some(out.or_err(ErrorType::WriteError, "the head of a response")?);
        self.written = Some(head);
        self.ended = end;
        Ok(())
    }

    /// Writes an interim response. A client that has left gets none.
    fn inform(&mut self, status: StatusCode) -> Result<()> {
        if self.written.is_none() && status != StatusCode::SWITCHING_PROTOCOLS {
            let mut response = Response::new(());
            *response.status_mut() = status;
            let informed = self.respond().send_informational(response);
            informed.or_err(ErrorType::WriteError, "an interim response")?;
        }
        Ok(())
    }

    /// Writes the next piece of the queue: a task, or as much of a chunk as the client takes. Whether that ends the
    /// response. Nothing is lost where the caller gives up meanwhile: what is not written stays in the queue.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool>> {
        let Some(task) = self.queue.pop_front() else {
            return Poll::Ready(Ok(false));
        };
        let (written, ends) = match task {
            HttpTask::Header(head, end) => (self.begin(head, end), end),
            HttpTask::Body(Some(chunk), end) if !chunk.is_empty() => {
                return self.poll_piece(cx, chunk, end);
            }
            HttpTask::Body(_, false) => (Ok(()), false),
            HttpTask::Trailer(Some(trailers)) => (self.trail(*trailers), true),
            HttpTask::Body(_, true) | HttpTask::Trailer(None) | HttpTask::Done => {
                (self.end(), true)
            }
            HttpTask::UpgradedBody(..) => {
                let error = Error::explain(ErrorType::InternalError, "an upgraded body");
                (Err(error), true)
            }
            HttpTask::Failed(error) => (Err(error), true),
        };
        Poll::Ready(written.map(|()| ends))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>, chunk: Bytes, end: bool) -> Poll<Result<bool>> {
        if self.ended {
            // The response to HEAD, for example, has no body.
            return Poll::Ready(Ok(end));
        }
        let Some(out) = self.out.as_mut() else {
            let error = Error::explain(ErrorType::InternalError, "a body before its head");
            return Poll::Ready(Err(error));
        };
        out.reserve_capacity(chunk.len());
        if out.capacity() == 0 {
            match out.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(other) => {
                    let reset = || Error::explain(ErrorType::WriteError, "the stream was reset");
                    let because = |error| Error::because(ErrorType::WriteError, "a piece", error);
                    let error = other.and_then(Result::err).map_or_else(reset, because);
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => {
                    self.queue.push_front(HttpTask::Body(Some(chunk), end));
                    return Poll::Pending;
                }
            }
        }
        let mut rest = chunk;
        let piece = rest.split_to(rest.len().min(out.capacity()));
        let (length, is_end) = (piece.len(), end && rest.is_empty());
        let sent = out.send_data(piece, is_end);
        if let Err(error) = sent.or_err(ErrorType::WriteError, "a piece of a response") {
            return Poll::Ready(Err(error));
        }
        self.sent_bytes += length;
        self.ended = is_end;
        if !rest.is_empty() {
            self.queue.push_front(HttpTask::Body(Some(rest), end));
        }
        Poll::Ready(Ok(is_end))
    }

    /// Writes all that is queued. Each piece has the timeout: a client that takes none for as long gets nothing more.
    async fn write_queue(&mut self) -> Result<bool> {
        let mut ended = false;
        while !self.queue.is_empty() {
            let timeout = self.write_timeout;
            let next = poll_fn(|cx| self.poll_next(cx));
            let written = match timeout {
                Some(timeout) => tokio::time::timeout(timeout, next).await,
                None => Ok(next.await),
            };
            ended |= match written {
                Ok(written) => written?,
                Err(_) => {
                    // What waits in h2 is dropped with the stream.
                    self.respond().send_reset(Reason::CANCEL);
                    return Error::e_explain(ErrorType::WriteTimedout, "the client does not read");
                }
            };
        }
        Ok(ended)
    }

    async fn write(&mut self, task: HttpTask) -> Result<()> {
        self.queue.push_back(task);
        self.write_queue().await.map(drop)
    }

    fn trail(&mut self, trailers: HeaderMap) -> Result<()> {
        if let Some(out) = self.out.as_mut().filter(|_| !self.ended) {
            let sent = out.send_trailers(trailers);
            sent.or_err(ErrorType::WriteError, "the trailers of a response")?;
            self.ended = true;
        }
        Ok(())
    }

    /// Ends the response, where its head is written.
    fn end(&mut self) -> Result<()> {
        if let Some(out) = self.out.as_mut().filter(|_| !self.ended) {
            let sent = out.send_data(Bytes::new(), true);
            sent.or_err(ErrorType::WriteError, "the end of a response")?;
            self.ended = true;
        }
        Ok(())
    }

    /// Resolves when the client has reset the stream, or its connection has ended.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        if self.ended {
            // Nothing is left that could be cancelled.
            return Poll::Pending;
        }
        let reset = match &mut self.out {
            Some(out) => out.poll_reset(cx),
            None => self.respond().poll_reset(cx),
        };
        reset.map(|reset| match reset {
            Ok(reason) => Error::explain(ErrorType::ConnectionClosed, reason.to_string()),
            Err(error) => Error::because(ErrorType::ConnectionClosed, "the connection", error),
        })
    }
}

impl Drop for Http2Session {
    fn drop(&mut self) {
        if self.written.is_none() {
            self.tally.note_unanswered();
        } else if !self.ended
            && let Some(respond) = self.respond.take()
        {
            // An error means that the connection has ended.
            let _ = self.cut.send(respond);
        }
    }
}
