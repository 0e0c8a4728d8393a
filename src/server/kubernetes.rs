//! From a configuration to the workers that Kubernetes has.

use crate::config::KubernetesConfig;
use crate::discovery::Kubernetes;

#[cfg(feature = "kubernetes")]
pub(super) fn kubernetes(config: KubernetesConfig) -> Option<Kubernetes> {
    use crate::config::DiscoveryKind;
    use crate::discovery::{Objects, Rules, Spec};
    let selectors = config.selectors.iter();
    Some(Kubernetes::new(Spec {
        objects: match config.kind {
            DiscoveryKind::Pods => Objects::Pods,
            DiscoveryKind::EndpointSlices => Objects::EndpointSlices,
        },
        namespace: config.namespace,
        selectors: selectors
            .map(|(role, labels)| (*role, labels.to_string()))
            .collect(),
        kubeconfig: config.kubeconfig,
        rules: Rules {
            port: config.port,
            port_annotation: config.port_annotation,
            bootstrap_port_annotation: config.bootstrap_port_annotation,
        },
    }))
}

/// None: the configuration has refused it.
#[cfg(not(feature = "kubernetes"))]
pub(super) fn kubernetes(_: KubernetesConfig) -> Option<Kubernetes> {
    None
}
