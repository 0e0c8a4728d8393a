//! Connections that serve another request although Pingora would close them.
//!
//! Pingora closes a client's connection when a request fails after it was sent to a worker, also where the client got a
//! whole response. The proxy takes such a connection out of the session and leaves it in [`Kept`], where
//! `connection.rs` finds it for the next request.
//!
//! Source: pingora-proxy 0.9.1 `lib.rs` (`process_request`: the reuse that `fail_to_proxy` allows counts only for
//! errors before the worker is selected).

use std::sync::{Mutex, PoisonError};

use pingora::apps::{HttpPersistentSettings, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

/// The place of one connection between two requests.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Option<ReusedHttpStream>>);

impl Kept {
    /// Takes the client's connection out of a session whose response has been written, and keeps it if it may serve
    /// another request. The session is of no use from then on.
    pub(crate) async fn keep(&self, session: &mut Session) {
        let settings = HttpPersistentSettings::for_session(&session.downstream_session);
        let placeholder = Box::new(ServerSession::new_custom(Box::new(())));
        let client = std::mem::replace(&mut session.downstream_session, placeholder);
        if let Ok(Some(stream)) = client.finish().await {
            let stream = ReusedHttpStream::from_reusable_stream(stream, settings);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        }
    }

    /// Takes the connection.
    pub(super) fn take(&self) -> Option<ReusedHttpStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
