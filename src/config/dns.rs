//! A name of DNS in place of a worker's URL: every address that it has is a worker.
//!
//! `dns+http://NAME:PORT` asks for addresses, `srv+http://NAME` for services (SRV), which bring their ports and weights.
//! With `https` the certificate of each worker must have the name that was asked for, because an answer of DNS proves
//! nothing; for a service that is the name without its labels that begin with an underscore. No name is looked up here.
//!
//! Source: RFC 2782 (SRV); RFC 6125 section 6.2.1 (the reference identity is the name that the user gave).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::worker::{host_name, is_server_name};
use super::{BootstrapSpec, Role, Secret, UrlFault, WorkerSpec, WorkerUrl};

/// The names that a configuration has in place of workers, and what their workers have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSpec {
    /// The role of all workers of the name.
    pub role: Role,
    /// The name.
    pub url: DnsUrl,
    /// The value of `bootstrap_host` for all of them; `None` is the address of each. Only prefill workers have one.
    pub bootstrap_host: Option<String>,
    /// The value of `bootstrap_port` for all of them, as in [`BootstrapSpec`].
    pub bootstrap_port: Option<u16>,
    /// The key that the workers were started with.
    pub api_key: Option<Secret>,
    /// The key that they require for administration instead.
    pub admin_api_key: Option<Secret>,
    /// The share of each of them; `None` leaves it to the weights of services, or is 1.
    pub weight: Option<u32>,
    /// Whether they are spoken to over HTTP/2.
    pub http2: bool,
}

/// A name of DNS with what it is asked for. `Display` is the canonical form of what the user wrote.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsUrl {
    tls: bool,
    name: String,
    /// `None` asks for services.
    port: Option<u16>,
}

impl DnsUrl {
    /// Reads `dns+http://NAME:PORT` or `srv+http://NAME`, and the same with `https`. `None` for any other scheme.
    ///
    /// # Errors
    /// [`UrlFault`]: a part that such a URL cannot have, or a missing one.
    pub fn parse(text: &str) -> Option<Result<Self, UrlFault>> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let (what, scheme) = scheme.split_once('+')?;
        let parsed = match what {
            "dns" => Self::of_addresses(scheme, rest),
            "srv" => Self::of_services(scheme, rest),
            _ => return None,
        };
        Some(parsed)
    }

    fn of_addresses(scheme: &str, rest: &str) -> Result<Self, UrlFault> {
        let url = WorkerUrl::parse(&format!("{scheme}://{rest}"))?;
        if url.host().parse::<IpAddr>().is_ok() {
            return Err(UrlFault::NotAName);
        }
        Ok(Self {
            tls: url.is_tls(),
            name: url.host().to_owned(),
            port: Some(url.port()),
        })
    }

    fn of_services(scheme: &str, rest: &str) -> Result<Self, UrlFault> {
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(UrlFault::Scheme),
        };
        let name = rest.strip_suffix('/').unwrap_or(rest);
        if name.contains([':', '[']) {
            return Err(UrlFault::PortOfService);
        }
        let name = host_name(name)?;
        if name.parse::<IpAddr>().is_ok() {
            return Err(UrlFault::NotAName);
        }
        let url = Self {
            tls,
            name,
            port: None,
        };
        match tls && !is_server_name(url.certified_name()) {
            true => Err(UrlFault::Host),
            false => Ok(url),
        }
    }

    /// The name that is looked up, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the workers are spoken to over TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The port of the workers; `None` where services bring theirs.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The name that the certificates of the workers must have.
    fn certified_name(&self) -> &str {
        match self.port {
            Some(_) => &self.name,
            None => {
                let is_label = |name: &&str| !name.starts_with('_');
                let mut rest = std::iter::successors(Some(self.name.as_str()), |name| {
                    name.split_once('.').map(|(_, rest)| rest)
                });
                rest.find(is_label).unwrap_or_default()
            }
        }
    }
}

