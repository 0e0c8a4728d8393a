//! What a program does with a balancer that is in it: it learns its addresses, changes its configuration, and stops it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::reload::Given;
use super::{Addresses, StartError};
use crate::config::{ConfigError, MiniLbConfig};

/// Stops a balancer, changes its configuration, and knows its addresses. Cheap to clone. Dropping it stops nothing.
#[derive(Clone)]
pub struct Handle {
    pub(super) closing: Arc<watch::Sender<bool>>,
    pub(super) bound: watch::Receiver<Option<Addresses>>,
    pub(super) reloads: mpsc::Sender<Given>,
}

/// What has become of a configuration that was given to [`Handle::reload`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// The keys of the settings that have another value from now on, in alphabetical order.
    pub changed: Vec<&'static str>,
    /// The keys of the settings that differ from what runs and need a new balancer.
    pub at_start: Vec<String>,
}

/// Why a configuration did not take effect. The balancer serves on as it was.
#[derive(Debug)]
pub enum ReloadError {
    /// The configuration has problems: all of them.
    Config(ConfigError),
    /// It cannot be used.
    Refused(StartError),
    /// The balancer has ended.
    Ended,
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReloadError::Config(problems) => problems.fmt(f),
            ReloadError::Refused(error) => error.fmt(f),
            ReloadError::Ended => f.write_str("the balancer has ended"),
        }
    }
}

impl std::error::Error for ReloadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Their texts are this error's own.
            ReloadError::Config(problems) => problems.source(),
            ReloadError::Refused(error) => error.source(),
            ReloadError::Ended => None,
        }
    }
}

impl Handle {
    /// The address that clients connect to, as soon as it is bound; `None` when the balancer ended before.
    pub async fn address(&self) -> Option<SocketAddr> {
        Some(self.addresses().await?.clients)
    }

    /// The separate address for worker administration, as soon as it is bound; `None` when there is none, or when
    /// the balancer ended before.
    pub async fn admin_address(&self) -> Option<SocketAddr> {
        self.addresses().await?.admins
    }

    /// The address that serves metrics only, as soon as it is bound; `None` when there is none, or when the balancer ended
    /// before.
    pub async fn metrics_address(&self) -> Option<SocketAddr> {
        self.addresses().await?.metrics
    }

    async fn addresses(&self) -> Option<Addresses> {
        let mut bound = self.bound.clone();
        *bound.wait_for(Option::is_some).await.ok()?
    }

    /// Makes another configuration take effect while the balancer serves: workers, keys, policies, limits, timeouts and
    /// certificates. It stands for all of the old one: a setting that it leaves out has its default, and a worker that it leaves
    /// out ends its requests and goes. Live requests keep the values that they began with.
    ///
    /// New workers are probed before they serve. Where others leave, this waits for that, for 10 s at most. Before
    /// [`crate::MiniLoadBalancer::start`] it waits for the start. Once it was called the configuration takes effect, also where
    /// its future is dropped later.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing has changed then.
    pub async fn reload(&self, config: MiniLbConfig) -> Result<Applied, ReloadError> {
        // Reads the files that it names.
        let resolving = tokio::task::spawn_blocking(move || config.resolve_with_settings());
        let resolved = resolving.await.map_err(|_| ReloadError::Ended)?;
        let (config, settings) = resolved.map_err(ReloadError::Config)?;
        let (told, tells) = oneshot::channel();
        let given = Given {
            config,
            settings,
            told,
        };
        let sent = self.reloads.send(given).await;
        sent.map_err(|_| ReloadError::Ended)?;
        tells.await.unwrap_or(Err(ReloadError::Ended))
    }

    /// Stops listening. [`crate::MiniLoadBalancer::start`] returns when the live requests have ended.
    pub fn stop(&self) {
        self.closing.send_replace(true);
    }
}
