//! The objects of Kubernetes' API, as far as they concern a worker.
//!
//! The types of `k8s-openapi` have every field, which costs megabytes of code and of memory; serde skips what these here do
//! not name. `k8s-openapi` is still there for the metadata that all objects share.
//!
//! Source: Kubernetes API reference, core/v1 Pod and discovery.k8s.io/v1 EndpointSlice.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

/// A kind of objects that a watch follows.
pub(super) trait Kind: Resource<DynamicType = (), Scope = NamespaceResourceScope> {
    /// The plural name of the kind in paths and in rules of RBAC.
    const PLURAL: &'static str;
    /// Its group; empty for core.
    const GROUP: &'static str;
}

/// A pod.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pod {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) status: PodStatus,
}

/// What kubelet says about a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    /// Absent until the pod has a sandbox. The address of the family that the cluster prefers.
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    pub(super) conditions: Option<Vec<PodCondition>>,
}

/// One of the conditions of a pod.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct PodCondition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// `True`, `False` or `Unknown`.
    pub(super) status: String,
}

/// A part of the endpoints of a service.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct EndpointSlice {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    /// `null` where there is none, as Go writes an empty list.
    #[serde(default)]
    pub(super) endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    pub(super) ports: Option<Vec<EndpointPort>>,
}

/// One endpoint, nearly always a pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    /// All of them lead to the same endpoint; only the first is used.
    pub(super) addresses: Vec<String>,
    #[serde(default)]
    pub(super) conditions: EndpointConditions,
    #[serde(default)]
    pub(super) target_ref: Option<TargetRef>,
}

/// `None` is unknown: an endpoint is then taken as ready, and as not terminating.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointConditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

/// The object that an endpoint stands for.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct TargetRef {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: String,
}

/// A port that all endpoints of a slice have.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct EndpointPort {
    /// Empty where the service has one port without a name.
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) port: Option<u16>,
}

macro_rules! kind {
    ($type:ty, $kind:literal, $plural:literal, $group:literal) => {
        impl Kind for $type {
            const PLURAL: &'static str = $plural;
            const GROUP: &'static str = $group;
        }

        impl Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind(_: &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group(_: &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version(_: &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural(_: &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kind!(Pod, "Pod", "pods", "");
kind!(
    EndpointSlice,
    "EndpointSlice",
    "endpointslices",
    "discovery.k8s.io"
);
