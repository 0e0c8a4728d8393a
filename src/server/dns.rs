//! Workers by names of DNS, from the names of the configuration.
//!
//! Without the feature `dns` there are none: a configuration with such a name is refused.

use std::sync::Arc;

use crate::config::Config;
use crate::discovery::Registry;
#[cfg(feature = "dns")]
use crate::{
    config::DnsSpec,
    discovery::{Details, DnsName, DnsWorkers, First, Listed, Question},
};

use super::StartError;
#[cfg(feature = "dns")]
use super::workers::parts;

/// The names that are looked up.
pub(super) struct Names {
    #[cfg(feature = "dns")]
    workers: DnsWorkers,
}

#[cfg(feature = "dns")]
impl Names {
    /// Those of this configuration.
    ///
    /// # Errors
    /// [`StartError::NotAHeader`].
    pub(super) fn new(config: &Config, registry: &Arc<Registry>) -> Result<Self, StartError> {
        let names = names(config)?;
        let workers = DnsWorkers::new(registry.clone(), config.dns_servers.clone(), names);
        Ok(Self { workers })
    }

    /// Those of another configuration from now on.
    ///
    /// # Errors
    /// [`StartError::NotAHeader`]: nothing has changed then.
    pub(super) fn set(&self, config: &Config) -> Result<(), StartError> {
        self.workers.set(names(config)?);
        Ok(())
    }

    /// Looks them up for ever.
    pub(super) async fn run(&self) {
        self.workers.run().await;
    }
}

#[cfg(feature = "dns")]
fn names(config: &Config) -> Result<Vec<DnsName>, StartError> {
    config.dns.iter().map(name).collect()
}

#[cfg(feature = "dns")]
fn name(spec: &DnsSpec) -> Result<DnsName, StartError> {
    // All workers of a name have the same keys and host name: if one can be listed, all can.
    let any = spec.worker(([127, 0, 0, 1], 1).into(), 1);
    parts(spec.role, &any)?;
    let (name, port) = (spec.url.name().to_owned(), spec.url.port());
    let listed = spec.clone();
    Ok(DnsName {
        text: spec.url.to_string(),
        role: spec.role,
        question: match port {
            Some(port) => Question::Addresses(name, port),
            None => Question::Services(name),
        },
        listed: Box::new(move |address, weight| {
            let worker = listed.worker(address, weight);
            Some(Listed {
                parts: parts(listed.role, &worker).ok()?,
                first: First::Probe,
                details: Details::default(),
            })
        }),
    })
}

#[cfg(not(feature = "dns"))]
impl Names {
    #[allow(clippy::unnecessary_wraps, reason = "as with the feature")]
    pub(super) fn new(_config: &Config, _registry: &Arc<Registry>) -> Result<Self, StartError> {
        Ok(Self {})
    }

    #[allow(clippy::unnecessary_wraps, reason = "as with the feature")]
    pub(super) fn set(&self, _config: &Config) -> Result<(), StartError> {
        Ok(())
    }

    pub(super) async fn run(&self) {
        std::future::pending().await
    }
}
