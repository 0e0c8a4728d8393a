//! Trailers at the end of a response: which clients take them, and how they are written.
//!
//! Over HTTP/2 they are one more block of fields. Over HTTP/1.1 they stand behind the last chunk, which Pingora writes by
//! itself, without any: [`super::counted`] writes another one in its place.
//!
//! Source: RFC 9110 section 6.5.1, RFC 9112 section 7.1.2; pingora-core 0.9.1 `protocols/http/v1/body.rs` (`LAST_CHUNK`).

use bytes::Bytes;
use http::{HeaderMap, Version};
use pingora::http::RequestHeader;
use pingora::protocols::http::{HttpTask, ServerSession};

use super::connection;
use crate::endpoint::{asks_for_trailers, write_fields};

/// The end of a body in chunks, as Pingora writes it.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Whether the client that sent this head takes trailers. Chunks, which have them over HTTP/1, came with HTTP/1.1.
pub(crate) fn takes_trailers(head: &RequestHeader) -> bool {
    head.version >= Version::HTTP_11 && asks_for_trailers(&head.headers)
}

/// The task that ends the response of this session, all of whose body has been written, with these trailers.
pub(crate) fn end_with(session: &ServerSession, trailers: &HeaderMap) -> HttpTask {
    match connection::counted(session) {
        Some(stream) => {
            stream.end_with(last_chunk(trailers));
            HttpTask::Done
        }
        None => HttpTask::Trailer(Some(Box::new(trailers.clone()))),
    }
}

fn last_chunk(trailers: &HeaderMap) -> Bytes {
    let mut last = b"0\r\n".to_vec();
    write_fields(&mut last, trailers);
    last.extend_from_slice(b"\r\n");
    last.into()
}
