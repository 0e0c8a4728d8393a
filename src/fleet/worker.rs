//! One worker: its role, its address, and how much it has to do.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use pingora_core::upstreams::peer::HttpPeer;

use crate::pd::{Bootstrap, Role};

/// A worker and its counters.
pub struct Worker {
    role: Role,
    url: String,
    host: HeaderValue,
    peer: HttpPeer,
    bootstrap: Option<Bootstrap>,
    authorization: Option<HeaderValue>,
    in_flight: AtomicUsize,
}

impl Worker {
    /// A worker that has nothing to do yet.
    ///
    /// `url` is its name in logs and answers, `host` the value of the `Host` header that it gets, `peer`
    /// how it is dialled (address and timeouts), `bootstrap` where decode workers find a prefill worker's
    /// registry, `authorization` what replaces the client's header of that name.
    pub fn new(
        role: Role,
        url: String,
        host: HeaderValue,
        peer: HttpPeer,
        bootstrap: Option<Bootstrap>,
        authorization: Option<HeaderValue>,
    ) -> Self {
        Self {
            role,
            url,
            host,
            peer,
            bootstrap,
            authorization,
            in_flight: AtomicUsize::new(0),
        }
    }

    /// Prefill or decode.
    pub fn role(&self) -> Role {
        self.role
    }

    /// `http://host:port`, without a path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The value of the `Host` header.
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// How the worker is dialled.
    pub fn peer(&self) -> &HttpPeer {
        &self.peer
    }

    /// Where decode finds this prefill worker's registry; `None` for a decode worker.
    pub fn bootstrap(&self) -> Option<&Bootstrap> {
        self.bootstrap.as_ref()
    }

    /// The key that replaces the client's `Authorization`, ready as a header value.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Requests whose leg on this worker has not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Puts one request on this worker.
    pub fn load(self: &Arc<Self>) -> Load {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Load {
            worker: self.clone(),
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(role: Role, port: u16) -> Self {
        let authority = format!("127.0.0.1:{port}");
        Self::new(
            role,
            format!("http://{authority}"),
            HeaderValue::from_static("worker"),
            HttpPeer::new(authority, false, String::new()),
            None,
            None,
        )
    }
}

/// One request's share of a worker's load. It ends when this is dropped: with the leg, not with the choice.
pub struct Load {
    worker: Arc<Worker>,
}

impl Deref for Load {
    type Target = Arc<Worker>;

    fn deref(&self) -> &Arc<Worker> {
        &self.worker
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.worker.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
