//! The manifests of `deploy/kubernetes`: each is what Kubernetes' own types say, and the rights are those that are used.
//!
//! The types of `k8s-openapi` are made of the OpenAPI document of Kubernetes. A key that they do not have is lost on the way
//! through them, so that a manifest which comes out as it went in has none that is misspelt or misplaced.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::de::{Deserialize, DeserializeOwned};
use serde_json::Value;
use support::soon;

use super::cluster::{Cluster, FLAGS, NAMESPACE};

/// The documents of a manifest.
fn documents(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(format!("deploy/kubernetes/{name}")).unwrap();
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn all() -> Vec<Value> {
    ["rbac.yaml", "mini-lb.yaml", "workers.yaml"]
        .into_iter()
        .flat_map(documents)
        .collect()
}

fn of_kind<T: DeserializeOwned>(kind: &str) -> Vec<T> {
    let of_kind = all()
        .into_iter()
        .filter(|document| document["kind"] == kind);
    of_kind
        .map(|document| serde_json::from_value(document).unwrap())
        .collect()
}

fn through<T: DeserializeOwned + serde::Serialize>(document: &Value) -> Value {
    let typed: T = serde_json::from_value(document.clone())
        .unwrap_or_else(|error| panic!("{error}: {document}"));
    serde_json::to_value(typed).unwrap()
}

/// The first key that is in the one and not in the other.
fn lost(path: &str, before: &Value, after: &Value) -> Option<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match after.get(key) {
                Some(after) => lost(&path, value, after),
                None => Some(path),
            }
        }),
        (Value::Array(before), Value::Array(after)) => {
            let pairs = before.iter().zip(after).enumerate();
            pairs
                .filter_map(|(nth, (before, after))| lost(&format!("{path}[{nth}]"), before, after))
                .next()
        }
        _ => (before != after).then(|| path.to_owned()),
    }
}

#[test]
fn each_manifest_is_what_the_types_of_kubernetes_say() {
    let documents = all();
    assert!(documents.len() >= 9);
    for document in documents {
        let kind = (document["apiVersion"].as_str(), document["kind"].as_str());
        let after = match (kind.0.unwrap(), kind.1.unwrap()) {
            ("apps/v1", "Deployment") => through::<Deployment>(&document),
            ("apps/v1", "StatefulSet") => through::<StatefulSet>(&document),
            ("v1", "ConfigMap") => through::<ConfigMap>(&document),
            ("v1", "Service") => through::<Service>(&document),
            ("v1", "ServiceAccount") => through::<ServiceAccount>(&document),
            ("rbac.authorization.k8s.io/v1", "Role") => through::<Role>(&document),
            ("rbac.authorization.k8s.io/v1", "RoleBinding") => through::<RoleBinding>(&document),
            other => panic!("{other:?} is not checked"),
        };
        assert_eq!(lost("", &document, &after), None, "{document}");
    }
}

#[test]
fn a_key_that_is_misspelt_is_found() {
    let mut deployment = documents("mini-lb.yaml").remove(1);
    deployment["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1.into();
    let after = through::<Deployment>(&deployment);
    let path = lost("", &deployment, &after);
    assert_eq!(
        path.as_deref(),
        Some(".spec.template.spec.terminationGracePeriodSecond")
    );
}

/// The rights of a role, as group, resource and verb.
type Rights = BTreeSet<(String, String, String)>;

fn granted() -> Rights {
    let [role] = of_kind::<Role>("Role").try_into().unwrap();
    let mut rights = Rights::new();
    for rule in role.rules.unwrap() {
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.as_ref().unwrap() {
                let right = |verb: String| (group.clone(), resource.clone(), verb);
                rights.extend(rule.verbs.iter().cloned().map(right));
            }
        }
    }
    rights
}

/// What the balancer asks for until both of its watches stand.
async fn used(kind: &str) -> Rights {
    let mut cluster = Cluster::start().await;
    let mut balancer = cluster.balancer(&format!("{FLAGS} --service-discovery-kind {kind}"));
    balancer.address().await;
    let (mut rights, mut watches) = (Rights::new(), BTreeSet::new());
    while watches.len() < 2 {
        let asked = soon("a request", cluster.api.next()).await;
        assert_eq!(asked.namespace.as_deref(), Some(NAMESPACE));
        if asked.verb == "watch" {
            watches.insert(asked.query["labelSelector"].clone());
        }
        rights.insert((asked.group, asked.resource, asked.verb.to_owned()));
    }
    rights
}

#[tokio::test]
async fn the_role_has_the_rights_that_are_used_and_no_other() {
    assert_eq!(granted(), used("pods").await);
    // Those of the other kind are in the comment.
    let text = fs::read_to_string("deploy/kubernetes/rbac.yaml").unwrap();
    let commented: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("  # "))
        .map(|line| format!("{line}\n"))
        .collect();
    let rules: Vec<BTreeMap<String, Vec<String>>> = serde_yaml::from_str(&commented).unwrap();
    let [rule] = rules.try_into().unwrap();
    let right = |verb: &String| {
        (
            rule["apiGroups"][0].clone(),
            rule["resources"][0].clone(),
            verb.clone(),
        )
    };
    let rights: Rights = rule["verbs"].iter().map(right).collect();
    assert_eq!(rights, used("endpointslices").await);
}

