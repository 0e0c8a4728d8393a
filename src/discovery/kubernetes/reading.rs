//! From objects to workers: which endpoints an object describes, and for each whether it can serve. Values in, values out.
//!
//! Source: Kubernetes API reference, core/v1 Pod and discovery.k8s.io/v1 EndpointSlice; sglang,
//! sgl-model-gateway/src/service_discovery.rs (the annotation of the bootstrap port).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::objects::{Endpoint, EndpointPort, EndpointSlice, Pod};

/// How objects are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The port of workers that say none.
    pub(crate) port: u16,
    /// The annotation of a pod with the port of its worker.
    pub(crate) port_annotation: String,
    /// The annotation of a pod with the port of its bootstrap server.
    pub(crate) bootstrap_port_annotation: String,
}

/// Something that an object describes, and that may be a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    /// `namespace/name` of the pod.
    pub(super) name: String,
    /// What two objects have in common that describe the same pod: a service with two address families has a slice for
    /// each. Empty where it is not known.
    pub(super) uid: String,
    pub(super) state: Result<Place, Why>,
}

/// Where a worker is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// Of the bootstrap server; `None` lets decode use its own.
    pub(super) bootstrap_port: Option<u16>,
}

/// Why something is no worker now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// It is being deleted; its live requests may end.
    Terminating,
    /// Its readiness probe fails, or has not succeeded yet.
    NotReady,
    /// It has no address yet, or no longer.
    NoAddress,
    /// It was deleted, or its labels match no longer.
    Gone,
    /// An annotation or a slice has no usable port.
    Unusable(String),
}

impl Why {
    /// Whether somebody must change something before it can serve.
    pub(super) fn is_mistake(&self) -> bool {
        matches!(self, Why::Unusable(_))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Terminating => "it terminates",
            Why::NotReady => "it is not ready",
            Why::NoAddress => "it has no address",
            Why::Gone => "it is deleted, or its labels match no longer",
            Why::Unusable(why) => why,
        })
    }
}

/// Whether all labels of a selector are among these.
fn matches(selector: &str, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.split(',').all(|label| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        labels
            .and_then(|labels| labels.get(key))
            .is_some_and(|found| found == value)
    })
}

/// The readings of an object that one selector matches. Where that of the other role matches as well it is a mistake: a worker
/// has one role.
pub(super) fn of_one_role(
    mut readings: Vec<Reading>,
    labels: Option<&BTreeMap<String, String>>,
    others: &[&str],
) -> Vec<Reading> {
    if let Some(other) = others.iter().find(|other| matches(other, labels)) {
        for reading in &mut readings {
            reading.state = Err(Why::Unusable(format!(
                "the selector {other} of the other role matches it as well"
            )));
        }
    }
    readings
}

/// The worker of a pod.
pub(super) fn of_pod(pod: &Pod, rules: &Rules) -> Reading {
    let metadata = &pod.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    Reading {
        name: format!("{namespace}/{name}"),
        uid: metadata.uid.clone().unwrap_or_default(),
        state: place_of_pod(pod, rules),
    }
}

fn place_of_pod(pod: &Pod, rules: &Rules) -> Result<Place, Why> {
    // First, because kubelet reports a pod as ready for a while after its deletion has begun.
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(Why::Terminating);
    }
    let ip = pod.status.pod_ip.as_deref().unwrap_or_default();
    let address = ip.parse().map_err(|_| Why::NoAddress)?;
    let conditions = pod.status.conditions.as_deref().unwrap_or_default();
    let is_ready = |condition: &super::objects::PodCondition| {
        condition.kind == "Ready" && condition.status == "True"
    };
    if !conditions.iter().any(is_ready) {
        return Err(Why::NotReady);
    }
    Ok(Place {
        address,
        port: annotated(pod, &rules.port_annotation)?.unwrap_or(rules.port),
        bootstrap_port: annotated(pod, &rules.bootstrap_port_annotation)?,
    })
}

/// The port in an annotation. A text that is none is a mistake and not ignored: requests would go to a wrong port.
fn annotated(pod: &Pod, annotation: &str) -> Result<Option<u16>, Why> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|annotations| annotations.get(annotation)) else {
        return Ok(None);
    };
    match text.trim().parse() {
        Ok(port) if port != 0 => Ok(Some(port)),
        _ => Err(Why::Unusable(format!(
            "its annotation {annotation} is `{}`, which is not a port from 1 to 65535",
            text.escape_debug()
        ))),
    }
}

/// The name of the port of the API in a slice, where it has several.
const API_PORT: &str = "http";
/// The name of the port of the bootstrap server.
const BOOTSTRAP_PORT: &str = "bootstrap";

/// The workers of a slice.
pub(super) fn of_slice(slice: &EndpointSlice, rules: &Rules) -> Vec<Reading> {
    let ports = ports_of_slice(slice, rules);
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    let reading = |endpoint: &Endpoint| {
        let target = endpoint.target_ref.as_ref();
        let address = endpoint.addresses.first().map_or("", String::as_str);
        let name = target.map_or(address, |target| &target.name);
        Reading {
            name: format!("{namespace}/{name}"),
            uid: target.map_or(String::new(), |target| target.uid.clone()),
            state: place_of_endpoint(endpoint, address, &ports),
        }
    };
    endpoints.iter().map(reading).collect()
}

type Ports = Result<(u16, Option<u16>), Why>;

fn place_of_endpoint(endpoint: &Endpoint, address: &str, ports: &Ports) -> Result<Place, Why> {
    let conditions = &endpoint.conditions;
    if conditions.terminating == Some(true) {
        return Err(Why::Terminating);
    }
    // A service with publishNotReadyAddresses says that every endpoint is ready, and only `serving` is the truth.
    if conditions.ready == Some(false) || conditions.serving == Some(false) {
        return Err(Why::NotReady);
    }
    let address = address.parse().map_err(|_| Why::NoAddress)?;
    let (port, bootstrap_port) = ports.clone()?;
    Ok(Place {
        address,
        port,
        bootstrap_port,
    })
}

/// The ports of the API and of the bootstrap server of all endpoints of a slice.
fn ports_of_slice(slice: &EndpointSlice, rules: &Rules) -> Ports {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let name = |port: &EndpointPort| port.name.clone().unwrap_or_default();
    let named = |wanted: &str| {
        let found = ports.iter().find(|port| name(port) == wanted)?;
        found.port.filter(|port| *port != 0)
    };
    let bootstrap = named(BOOTSTRAP_PORT);
    let others: Vec<_> = ports
        .iter()
        .filter(|port| name(port) != BOOTSTRAP_PORT)
        .collect();
    let port = match (named(API_PORT), others.as_slice()) {
        (Some(port), _) => port,
        (None, []) => rules.port,
        (None, [only]) => only.port.filter(|port| *port != 0).unwrap_or(rules.port),
        (None, several) => {
            let names: Vec<_> = several.iter().map(|port| name(port)).collect();
            let names = names.join(", ");
            return Err(Why::Unusable(format!(
                "its service has the ports {names}: name the one of the API `{API_PORT}`"
            )));
        }
    };
    Ok((port, bootstrap))
}

#[cfg(test)]
mod tests;
