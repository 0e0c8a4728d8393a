//! Workers from Kubernetes: the pods of two selectors, or the endpoints of two services, kept current by watches.
//!
//! | file | holds |
//! |---|---|
//! | `objects` | the objects of the API, as far as they concern a worker |
//! | `reading` | from an object to workers, pure |
//! | `table` | the objects of one watch, and what is to be said about them, pure |
//! | `watch` | one watch: from the events of the API server to its table |
//! | `client` | the client of the API server |
//! | `trouble` | what keeps a watch from its objects |
//! | `backoff` | the pause after a failure, pure |
//!
//! The list, the watch behind it, bookmarks and versions that are too old are `kube`'s. A failure changes nothing: the
//! workers that are known stay until the API server says otherwise, and each of them is still probed.

mod backoff;
mod client;
mod objects;
mod reading;
mod table;
mod trouble;
mod watch;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;

use super::registry::{Description, First, Listed, Registry, Source};
use crate::fleet::Role;
use objects::{EndpointSlice, Pod};
use table::Workers;
use trouble::Troubles;
use watch::Watch;

pub(crate) use reading::Rules;

/// The objects that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objects {
    /// core/v1.
    Pods,
    /// discovery.k8s.io/v1.
    EndpointSlices,
}

/// What is watched, and how it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) objects: Objects,
    /// `None` is all namespaces.
    pub(crate) namespace: Option<String>,
    /// Labels of workers as `key=value,key=value`, each with their role; `None` is asked from each worker.
    pub(crate) selectors: Vec<(Option<Role>, String)>,
    /// `None` is found as `kubectl` does, or is the service account of the pod.
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) rules: Rules,
}

/// A worker that Kubernetes has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// `None` is asked from the worker.
    pub(crate) role: Option<Role>,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// Of its bootstrap server; `None` lets decode use its own.
    pub(crate) bootstrap_port: Option<u16>,
    /// `namespace/name` of its pod.
    pub(crate) pod: String,
}

/// Watches Kubernetes.
pub(crate) struct Kubernetes {
    spec: Spec,
    troubles: Arc<Troubles>,
    /// Of each selector whose list has been read once.
    places: Mutex<Vec<(Option<Role>, Workers)>>,
}

impl Kubernetes {
    pub(crate) fn new(spec: Spec) -> Self {
        Self {
            spec,
            troubles: Arc::default(),
            places: Mutex::default(),
        }
    }

    /// Watches for ever, and keeps this source's list of the registry.
    pub(crate) async fn run(&self, registry: &Registry) {
        self.watch(|found| registry.set(&Source::Kubernetes, listed(registry, found)))
            .await;
    }

    /// Watches for ever, and publishes the whole list of workers after each change.
    async fn watch(&self, publish: impl Fn(Vec<Found>)) {
        let (rules, publish) = (&self.spec.rules, &publish);
        let watches = self.spec.selectors.iter().map(async |(role, selector)| {
            let all = self
                .spec
                .selectors
                .iter()
                .map(|(_, selector)| selector.as_str());
            let watch = Watch {
                role: *role,
                selector,
                others: all.filter(|other| other != selector).collect(),
                spec: &self.spec,
                troubles: &self.troubles,
            };
            let changed = |places| self.publish(*role, places, publish);
            match self.spec.objects {
                Objects::Pods => {
                    let read = |pod: &Pod| vec![reading::of_pod(pod, rules)];
                    watch.run(read, changed).await;
                }
                Objects::EndpointSlices => {
                    let read = |slice: &EndpointSlice| reading::of_slice(slice, rules);
                    watch.run(read, changed).await;
                }
            }
        });
        join_all(watches).await;
    }

    /// Publishes all workers, those of this role anew. The lock is held meanwhile, so that the last list is the newest.
    fn publish(&self, role: Option<Role>, places: Workers, publish: &impl Fn(Vec<Found>)) {
        let mut of = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        of.retain(|(other, _)| *other != role);
        of.push((role, places));
        publish(found(&of));
    }
}

/// The workers of all selectors. One that two have is left out: its labels move from one role to the other, and one watch has
/// not heard of it yet.
fn found(of: &[(Option<Role>, Workers)]) -> Vec<Found> {
    let all = || {
        let each = of.iter();
        each.flat_map(|(role, places)| places.iter().map(|place| (*role, place)))
    };
    let mut roles = BTreeMap::new();
    for (_, (place, _)) in all() {
        *roles.entry((place.address, place.port)).or_insert(0) += 1;
    }
    let found = all().filter(|(_, (place, _))| roles.get(&(place.address, place.port)) == Some(&1));
    let found = found.map(|(role, (place, pod))| Found {
        role,
        address: place.address,
        port: place.port,
        bootstrap_port: place.bootstrap_port,
        pod: pod.clone(),
    });
    found.collect()
}

/// The workers as the registry has them.
fn listed(registry: &Registry, found: Vec<Found>) -> Vec<Listed> {
    let listed = found.into_iter().filter_map(|found| {
        let description = Description {
            url: format!("http://{}", SocketAddr::new(found.address, found.port)),
            bootstrap_port: found.bootstrap_port,
            ..Description::default()
        };
        let first = match (found.role, found.bootstrap_port) {
            (None, _) => First::Ask { role: true },
            (Some(Role::Prefill), None) => First::Ask { role: false },
            _ => First::Probe,
        };
        let role = found.role.unwrap_or(Role::Decode);
        match registry.listed(role, &description, first) {
            Ok(mut listed) => {
                listed.details.labels.insert("pod".to_owned(), found.pod);
                Some(listed)
            }
            Err(why) => {
                let (pod, url) = (found.pod, description.url);
                log::error!("pod cannot be a worker pod={pod} worker={url} why=\"{why}\"");
                None
            }
        }
    });
    listed.collect()
}

#[cfg(test)]
mod tests {
    use super::reading::Place;
    use super::*;

    fn place(last: u8) -> Place {
        Place {
            address: [10, 0, 0, last].into(),
            port: 30000,
            bootstrap_port: None,
        }
    }

    #[test]
    fn a_worker_that_both_roles_have_is_left_out_until_one_has_let_go() {
        let places = |last: &[u8]| {
            last.iter()
                .map(|last| (place(*last), "a/b".to_owned()))
                .collect()
        };
        let addresses = |found: Vec<Found>| {
            let each = found.into_iter();
            let each = each.map(|found| (found.role, found.address));
            each.collect::<Vec<_>>()
        };
        let (prefill, decode) = (Some(Role::Prefill), Some(Role::Decode));
        let moving = [(prefill, places(&[1, 2])), (decode, places(&[2, 3]))];
        assert_eq!(
            addresses(found(&moving)),
            [(prefill, place(1).address), (decode, place(3).address)]
        );
        let moved = [(prefill, places(&[1])), (decode, places(&[2, 3]))];
        assert_eq!(
            addresses(found(&moved)),
            [
                (prefill, place(1).address),
                (decode, place(2).address),
                (decode, place(3).address)
            ]
        );
    }
}
