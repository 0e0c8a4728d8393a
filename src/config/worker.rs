//! One worker of the configuration: its URL, its bootstrap address, its keys.
//!
//! No worker is contacted here and no name is resolved. A URL is limited to the APIs that SGLang serves: HTTP, plain or
//! over TLS, at the root of a host and port.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use rustls::pki_types::ServerName;

use super::Listen;

/// A worker of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSpec {
    /// The root of its API.
    pub url: WorkerUrl,
    /// The name that its certificate must have, and that it is called by; `None` is the host of the URL.
    pub server_name: Option<String>,
    /// The address of its bootstrap server. `Some` for every prefill worker, `None` for decode.
    pub bootstrap: Option<BootstrapSpec>,
    /// The key that the worker was started with (`--api-key` of SGLang).
    pub api_key: Option<Secret>,
    /// The key that it requires for administration instead (`--admin-api-key` of SGLang).
    pub admin_api_key: Option<Secret>,
    /// Its share of the requests, beside those of the others of its role; at least 1.
    pub weight: u32,
    /// Whether it is spoken to over HTTP/2.
    pub http2: bool,
}

impl WorkerSpec {
    /// The value of the `Host` header: the name that the certificate has, where that is not the host of the URL.
    pub fn host_field(&self) -> String {
        match &self.server_name {
            None => self.url.host_field(),
            Some(name) => WorkerUrl {
                host: name.clone(),
                ..self.url.clone()
            }
            .host_field(),
        }
    }
}

/// The address of a prefill worker's bootstrap server, as decode workers reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapSpec {
    /// The value of `bootstrap_host`: a name, an IPv4 address, or an IPv6 address in brackets.
    ///
    /// Source: SGLang before 0.5.23 concatenates `host:port`, so the brackets must be there.
    pub host: String,
    /// The value of `bootstrap_port`. `None` is `null`, for which decode uses its own port.
    pub port: Option<u16>,
}

/// The root of a worker's HTTP API. `Display` is the canonical URL, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerUrl {
    tls: bool,
    host: String,
    port: u16,
}

impl WorkerUrl {
    /// Reads `http://host:port` or `https://host:port`, with or without the scheme and a slash at the end.
    ///
    /// The port defaults to 80 or 443 only after a scheme: `host` alone is refused, because the port was probably
    /// forgotten.
    ///
    /// # Errors
    /// [`UrlFault`]: a part that a worker's URL cannot have, or a missing one.
    pub fn parse(text: &str) -> Result<WorkerUrl, UrlFault> {
        if text.contains([',', ' ', '\t']) {
            return Err(UrlFault::Several);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let tls = match scheme.map(str::to_ascii_lowercase).as_deref() {
            None | Some("http") => false,
            Some("https") => true,
            Some(_) => return Err(UrlFault::Scheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if authority.contains('@') {
            return Err(UrlFault::UserInfo);
        }
        if tail.contains('?') || tail.contains('#') {
            return Err(UrlFault::Query);
        }
        if !matches!(tail, "" | "/") {
            return Err(UrlFault::Path);
        }
        let (host, port) = split_authority(authority)?;
        let port = match (port, scheme) {
            (Some(port), _) => port,
            (None, Some(_)) if tls => 443,
            (None, Some(_)) => 80,
            (None, None) => return Err(UrlFault::NoPort),
        };
        // rustls must be able to compare the certificate with it.
        if tls && !is_server_name(&host) {
            return Err(UrlFault::Host);
        }
        Ok(WorkerUrl { tls, host, port })
    }

    /// The URL of a worker at this address, whose port is not zero.
    pub(super) fn of_address(tls: bool, address: SocketAddr) -> WorkerUrl {
        WorkerUrl {
            tls,
            host: address.ip().to_string(),
            port: address.port(),
        }
    }

    /// The host as the value of `bootstrap_host`.
    pub(super) fn bootstrap_host(&self) -> String {
        bracketed(&self.host)
    }

    /// Whether the scheme is https.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host: a name in lower case, or an address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never zero.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`; IPv6 in brackets.
    pub fn authority(&self) -> String {
        Authority(&self.host, self.port).to_string()
    }

    /// The value of the `Host` header: [`Self::authority`], without the port where it is the scheme's default.
    ///
    /// Source: RFC 9110 section 4.2.3. A virtual host by name is often matched against the text without the port.
    pub fn host_field(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        match self.port == default {
            true => bracketed(&self.host),
            false => self.authority(),
        }
    }
}

impl fmt::Display for WorkerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "https://" } else { "http://" })?;
        write_authority(f, &self.host, self.port)
    }
}

