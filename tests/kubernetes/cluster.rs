//! A cluster: the API server, the kubeconfig with its token, and the balancer that reads it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use mini_lb::sim;
use serde_json::{Value, json};
use support::program::get;
use support::sim::quick;
use support::{Process, mini_lb, soon};
use tempfile::TempDir;

use super::api_server::ApiServer;

pub(crate) const NAMESPACE: &str = "ai";
pub(crate) const FLAGS: &str =
    "--prefill-selector app=sglang role=prefill --decode-selector app=sglang role=decode";

/// The API server, and the files by which it is reached.
pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    directory: TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let cluster = Self {
            api: ApiServer::start("first").await,
            directory: TempDir::new().unwrap(),
        };
        cluster.write_token("first");
        let (url, authority) = (&cluster.api.url, cluster.api.authority.path());
        let token = cluster.file("token");
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             contexts:\n- name: test\n  context: {{ cluster: test, user: test }}\n\
             clusters:\n- name: test\n  cluster: {{ server: '{url}', certificate-authority: '{authority}' }}\n\
             users:\n- name: test\n  user: {{ tokenFile: '{}' }}\n",
            token.display()
        );
        fs::write(cluster.file("config"), kubeconfig).unwrap();
        cluster
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write_token(&self, token: &str) {
        fs::write(self.file("token"), token).unwrap();
    }

    /// Starts the balancer, with more flags.
    pub(crate) fn balancer(&self, more: &str) -> Process {
        let arguments = format!(
            "--host 127.0.0.1 --port 0 --disable-health-check --service-discovery --service-discovery-namespace {NAMESPACE} \
             --service-discovery-kubeconfig {} {more}",
            self.file("config").display()
        );
        mini_lb!(&arguments.split_whitespace().collect::<Vec<_>>())
    }
}

/// A simulated worker, and its pod.
pub(crate) struct Pod {
    pub(crate) worker: sim::Worker,
    /// The object, which a test changes and puts again.
    pub(crate) object: Value,
}

impl Pod {
    /// A pod of this role that is ready.
    pub(crate) async fn start(name: &str, role: sim::Role) -> Self {
        let worker = sim::Worker::start(role, quick()).await.unwrap();
        let object = pod(name, role.mode(), worker.address(), worker.bootstrap_port());
        Self { worker, object }
    }

    pub(crate) async fn prefill(name: &str) -> Self {
        Self::start(name, sim::Role::Prefill).await
    }

    pub(crate) async fn decode(name: &str) -> Self {
        Self::start(name, sim::Role::Decode).await
    }

    pub(crate) fn url(&self) -> String {
        self.worker.url()
    }

    pub(crate) fn set_ready(&mut self, ready: &str) {
        self.object["status"]["conditions"] = json!([{ "type": "Ready", "status": ready }]);
    }
}

/// A pod that is ready.
pub(crate) fn pod(name: &str, role: &str, address: SocketAddr, bootstrap: Option<u16>) -> Value {
    let mut annotations = json!({ "mini-lb/port": address.port().to_string() });
    if let Some(port) = bootstrap {
        annotations["sglang.ai/bootstrap-port"] = json!(port.to_string());
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"),
            "labels": { "app": "sglang", "role": role }, "annotations": annotations,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": { "containers": [{ "name": "sglang", "image": "lmsysorg/sglang" }] },
        "status": {
            "phase": "Running", "podIP": address.ip().to_string(),
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z" }],
        },
    })
}

/// The URLs of the workers that get requests.
pub(crate) async fn serving(balancer: SocketAddr) -> BTreeSet<String> {
    let metrics = get(balancer, "/metrics").await;
    let up = metrics
        .text()
        .lines()
        .filter(|line| line.starts_with("mini_lb_worker_up{") && line.ends_with(" 1"))
        .map(|line| {
            let (_, worker) = line.split_once("worker=\"").unwrap();
            worker.split('"').next().unwrap().to_owned()
        });
    up.collect()
}

/// Waits until exactly these workers get requests.
pub(crate) async fn serve(balancer: SocketAddr, workers: &[&Pod]) {
    let expected: BTreeSet<_> = workers.iter().map(|pod| pod.url()).collect();
    let serve = async {
        while serving(balancer).await != expected {
            tokio::task::yield_now().await;
        }
    };
    soon(&format!("only {expected:?} serve"), serve).await;
}
