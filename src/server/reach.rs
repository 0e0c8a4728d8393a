//! The workers of a configuration and the client that reaches them, as a balancer has them, without a balancer.

use std::sync::Arc;
use std::time::Duration;

use pingora::server::configuration::ServerConf;

use super::workers::parts;
use super::{StartError, tls};
use crate::config::{Config, WorkerSpec};
use crate::fleet::{BreakerLimits, Fleet, Policies, Role, Worker};
use crate::net::{Client, Dialling};

/// The workers, prefill first, each list in the order of the configuration, and a client with the configuration's trust.
///
/// # Errors
/// [`StartError::Roots`], [`StartError::NotAHeader`].
pub(crate) fn reach(
    config: &Config,
    connect_timeout: Duration,
) -> Result<(Vec<Arc<Worker>>, Client), StartError> {
    let mut conf = ServerConf {
        ca_file: config.server.ca_file.clone(),
        client_bind_to_ipv4: config.server.client_bind_to_ipv4.clone(),
        client_bind_to_ipv6: config.server.client_bind_to_ipv6.clone(),
        ..ServerConf::default()
    };
    let trust = tls::trust(config, &mut conf)?;
    let dialling = Dialling {
        connect_timeout,
        trust,
    };
    // It makes the workers, and chooses none.
    let fleet = Fleet::new(Policies::random(), BreakerLimits::default());
    let of = |role, specs: &[WorkerSpec]| -> Result<Vec<_>, StartError> {
        let workers = specs
            .iter()
            .map(|spec| Ok(fleet.new_worker(parts(role, spec)?)));
        workers.collect()
    };
    let mut workers = of(Role::Prefill, &config.prefill)?;
    workers.extend(of(Role::Decode, &config.decode)?);
    Ok((workers, Client::new(&conf, dialling)))
}