/// The reason why a text is not the URL of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlFault {
    /// A space or a comma: several values in one.
    Several,
    /// Neither `http` nor `https`.
    Scheme,
    /// `user:password@`.
    UserInfo,
    /// A path other than `/`.
    Path,
    /// A query or a fragment.
    Query,
    /// An address where a name of DNS must be.
    NotAName,
    /// A port behind a service, which brings its own.
    PortOfService,
    /// Nothing before the port.
    NoHost,
    /// Neither a host name nor an address.
    Host,
    /// Neither a scheme nor a port.
    NoPort,
    /// Not a number from 1 to 65535.
    Port,
}

impl fmt::Display for UrlFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UrlFault::Several => {
                "it has a space or a comma; each worker is a flag or an item of its own, and in a file the bootstrap port is a key of \
                 its own: `- {url: URL, bootstrap_port: PORT}`"
            }
            UrlFault::Scheme => "the scheme must be http or https",
            UrlFault::UserInfo => "user and password are not supported, use api_key_file",
            UrlFault::Path => "a path is not supported, workers serve their API at the root",
            UrlFault::Query => "a query or fragment is not supported",
            UrlFault::NotAName => "an address cannot be looked up, leave out dns+ or srv+",
            UrlFault::PortOfService => {
                "a service brings its own port, leave it out (or use dns+http://NAME:PORT)"
            }
            UrlFault::NoHost => "the host is missing",
            UrlFault::Host => "the host is neither a name nor an address (IPv6 goes in brackets)",
            UrlFault::NoPort => "the port is missing",
            UrlFault::Port => "the port must be a number from 1 to 65535",
        })
    }
}

/// A text that is never printed: `Debug` and `Display` write stars.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps the text unchanged.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the header that carries it.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Secret::MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Secret::MASK)
    }
}

impl Secret {
    /// Printed instead. Refused as a key, so that a printed configuration cannot send it.
    pub(crate) const MASK: &'static str = "***";
}

/// Reads `host` or `host:port`; IPv6 in brackets. Returns the host in lower case, without brackets.
fn split_authority(text: &str) -> Result<(String, Option<u16>), UrlFault> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, tail) = rest.split_once(']').ok_or(UrlFault::Host)?;
            let address: Ipv6Addr = address.parse().map_err(|_| UrlFault::Host)?;
            let port = match tail {
                "" => None,
                tail => Some(tail.strip_prefix(':').ok_or(UrlFault::Host)?),
            };
            (address.to_string(), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            if port.is_some_and(|port| port.contains(':')) {
                return Err(UrlFault::Host);
            }
            (host_name(host)?, port)
        }
    };
    match port {
        None => Ok((host, None)),
        Some(port) => Ok((host, Some(nonzero_port(port).ok_or(UrlFault::Port)?))),
    }
}

/// Reads a host without a port; IPv6 with or without brackets. Returns it in lower case, without brackets.
pub(crate) fn parse_host(text: &str) -> Option<String> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some(address.to_string());
    }
    match split_authority(text) {
        Ok((host, None)) => Some(host),
        _ => None,
    }
}

/// Reads `HOST:PORT` to listen on; port 0 lets the system choose.
pub(crate) fn parse_listen(text: &str) -> Option<Listen> {
    let (host, port) = text.rsplit_once(':')?;
    // IPv6 without brackets is ambiguous.
    if host.contains(':') && !host.starts_with('[') {
        return None;
    }
    Some(Listen {
        host: parse_host(host)?,
        port: port.parse().ok()?,
    })
}

