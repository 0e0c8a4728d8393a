//! What stands for Kubernetes in a program that was built without it. The configuration has refused `service_discovery` then.

use super::Registry;

/// There is none.
pub(crate) enum Kubernetes {}

impl Kubernetes {
    pub(crate) async fn run(&self, _registry: &Registry) {
        match *self {}
    }
}
