//! Response heads and bodies as uvicorn and Starlette frame them.
//!
//! The order of headers is that of the transcripts: date, server, content-length if there is one, content-type, vary;
//! hyper adds `transfer-encoding: chunked` to a body without length. The contents of bodies are others'.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderValue,
    SERVER, VARY,
};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc::Receiver;

use super::chaos::FaultyEvents;

/// A response before it has a connection.
pub(crate) type SimResponse = Response<Payload>;

/// A response's body.
pub(crate) enum Payload {
    /// In one piece.
    Whole(Bytes),
    /// A stream: one chunk on the wire per event.
    Events(Receiver<Bytes>),
    /// A stream with a scripted fault.
    Faulty(FaultyEvents),
    /// A scripted fault: the head is sent, and no byte of the body.
    Stalled,
    /// The connection is cut without a response, or within its body.
    Cut,
}

/// In place of an event: the connection is cut. No event is empty.
pub(crate) const CUT: Bytes = Bytes::new();

/// A JSON body in one piece.
pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> SimResponse {
    whole(status, Some("application/json"), body.into())
}

/// A body without content type, as of Starlette's bare `Response`.
pub(crate) fn bare(status: u16, body: impl Into<Bytes>) -> SimResponse {
    whole(status, None, body.into())
}

/// Starlette's 500 as plain text. It comes from outside the CORS layer and has no `vary`.
pub(crate) fn internal_error() -> SimResponse {
    let mut response = whole(
        500,
        Some("text/plain; charset=utf-8"),
        "Internal Server Error".into(),
    );
    response.headers_mut().remove(VARY);
    response
}

/// 405 with the methods that the path takes.
pub(crate) fn method_not_allowed(allow: &'static str) -> SimResponse {
    let mut headers = HeaderMap::new();
    start(&mut headers);
    headers.insert(ALLOW, HeaderValue::from_static(allow));
    let body = Bytes::from_static(b"{\"detail\":\"Method Not Allowed\"}");
    finish(headers, 405, Some("application/json"), body)
}

/// A stream of events.
pub(crate) fn events(events: Receiver<Bytes>) -> SimResponse {
    streaming(events, HeaderMap::new(), "text/event-stream; charset=utf-8")
}

/// A stream of events with the headers of `/v1/responses`, the only endpoint that forbids caching.
pub(crate) fn uncached_events(events: Receiver<Bytes>) -> SimResponse {
    let mut extra = HeaderMap::new();
    extra.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    extra.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    streaming(events, extra, "text/event-stream; charset=utf-8")
}

/// Prometheus text, as a stream of one chunk.
pub(crate) fn metrics(body: String) -> SimResponse {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    // Cannot fail: the channel has room for one.
    let _ = sender.try_send(body.into());
    streaming(
        receiver,
        HeaderMap::new(),
        "text/plain; version=0.0.4; charset=utf-8",
    )
}

/// Cuts the connection without a response.
pub(crate) fn cut() -> SimResponse {
    Response::new(Payload::Cut)
}

/// The present time as the value of header `date` (RFC 9110, IMF-fixdate).
pub(crate) fn http_date() -> HeaderValue {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    HeaderValue::from_str(&imf_fixdate(seconds)).unwrap_or(HeaderValue::from_static(""))
}

fn whole(status: u16, content_type: Option<&'static str>, body: Bytes) -> SimResponse {
    let mut headers = HeaderMap::new();
    start(&mut headers);
    finish(headers, status, content_type, body)
}

fn start(headers: &mut HeaderMap) {
    headers.insert(DATE, http_date());
    headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
}

fn finish(
    mut headers: HeaderMap,
    status: u16,
    content_type: Option<&'static str>,
    body: Bytes,
) -> SimResponse {
    headers.insert(CONTENT_LENGTH, body.len().into());
    if let Some(content_type) = content_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    let mut response = Response::new(Payload::Whole(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = headers;
    response
}

fn streaming(events: Receiver<Bytes>, extra: HeaderMap, content_type: &'static str) -> SimResponse {
    let mut headers = HeaderMap::new();
    start(&mut headers);
    headers.extend(extra);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    let mut response = Response::new(Payload::Events(events));
    *response.headers_mut() = headers;
    response
}

fn imf_fixdate(unix_seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let days = unix_seconds / 86_400;
    let (hour, minute, second) = (
        unix_seconds / 3_600 % 24,
        unix_seconds / 60 % 60,
        unix_seconds % 60,
    );
    let (year, month, day) = civil_date(days);
    format!(
        "{}, {day:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
    )
}

/// Year, month from 0 and day from 1 of a day since 1970-01-01.
pub(crate) fn civil_date(days: u64) -> (u64, u64, u64) {
    // Years that start in March, so that the leap day is the last one.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    (year_of_era + era * 400 + u64::from(month < 2), month, day)
}

/// A body on its connection, with a guard that observes its end.
pub(crate) struct SimBody<G> {
    payload: Payload,
    /// Called when the body is complete, and dropped with it.
    guard: G,
    finished: bool,
}

/// Is called when a body has been handed to the connection completely.
pub(crate) trait OnFinish: Unpin {
    fn finished(&mut self);
}

impl<G: OnFinish> SimBody<G> {
    pub(crate) fn new(payload: Payload, guard: G) -> SimBody<G> {
        let mut body = SimBody {
            payload,
            guard,
            finished: false,
        };
        // hyper does not poll an empty body.
        if matches!(&body.payload, Payload::Whole(bytes) if bytes.is_empty()) {
            body.finish();
        }
        body
    }

    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            self.guard.finished();
        }
    }
}

impl<G: OnFinish> Body for SimBody<G> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = &mut *self;
        let next = match &mut this.payload {
            Payload::Whole(bytes) if bytes.is_empty() => None,
            Payload::Whole(bytes) => {
                let all = std::mem::take(bytes);
                this.finish();
                Some(all)
            }
            Payload::Events(events) => match events.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(event)) if event == CUT => {
                    // One pending poll first, in which hyper flushes its buffer.
                    this.payload = Payload::Cut;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(next) => next,
            },
            Payload::Faulty(events) => match std::task::ready!(events.poll(context)) {
                Some(Ok(bytes)) => Some(bytes),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => None,
            },
            Payload::Stalled => return Poll::Pending,
            Payload::Cut => return Poll::Ready(Some(Err(std::io::Error::other("cut on purpose")))),
        };
        if next.is_none() {
            this.finish();
        }
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        // With true for an empty body, hyper would put `content-length` after the other headers.
        false
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            Payload::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_795_227_206, "Sat, 21 Nov 2026 02:13:26 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(imf_fixdate(seconds), date);
        }
    }
}
