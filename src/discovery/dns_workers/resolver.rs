//! Questions to DNS servers, by hickory: the system's resolver behind `getaddrinfo` tells neither TTL nor services.
//!
//! Nothing is cached here: the caller asks again when the TTL is over.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;

use super::answer::{Answer, Service};

/// Targets of services that are looked up at the same time.
const MAX_CONCURRENT: usize = 8;

/// The TTL of an answer that has none.
const NO_TTL: Duration = Duration::ZERO;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// The addresses of a name, which serve at this port.
    Addresses(String, u16),
    /// The services of a name (SRV).
    Services(String),
}

impl Question {
    fn name(&self) -> &str {
        match self {
            Self::Addresses(name, _) | Self::Services(name) => name,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The servers say that the name has no such record.
    NoRecords,
    /// No server has answered, or not with records.
    Failed(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecords => f.write_str("the name has no such records"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl From<NetError> for NoAnswer {
    fn from(error: NetError) -> Self {
        match error.is_no_records_found() {
            true => Self::NoRecords,
            false => Self::Failed(error.to_string()),
        }
    }
}

/// Asks DNS servers.
pub(crate) struct Resolver {
    hickory: TokioResolver,
}

impl Resolver {
    /// A resolver that asks these servers, or where there are none those of `/etc/resolv.conf`, with its search list.
    ///
    /// # Errors
    /// The file of the system cannot be used; the reason.
    pub(crate) fn new(servers: &[SocketAddr]) -> Result<Self, String> {
        let (config, mut options) = match servers {
            [] => read_system_conf().map_err(|error| format!("/etc/resolv.conf: {error}"))?,
            servers => {
                let servers = servers.iter().copied().map(name_server).collect();
                (
                    ResolverConfig::from_parts(None, Vec::new(), servers),
                    ResolverOpts::default(),
                )
            }
        };
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let provider = TokioRuntimeProvider::default();
        let hickory = TokioResolver::builder_with_config(config, provider).with_options(options);
        let hickory = hickory.build().map_err(|error| error.to_string())?;
        Ok(Self { hickory })
    }

    /// The workers of a name.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(crate) async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        let name = Name::from_utf8(question.name())
            .map_err(|error| NoAnswer::Failed(error.to_string()))?;
        match question {
            Question::Addresses(_, port) => {
                let (addresses, ttl) = self.addresses(&name).await?;
                Ok(Answer::of_addresses(&addresses, *port, ttl))
            }
            Question::Services(_) => self.services(&name).await,
        }
    }

    /// The IPv4 addresses of a name, or where it has none its IPv6 addresses: a worker that has both is one worker.
    async fn addresses(&self, name: &Name) -> Result<(Vec<IpAddr>, Duration), NoAnswer> {
        let found = match self.hickory.lookup(name.clone(), RecordType::A).await {
            Err(error) if error.is_no_records_found() => {
                self.hickory.lookup(name.clone(), RecordType::AAAA).await?
            }
            found => found?,
        };
        let addresses = found
            .answers()
            .iter()
            .filter_map(|record| match record.data {
                RData::A(address) => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            });
        let addresses: Vec<_> = addresses.collect();
        match addresses.is_empty() {
            true => Err(NoAnswer::NoRecords),
            false => Ok((addresses, ttl(&found))),
        }
    }

    async fn services(&self, name: &Name) -> Result<Answer, NoAnswer> {
        let found = self.hickory.lookup(name.clone(), RecordType::SRV).await?;
        let records = found
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(service) => Some(service.clone()),
                _ => None,
            });
        // The root is how a zone says that there is no such service.
        let records: Vec<_> = records
            .filter(|service| !service.target.is_root())
            .collect();
        let looked_up = records.into_iter().map(|service| async move {
            let (addresses, ttl) = match self.addresses(&service.target).await {
                Ok((addresses, ttl)) => (addresses, Some(ttl)),
                // A target that has just gone.
                Err(NoAnswer::NoRecords) => (Vec::new(), None),
                Err(failed) => return Err(failed),
            };
            let (priority, weight, port) = (service.priority, service.weight, service.port);
            Ok((
                Service {
                    priority,
                    weight,
                    port,
                    addresses,
                },
                ttl,
            ))
        });
        let looked_up = futures_util::stream::iter(looked_up).buffered(MAX_CONCURRENT);
        let looked_up: Vec<_> = looked_up.try_collect().await?;
        let ttls = looked_up.iter().filter_map(|(_, ttl)| *ttl);
        let ttl = ttls.fold(ttl(&found), Duration::min);
        let services: Vec<_> = looked_up.into_iter().map(|(service, _)| service).collect();
        let answer = Answer::of_services(&services, ttl);
        match answer.endpoints.is_empty() {
            true => Err(NoAnswer::NoRecords),
            false => Ok(answer),
        }
    }
}

/// The shortest TTL of the records of an answer.
fn ttl(found: &Lookup) -> Duration {
    let ttls = found.answers().iter().map(|record| record.ttl);
    ttls.min()
        .map_or(NO_TTL, |seconds| Duration::from_secs(seconds.into()))
}

/// A server, which is asked over UDP, and over TCP where its answer is long.
fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}