/// Reads a port to connect to, from 1 to 65535.
pub(crate) fn nonzero_port(text: &str) -> Option<u16> {
    // `u16::from_str` accepts a plus sign too.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// Writes `host:port`, IPv6 in brackets.
pub(crate) fn write_authority(f: &mut fmt::Formatter<'_>, host: &str, port: u16) -> fmt::Result {
    if host.contains(':') {
        write!(f, "[{host}]:{port}")
    } else {
        write!(f, "{host}:{port}")
    }
}

/// A host as in a URL: IPv6 in brackets.
pub(crate) fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// Whether rustls can compare a certificate with it.
pub(super) fn is_server_name(host: &str) -> bool {
    ServerName::try_from(host).is_ok()
}

pub(super) fn host_name(host: &str) -> Result<String, UrlFault> {
    if host.is_empty() {
        return Err(UrlFault::NoHost);
    }
    // DNS names have no underscores, but names of Docker Compose services do.
    let fits = host
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    // Without this, "127.0.0.256" would be looked up as a name, and the error would not show the mistake.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if !fits || (numeric && host.parse::<Ipv4Addr>().is_err()) {
        return Err(UrlFault::Host);
    }
    Ok(host.to_ascii_lowercase())
}

struct Authority<'a>(&'a str, u16);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_authority(f, self.0, self.1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_mean_the_same_worker_are_equal() {
        for text in [
            "http://H1:80",
            "http://h1:80/",
            "h1:80",
            "HTTP://h1",
            "http://h1/",
        ] {
            let url = WorkerUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), "http://h1:80", "{text}");
            assert_eq!(url.authority(), "h1:80", "{text}");
        }
        for text in ["http://[::1]:30000", "[0:0:0:0:0:0:0:1]:30000"] {
            let url = WorkerUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), "http://[::1]:30000", "{text}");
            assert_eq!((url.host(), url.port()), ("::1", 30000), "{text}");
            assert_eq!(bracketed(url.host()), "[::1]", "{text}");
        }
        assert!(WorkerUrl::parse("https://[::1]:1").unwrap().is_tls());
        for text in ["https://h1", "HTTPS://H1:443/"] {
            let url = WorkerUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), "https://h1:443", "{text}");
            assert!(url.is_tls(), "{text}");
        }
    }

    #[test]
    fn the_default_port_of_the_scheme_is_no_part_of_the_host_field() {
        for (text, host) in [
            ("http://h1:80", "h1"),
            ("h1:80", "h1"),
            ("http://h1", "h1"),
            ("https://h1", "h1"),
            ("https://[::1]:443", "[::1]"),
            ("http://[::1]", "[::1]"),
            ("http://h1:443", "h1:443"),
            ("https://h1:80", "h1:80"),
            ("http://h1:30000", "h1:30000"),
        ] {
            assert_eq!(WorkerUrl::parse(text).unwrap().host_field(), host, "{text}");
        }
    }

    #[test]
    fn a_url_that_no_worker_can_have_says_what_is_wrong() {
        let cases = [
            ("https://a..b:1", UrlFault::Host),
            ("ftp://h:1", UrlFault::Scheme),
            ("http://u:p@h:1", UrlFault::UserInfo),
            ("http://h:1/v1", UrlFault::Path),
            ("http://h:1//", UrlFault::Path),
            ("http://h:1/?a=b", UrlFault::Query),
            ("http://h:1?a=b@c", UrlFault::Query),
            ("http://h:1#f", UrlFault::Query),
            ("http://:1", UrlFault::NoHost),
            ("", UrlFault::NoHost),
            ("h", UrlFault::NoPort),
            ("http://h:0", UrlFault::Port),
            ("http://h:65536", UrlFault::Port),
            ("http://h:+80", UrlFault::Port),
            ("http://h:", UrlFault::Port),
            ("http://127.0.0.256:1", UrlFault::Host),
            ("http://::1:80", UrlFault::Host),
            ("http://[::1:80", UrlFault::Host),
            ("http://[::1]80", UrlFault::Host),
            ("http://[h]:80", UrlFault::Host),
            ("http://h h:80", UrlFault::Several),
            ("http://h:80,http://i:80", UrlFault::Several),
            ("http://h\r\nx:80", UrlFault::Host),
        ];
        for (text, fault) in cases {
            assert_eq!(WorkerUrl::parse(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let spec = WorkerSpec {
            url: WorkerUrl::parse("http://h:1").unwrap(),
            server_name: None,
            bootstrap: None,
            api_key: Some(Secret::new("sk-1")),
            admin_api_key: Some(Secret::new("sk-1")),
            weight: 1,
            http2: false,
        };
        assert!(!format!("{spec:?} {}", Secret::new("sk-1")).contains("sk-1"));
        assert_eq!(Secret::new("sk-1").expose(), b"sk-1");
    }
}