impl fmt::Display for DnsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match self.port {
            Some(port) => write!(f, "dns+{scheme}://{}:{port}", self.name),
            None => write!(f, "srv+{scheme}://{}", self.name),
        }
    }
}

impl DnsSpec {
    /// The worker at one of the addresses. `weight` is that of its service.
    pub fn worker(&self, address: SocketAddr, weight: u32) -> WorkerSpec {
        let url = WorkerUrl::of_address(self.url.tls, address);
        let host = self.bootstrap_host.clone();
        let bootstrap = (self.role == Role::Prefill).then(|| BootstrapSpec {
            host: host.unwrap_or_else(|| url.bootstrap_host()),
            port: self.bootstrap_port,
        });
        let certified = self.url.certified_name();
        WorkerSpec {
            bootstrap,
            server_name: self.url.tls.then(|| certified.to_owned()),
            api_key: self.api_key.clone(),
            admin_api_key: self.admin_api_key.clone(),
            weight: self.weight.unwrap_or(weight),
            http2: self.http2,
            url,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_dns_is_read_with_what_it_is_asked_for() {
        for (text, name, port, canonical) in [
            (
                "dns+http://Prefill.ns.svc:30000/",
                "prefill.ns.svc",
                Some(30000),
                "dns+http://prefill.ns.svc:30000",
            ),
            ("DNS+HTTPS://p", "p", Some(443), "dns+https://p:443"),
            (
                "srv+http://_sglang._tcp.prefill",
                "_sglang._tcp.prefill",
                None,
                "srv+http://_sglang._tcp.prefill",
            ),
        ] {
            let url = DnsUrl::parse(text).unwrap().unwrap();
            assert_eq!((url.name(), url.port()), (name, port), "{text}");
            assert_eq!(url.to_string(), canonical);
        }
        assert_eq!(DnsUrl::parse("http://p:1"), None);
        assert_eq!(DnsUrl::parse("tcp+http://p:1"), None);
    }

    #[test]
    fn a_url_that_no_name_of_dns_can_have_says_what_is_wrong() {
        for (text, fault) in [
            ("dns+http://10.0.0.1:1", UrlFault::NotAName),
            ("dns+http://[::1]:1", UrlFault::NotAName),
            ("dns+ftp://p:1", UrlFault::Scheme),
            ("dns+http://p:1/v1", UrlFault::Path),
            ("dns+http://p:0", UrlFault::Port),
            ("srv+http://p:1", UrlFault::PortOfService),
            ("srv+ftp://p", UrlFault::Scheme),
            ("srv+http://", UrlFault::NoHost),
            ("srv+http://a/b", UrlFault::Host),
            ("srv+http://10.0.0.1", UrlFault::NotAName),
            ("srv+https://_a._tcp", UrlFault::Host),
        ] {
            assert_eq!(DnsUrl::parse(text), Some(Err(fault)), "{text}");
        }
    }

    #[test]
    fn each_address_is_a_worker_whose_certificate_has_the_name_that_was_asked_for() {
        let spec = |url: &str| DnsSpec {
            role: Role::Prefill,
            url: DnsUrl::parse(url).unwrap().unwrap(),
            bootstrap_host: None,
            bootstrap_port: Some(8998),
            api_key: None,
            admin_api_key: None,
            weight: None,
            http2: false,
        };
        let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 2));
        let worker = spec("dns+https://p:443").worker(v6, 3);
        assert_eq!(worker.url.to_string(), "https://[::1]:2");
        assert_eq!(worker.server_name.as_deref(), Some("p"));
        let bootstrap = worker.bootstrap.unwrap();
        assert_eq!(
            (bootstrap.host.as_str(), bootstrap.port),
            ("[::1]", Some(8998))
        );
        assert_eq!(worker.weight, 3);
        let worker = spec("srv+https://_s._tcp.p.ns").worker(v6, 1);
        assert_eq!(worker.server_name.as_deref(), Some("p.ns"));
        let plain = spec("dns+http://p:1").worker(v6, 1);
        assert_eq!(plain.server_name, None);
    }
}
