//! What a worker is made of: its role, its URL, its keys.

use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;

use crate::pd::{Bootstrap, Role};

/// The properties that a worker keeps for as long as it lives, except for its weight.
#[derive(Clone, PartialEq)]
pub struct WorkerParts {
    /// Prefill or decode.
    pub role: Role,
    /// The name of the worker in logs and responses: `http://host:port` or `https://host:port`, without a path.
    pub url: String,
    /// Where the worker is dialled: the same URL in pieces.
    pub origin: Origin,
    /// The value of the `Host` header that the worker gets.
    pub host: HeaderValue,
    /// Where decode workers find the bootstrap registry of a prefill worker; `None` for a decode worker.
    pub bootstrap: Option<Bootstrap>,
    /// Replaces the client's `Authorization`; `None` passes that on.
    pub authorization: Option<HeaderValue>,
    /// The same on the worker's admin endpoints; `None` means `authorization`.
    pub admin_authorization: Option<HeaderValue>,
    /// The worker's share of the requests, beside those of the others of its role; at least 1.
    pub weight: u32,
}

/// The pieces of a worker's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// A name or an IP address, lower case; IPv6 without brackets.
    pub host: String,
    /// Not zero.
    pub port: u16,
    /// Whether the worker is spoken to over TLS.
    pub tls: bool,
    /// The name that its certificate must have; `None` is `host`.
    pub certified: Option<String>,
    /// Whether the worker is spoken to over HTTP/2.
    pub http2: bool,
}

impl Origin {
    /// The address of a host that is written as one; `None` for a name, which must be looked up.
    pub fn literal(&self) -> Option<SocketAddr> {
        let address: IpAddr = self.host.parse().ok()?;
        Some((address, self.port).into())
    }
}

impl WorkerParts {
    /// A worker at this place without TLS, keys and bootstrap, for benchmarks and tests.
    pub fn plain(role: Role, host: &str, port: u16) -> Self {
        Self {
            role,
            url: format!("http://{host}:{port}"),
            origin: Origin {
                host: host.to_owned(),
                port,
                tls: false,
                certified: None,
                http2: false,
            },
            host: HeaderValue::from_static("worker"),
            bootstrap: None,
            authorization: None,
            admin_authorization: None,
            weight: 1,
        }
    }

    /// The same on this machine.
    #[cfg(test)]
    pub(crate) fn for_tests(role: Role, port: u16) -> Self {
        Self::plain(role, "127.0.0.1", port)
    }
}
