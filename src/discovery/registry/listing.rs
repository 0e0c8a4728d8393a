//! A worker as a source wants it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::fleet::{Role, WorkerParts};

/// Where the wish for a worker comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// Flags, variables and the file.
    Config,
    /// The admin API.
    Api,
    /// A name of DNS, as the user wrote it.
    #[allow(dead_code, reason = "without that source")]
    Dns(String),
    /// The API server of a cluster.
    #[allow(dead_code, reason = "without that source")]
    Kubernetes,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Config => f.write_str("config"),
            Source::Api => f.write_str("api"),
            Source::Dns(name) => f.write_str(name),
            Source::Kubernetes => f.write_str("kubernetes"),
        }
    }
}

/// A worker in the list of a source.
#[derive(Clone, PartialEq)]
pub(crate) struct Listed {
    /// What it is made of. Where the role is asked, the one here is a placeholder.
    pub(crate) parts: WorkerParts,
    /// What it must say before its first request.
    pub(crate) first: First,
    pub(crate) details: Details,
}

/// What happens before the first request of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// Nothing: it serves at once.
    Serve,
    /// It must be well, and not contradict its role.
    Probe,
    /// It must be well, and say what is not known of it: its role where `role`, and the port of its bootstrap server.
    Ask {
        /// Whether the role is not known.
        role: bool,
    },
}

impl First {
    pub(super) fn asks_role(self) -> bool {
        self == First::Ask { role: true }
    }
}

/// What a source says about a worker besides its parts. The balancer only repeats it.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Details {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) model_id: Option<String>,
    pub(crate) priority: Option<u32>,
    pub(crate) cost: Option<f64>,
    /// The words that its parts are made of, keys included.
    pub(crate) described: Option<Description>,
    /// The id that it shall have, because it had it before a restart.
    pub(crate) id: Option<String>,
}

/// A worker in the words of a user or an API, from which its parts are made. It has keys, and is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// As in the configuration: `http://host:port`, or `host:port`.
    pub(crate) url: String,
    /// `None` is the host of the URL. Only prefill workers have one.
    pub(crate) bootstrap_host: Option<String>,
    /// `None` leaves it to the decode workers.
    pub(crate) bootstrap_port: Option<u16>,
    /// `None` is the key that all workers have.
    pub(crate) api_key: Option<String>,
    /// The same for administration.
    pub(crate) admin_api_key: Option<String>,
    /// `None` is 1.
    pub(crate) weight: Option<u32>,
}

/// Makes the parts of a worker of its description.
///
/// # Errors
/// A sentence: the URL, a host, a key or the weight is not one.
pub(crate) type Describe =
    Box<dyn Fn(Role, &Description) -> Result<WorkerParts, String> + Send + Sync>;

/// How a worker leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// When its last request has ended, or after this long. Requests that still run then are not cut off.
    Within(Duration),
    /// At once. Its requests go on until they end.
    Now,
}

/// A source lists a worker that another list has in the other role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) url: String,
    /// The role that it has.
    pub(crate) role: Role,
    pub(crate) sources: Vec<Source>,
}