#[test]
fn the_rights_are_bound_to_the_account_of_the_deployment() {
    let [account] = of_kind::<ServiceAccount>("ServiceAccount")
        .try_into()
        .unwrap();
    let [role] = of_kind::<Role>("Role").try_into().unwrap();
    let [binding] = of_kind::<RoleBinding>("RoleBinding").try_into().unwrap();
    let [deployment] = of_kind::<Deployment>("Deployment").try_into().unwrap();
    assert_eq!(Some(&binding.role_ref.name), role.metadata.name.as_ref());
    let [subject] = binding.subjects.unwrap().try_into().unwrap();
    assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.metadata.name);
}

fn pod() -> PodSpec {
    let [deployment] = of_kind::<Deployment>("Deployment").try_into().unwrap();
    deployment.spec.unwrap().template.spec.unwrap()
}

/// The text of the configuration.
fn configuration() -> String {
    let [map] = of_kind::<ConfigMap>("ConfigMap").try_into().unwrap();
    let mut files = map.data.unwrap();
    assert_eq!(files.len(), 1);
    files.remove("mini-lb.yaml").unwrap()
}

#[test]
fn the_deployment_mounts_its_configuration_as_a_directory() {
    let [map] = of_kind::<ConfigMap>("ConfigMap").try_into().unwrap();
    let pod = pod();
    let [volume] = pod.volumes.unwrap().try_into().unwrap();
    assert_eq!(volume.config_map.map(|map| map.name), map.metadata.name);
    let [mount] = pod.containers[0]
        .volume_mounts
        .clone()
        .unwrap()
        .try_into()
        .unwrap();
    assert_eq!((mount.name, mount.sub_path), (volume.name, None));
    let env = pod.containers[0].env.clone().unwrap();
    let conf = env.iter().find(|variable| variable.name == "MINI_LB_CONF");
    let expected = format!("{}/mini-lb.yaml", mount.mount_path);
    assert_eq!(conf.unwrap().value, Some(expected));
}

#[test]
fn the_deployment_runs_with_its_configuration_and_ends_before_it_is_killed() {
    use mini_lb::cli::{Command, parse};
    let pod = pod();
    let Ok(Command::Serve(serve)) = parse(["mini-lb"].map(str::to_owned)) else {
        panic!("it is refused");
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), configuration()).unwrap();
    // As the kubelet sets the variables of the container.
    let environment = |name: &str| {
        let variables = pod.containers[0].env.as_ref().unwrap();
        let variable = variables.iter().find(|variable| variable.name == name)?;
        match &variable.value_from {
            Some(from) => {
                let field = &from.field_ref.as_ref().unwrap().field_path;
                assert_eq!(field, "metadata.namespace");
                Some(OsString::from("ai"))
            }
            None => {
                assert_eq!(name, "MINI_LB_CONF");
                Some(file.path().into())
            }
        }
    };
    let (config, _) = serve.sources.load(&environment).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(config.watch_config);
    let discovery = config.kubernetes.as_ref().unwrap();
    assert_eq!(discovery.namespace.as_deref(), Some("ai"));
    let (settle, grace) = (config.shutdown.settle, config.shutdown.grace);
    let killed_after = pod.termination_grace_period_seconds.unwrap();
    assert!((settle + grace).as_secs() < killed_after.try_into().unwrap());
    let container = &pod.containers[0];
    let ports = container.ports.as_ref().unwrap();
    assert_eq!(ports[0].container_port, i32::from(config.listen.port));
    // Connections come until the readiness probe has failed often enough.
    let probe = container.readiness_probe.as_ref().unwrap();
    let unready_after = probe.period_seconds.unwrap() * probe.failure_threshold.unwrap();
    assert!(settle.as_secs() >= unready_after.try_into().unwrap());
}

#[test]
fn the_selectors_of_the_deployment_match_the_workers_and_name_their_ports() {
    let configuration: Value = serde_yaml::from_str(&configuration()).unwrap();
    let sets = of_kind::<StatefulSet>("StatefulSet");
    let mut matched = BTreeSet::new();
    for role in ["prefill", "decode"] {
        let selector = configuration[format!("{role}_selector")]
            .as_object()
            .unwrap();
        for set in &sets {
            let template = &set.spec.as_ref().unwrap().template;
            let metadata = template.metadata.as_ref().unwrap();
            let labels = metadata.labels.as_ref().unwrap();
            let matches = selector
                .iter()
                .all(|(key, value)| labels.get(key).is_some_and(|found| value == found));
            if !matches {
                continue;
            }
            matched.insert(set.metadata.name.clone());
            let container = &template.spec.as_ref().unwrap().containers[0];
            let args = container.args.as_ref().unwrap();
            assert!(args.contains(&format!("--disaggregation-mode={role}")));
            let port = &configuration["service_discovery_port"];
            assert!(args.contains(&format!("--port={port}")));
            let annotated = metadata.annotations.as_ref();
            let annotated = annotated.and_then(|all| all.get("sglang.ai/bootstrap-port"));
            assert_eq!(annotated.is_some(), role == "prefill");
            if let Some(port) = annotated {
                assert!(args.contains(&format!("--disaggregation-bootstrap-port={port}")));
            }
        }
    }
    assert_eq!(matched.len(), sets.len());
}
