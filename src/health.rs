//! `mini-lb health`: asks a running balancer whether it is ready, for health checks of containers that have no shell.
//!
//! The balancer is the one that would run with the same flags, file and environment, on this machine; or it is at a URL.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
use pingora::server::configuration::ServerConf;
use serde_json::Value;

use crate::addresses::Addresses;
use crate::config::{Environment, Listen, OwnListener, Sources, WorkerUrl, read_roots};
use crate::net::{Client, Dialling, Target, Trust, pool_roots};

/// The longest response that is read, in bytes.
const RESPONSE_LIMIT: usize = 64 << 10;

/// Arguments of `mini-lb health`, besides those of the load balancer.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// URL of the balancer. Without it the flags, the file and the environment of the balancer say where it listens on this
    /// machine, and its certificate is not verified.
    #[arg(long, value_name = "URL", help_heading = "Health")]
    pub url: Option<String>,
    /// Certificates (PEM) of the authorities that sign that of an https:// URL, instead of the system's.
    #[arg(
        long,
        value_name = "PATH",
        requires = "url",
        value_hint = clap::ValueHint::FilePath,
        help_heading = "Health"
    )]
    pub ca_cert: Option<PathBuf>,
    /// Ask whether the process serves (/liveness), not whether it is ready (/readiness).
    #[arg(long, help_heading = "Health")]
    pub live: bool,
    /// Deadline of the response, in seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "5",
        value_parser = clap::value_parser!(u16).range(1..=3600),
        help_heading = "Health"
    )]
    pub timeout: u16,
}

/// The balancer that is asked.
struct Asked {
    url: WorkerUrl,
    trust: Trust,
    /// Pingora's file of root certificates.
    roots: Option<String>,
}

/// Asks the balancer. The text is for stdout: `ready` or `live`.
///
/// # Errors
/// A sentence: the balancer is not ready, or does not respond.
pub async fn run(
    args: &HealthArgs,
    sources: Sources,
    environment: Environment<'_>,
) -> Result<&'static str, String> {
    let asked = match &args.url {
        Some(url) => Asked::at(url, args.ca_cert.as_deref())?,
        None => {
            let listener = sources.own_listener(environment);
            Asked::of_this_machine(listener.map_err(|problems| problems.to_string())?)?
        }
    };
    let (path, said) = match args.live {
        true => ("/liveness", "live"),
        false => ("/readiness", "ready"),
    };
    let url = asked.url.clone();
    let deadline = Duration::from_secs(args.timeout.into());
    let why = match tokio::time::timeout(deadline, asked.ask(path, deadline)).await {
        Ok(Ok(())) => return Ok(said),
        Ok(Err(why)) => why,
        Err(_) => format!("no response within {} s", args.timeout),
    };
    Err(format!("{url}{path}: {why}"))
}

impl Asked {
    fn at(url: &str, authority: Option<&Path>) -> Result<Self, String> {
        let parsed = WorkerUrl::parse(url).map_err(|fault| format!("--url {url}: {fault}"))?;
        let own = match authority {
            None => Vec::new(),
            Some(path) => read_roots(path).map_err(|fault| format!("--ca-cert: {fault}"))?,
        };
        let roots = pool_roots(None, parsed.is_tls() && own.is_empty());
        Ok(Self {
            url: parsed,
            trust: Trust::new(&own, None),
            roots: roots.map_err(|why| format!("no root certificates: {why}; see --ca-cert"))?,
        })
    }

    fn of_this_machine(listener: OwnListener) -> Result<Self, String> {
        let OwnListener { at, certificates } = listener;
        let (at, scheme) = match certificates.is_empty() {
            true => (reachable(at), "http"),
            false => (reachable(at), "https"),
        };
        if at.port == 0 {
            return Err("the system chooses the port of this balancer: see --url".to_owned());
        }
        let url = format!("{scheme}://{at}");
        Ok(Self {
            url: WorkerUrl::parse(&url).map_err(|fault| format!("{url}: {fault}"))?,
            trust: Trust::of_this_machine(&certificates),
            roots: pool_roots(None, false)?,
        })
    }

    /// `Ok` for a response of success.
    async fn ask(self, path: &str, deadline: Duration) -> Result<(), String> {
        let found = tokio::net::lookup_host((self.url.host(), self.url.port())).await;
        let addresses = Arc::new(Addresses::new(None));
        addresses.set(found.map_err(|error| error.to_string())?.collect());
        let conf = ServerConf {
            ca_file: self.roots,
            ..ServerConf::default()
        };
        let dialling = Dialling {
            connect_timeout: deadline,
            trust: self.trust,
        };
        let host = HeaderValue::try_from(self.url.host_field());
        let to = Target {
            addresses: &addresses,
            server_name: self.url.is_tls().then(|| self.url.host()),
            host: &host.map_err(|error| error.to_string())?,
            authorization: None,
        };
        let head = RequestHeader::build_no_case(Method::GET, path.as_bytes(), None);
        let head = head.map_err(|error| error.to_string())?;
        let client = Client::new(&conf, dialling);
        let response = client.fetch(to, &head, &Bytes::new(), RESPONSE_LIMIT).await;
        let response = response.map_err(|failure| failure.to_string())?;
        if response.status.is_success() {
            return Ok(());
        }
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let said = body["error"]["message"]
            .as_str()
            .or(body["message"].as_str());
        Err(match said {
            Some(said) => format!("{}: {said}", response.status),
            None => response.status.to_string(),
        })
    }
}

/// Where a process of this machine reaches a listener.
fn reachable(at: Listen) -> Listen {
    let host = match at.host.parse() {
        Ok(IpAddr::V4(any)) if any.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(any)) if any.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        _ => at.host,
    };
    Listen { host, ..at }
}
