//! What keeps a watch from its objects, in one line of the log each time that it begins and when it is over.
//!
//! The workers that are known stay meanwhile: it is more often the API server that is away than all of them.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::sync::{Mutex, PoisonError};

use kube::core::Status;
use kube::runtime::watcher;

/// The kind of a trouble, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no kubeconfig and no service account, or it cannot be used.
    Credentials(String),
    /// No connection, or one that broke before the response.
    Unreachable(String),
    /// 401: the token has expired, or belongs to another cluster.
    Unauthorized,
    /// 403: the account has no such right.
    Forbidden { verb: &'static str, why: String },
    /// 404: the API server does not serve this kind.
    NotServed,
    /// Any other error of the API server, or a response that cannot be read.
    Refused(String),
    /// 410: the version is older than what the server remembers, so that the list has to be read anew.
    Expired(String),
    /// A watch broke; it goes on.
    Broken(String),
}

impl Trouble {
    /// The trouble behind an error of a watch.
    pub(super) fn of(error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error) => Self::of_request(error, "list"),
            watcher::Error::WatchStartFailed(error) => Self::of_request(error, "watch"),
            watcher::Error::WatchError(status) => Self::of_status(status, "watch"),
            // kube reads the body of a watch as events also where its status is an error.
            watcher::Error::WatchFailed(
                error @ (kube::Error::Api(_) | kube::Error::SerdeError(_)),
            ) => Self::of_request(error, "watch"),
            watcher::Error::WatchFailed(error) => Self::Broken(chain(error)),
            watcher::Error::NoResourceVersion => Self::Refused(error.to_string()),
        }
    }

    /// The trouble behind an error of a request, or of the credentials.
    pub(super) fn of_request(error: &kube::Error, verb: &'static str) -> Self {
        use kube::Error;
        match error {
            Error::Api(status) => Self::of_status(status, verb),
            Error::Auth(_)
            | Error::InferConfig(_)
            | Error::InferKubeconfig(_)
            | Error::RustlsTls(_)
            | Error::TlsRequired
            | Error::ProxyProtocolUnsupported { .. }
            | Error::ProxyProtocolDisabled { .. } => Self::Credentials(chain(error)),
            Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => {
                Self::Unreachable(chain(error))
            }
            _ => Self::Refused(chain(error)),
        }
    }

    fn of_status(status: &Status, verb: &'static str) -> Self {
        match status.code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden {
                verb,
                why: quotable(&status.message),
            },
            404 => Self::NotServed,
            410 => Self::Expired(quotable(&status.message)),
            code => Self::Refused(quotable(&format!("{code} {}", status.message))),
        }
    }

    /// Whether the watch has to begin from the start: with a client that reads the kubeconfig and the token anew, and with a
    /// list. After a status of 410 kube would ask for the same version again.
    pub(super) fn ends_watch(&self) -> bool {
        matches!(
            self,
            Self::Credentials(_) | Self::Unauthorized | Self::Expired(_)
        )
    }
}

/// The end of a line of the log, with what to do.
struct Advice<'a> {
    trouble: &'a Trouble,
    plural: &'a str,
    group: &'a str,
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trouble,
            plural,
            group,
        } = self;
        match trouble {
            Trouble::Credentials(why) => write!(
                f,
                "why=\"{why}\" what_to_do=\"give the pod a service account with its token, or name a kubeconfig by \
                 KUBECONFIG or service_discovery_kubeconfig\""
            ),
            Trouble::Unreachable(why) => {
                write!(
                    f,
                    "why=\"{why}\" what_to_do=\"check the address of the API server, network policies and proxies\""
                )
            }
            Trouble::Unauthorized => f.write_str(
                "why=\"401 Unauthorized\" what_to_do=\"check the token; it is read again with each attempt\"",
            ),
            Trouble::Forbidden { verb, why } => write!(
                f,
                "verb={verb} resource={plural} group=\"{group}\" why=\"{why}\" what_to_do=\"allow the verbs list and watch on \
                 {plural} to its service account, by a Role for one namespace or a ClusterRole for all: \
                 deploy/kubernetes/rbac.yaml\""
            ),
            Trouble::NotServed => write!(
                f,
                "why=\"404, the API server does not serve {plural} of the group `{group}`\" what_to_do=\"check the address \
                 of the API server, or set another service_discovery_kind\""
            ),
            Trouble::Refused(why) | Trouble::Expired(why) | Trouble::Broken(why) => {
                write!(f, "why=\"{why}\"")
            }
        }
    }
}

/// The troubles of all watches, so that one that they share is said once.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    of: Mutex<BTreeMap<&'static str, Discriminant<Trouble>>>,
}

impl Troubles {
    /// Notes that the watch of this role has this trouble; the line is written where it is new.
    pub(super) fn note(&self, role: &'static str, trouble: &Trouble, plural: &str, group: &str) {
        let kind = discriminant(trouble);
        if let Trouble::Expired(why) | Trouble::Broken(why) = trouble {
            log::debug!("watch of Kubernetes begins again role={role} why=\"{why}\"");
            return;
        }
        if self.is_new(role, kind) {
            let advice = Advice {
                trouble,
                plural,
                group,
            };
            log::warn!("Kubernetes cannot be read, the workers that are known stay {advice}");
        }
    }

    /// Notes that the watch of this role stands.
    pub(super) fn end(&self, role: &'static str) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.remove(role).is_some() && of.is_empty() {
            log::info!("Kubernetes is read again");
        }
    }

    fn is_new(&self, role: &'static str, kind: Discriminant<Trouble>) -> bool {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let known = of.values().any(|other| *other == kind);
        of.insert(role, kind);
        !known
    }
}

/// An error with its causes, on one line.
fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let why = error.to_string();
        // Many errors repeat their cause.
        if !text.contains(&why) {
            text.push_str(": ");
            text.push_str(&why);
        }
        source = error.source();
    }
    quotable(&text)
}

/// The longest text of the API server in the log, in characters: it may be the page of a proxy.
const LONGEST_TEXT: usize = 400;

/// A text of the API server that can stand between quotes on one line.
fn quotable(text: &str) -> String {
    let text: String = text.chars().take(LONGEST_TEXT).collect();
    let text = text.replace('"', "'");
    text.escape_debug().to_string().replace("\\'", "'")
}

#[cfg(test)]
mod tests;
