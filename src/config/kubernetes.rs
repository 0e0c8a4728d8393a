//! The settings of Kubernetes: which objects are workers, and where they are looked for.

use std::path::PathBuf;

use super::labels::{Labels, is_key, is_namespace};
use super::resolve::Resolver;
use super::settings::GROUPS;
use super::{Fault, Role};
use crate::limits::{FromText, Settings};

/// Where workers come from in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// What the selectors match.
    pub kind: DiscoveryKind,
    /// Labels of workers, each with their role; `None` is asked from each worker. At least one.
    pub selectors: Vec<(Option<Role>, Labels)>,
    /// `None` is all namespaces.
    pub namespace: Option<String>,
    /// The port of workers that say none.
    pub port: u16,
    /// The annotation with the port of a worker.
    pub port_annotation: String,
    /// The annotation with the port of a bootstrap server.
    pub bootstrap_port_annotation: String,
    /// `None` is found as `kubectl` does, or is the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
}

/// The objects that selectors match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryKind {
    /// core/v1.
    Pods,
    /// discovery.k8s.io/v1.
    EndpointSlices,
}

impl DiscoveryKind {
    /// The words of the setting.
    pub(crate) const WORDS: &[&str] = &["pods", "endpointslices"];
}

impl FromText for DiscoveryKind {
    fn from_text(text: &str) -> Option<Self> {
        match text {
            "pods" => Some(Self::Pods),
            "endpointslices" => Some(Self::EndpointSlices),
            _ => None,
        }
    }
}

/// The keys of the selectors: that of all workers, then those of the roles.
const SELECTORS: [&str; 3] = ["selector", "prefill_selector", "decode_selector"];

impl Resolver<'_> {
    /// The workers of Kubernetes; `Some(None)` when it is not asked.
    pub(super) fn kubernetes(&mut self) -> Option<Option<KubernetesConfig>> {
        let kind = self.get("service_discovery_kind");
        let port = self.get("service_discovery_port");
        // A text without the form of labels has been reported.
        let selectors = self.selectors();
        let namespace = self.scalar("service_discovery_namespace", |text| {
            is_namespace(text).then(|| text.to_owned())
        });
        let port_annotation = self.annotation("port_annotation");
        let bootstrap_port_annotation = self.annotation("bootstrap_port_annotation");
        let kubeconfig = self.scalar("service_discovery_kubeconfig", |path| Some(path.into()));
        if !self.get::<bool>("service_discovery")? {
            self.warn_of_no_discovery();
            return Some(None);
        }
        let place = self.given("service_discovery")?.place.clone();
        if !cfg!(feature = "kubernetes") {
            self.report(&place, Fault::NoFeature("kubernetes"));
        }
        let is_named = |key: &&str| self.given(key).is_some();
        if !SELECTORS.iter().any(is_named) {
            self.report(&place, Fault::NoSelector);
        }
        Some(Some(KubernetesConfig {
            kind: kind?,
            selectors,
            namespace,
            port: port?,
            port_annotation: port_annotation?,
            bootstrap_port_annotation: bootstrap_port_annotation?,
            kubeconfig,
        }))
    }

    /// The labels of both roles belong to each of them, and are a selector of their own where no role has one.
    fn selectors(&self) -> Vec<(Option<Role>, Labels)> {
        let [all, prefill, decode] = SELECTORS.map(|key| {
            // A text that is none has been reported.
            Labels::from_text(&self.given(key)?.value)
        });
        let of_role = [(Role::Prefill, prefill), (Role::Decode, decode)];
        let of_role = of_role.into_iter().filter_map(|(role, own)| {
            let own = own?;
            let labels = all.as_ref().map(|all| own.and(all));
            Some((Some(role), labels.unwrap_or(own)))
        });
        let of_role: Vec<_> = of_role.collect();
        match all {
            Some(all) if of_role.is_empty() => vec![(None, all)],
            _ => of_role,
        }
    }

    fn annotation(&mut self, key: &'static str) -> Option<String> {
        self.scalar(key, |text| is_key(text).then(|| text.to_owned()))
    }

    /// One warning for each setting that has no effect because Kubernetes is not asked.
    fn warn_of_no_discovery(&mut self) {
        let of_group = GROUPS.iter().filter(|(name, _)| *name == "Kubernetes");
        for setting in of_group.flat_map(|(_, settings)| settings.iter()) {
            let Some(given) = self.given(setting.key) else {
                continue;
            };
            if setting.default != Some(given.value.as_str()) {
                let line = format!("{}: ignored without service_discovery", given.place);
                self.warnings.push(line);
            }
        }
    }
}
