//! The settings of Kubernetes: flags as of sglang_router, the file, and what is said without the feature.

use crate::helpers::problems;

const DISCOVERY: &str = "--service-discovery --prefill-selector app=sglang role=prefill --decode-selector app=sglang role=decode";

#[cfg(not(feature = "kubernetes"))]
#[test]
fn a_program_without_kubernetes_says_which_feature_it_lacks() {
    assert_eq!(
        problems(DISCOVERY, &[]),
        "--service-discovery: this program was built without it: build it with `cargo build --release --features \
         kubernetes`, or use an image that has it"
    );
}

#[test]
fn labels_that_kubernetes_would_refuse_are_refused_with_their_flag() {
    for (selector, found) in [
        ("app:sglang", "app:sglang"),
        ("app=sglang role", "app=sglang,role"),
        ("app=a=b", "app=a=b"),
    ] {
        let flags =
            format!("--prefill http://a:1 --decode http://b:2 --decode-selector {selector}");
        let said = problems(&flags, &[]);
        let expected =
            format!("--decode-selector: `{found}` is not a list of labels: KEY=VALUE ...");
        assert_eq!(said, expected);
    }
}

#[cfg(feature = "kubernetes")]
mod with_the_feature {
    use mini_lb::config::{DiscoveryKind, KubernetesConfig};

    use super::DISCOVERY;
    use crate::helpers::{config, problems, temporary};

    fn discovery(line: &str) -> KubernetesConfig {
        config(line, &[]).kubernetes.unwrap()
    }

    fn selectors(of: &KubernetesConfig) -> Vec<String> {
        let show = |(role, labels): &(Option<mini_lb::pd::Role>, _)| match role {
            Some(role) => format!("{role} {labels}"),
            None => format!("any {labels}"),
        };
        of.selectors.iter().map(show).collect()
    }

    #[test]
    fn the_flags_of_the_router_say_where_workers_are() {
        let found = discovery(&format!(
            "--pd-disaggregation {DISCOVERY} --service-discovery-port 30000 --service-discovery-namespace ai"
        ));
        assert_eq!(
            selectors(&found),
            [
                "prefill app=sglang,role=prefill",
                "decode app=sglang,role=decode"
            ]
        );
        assert_eq!((found.kind, found.port), (DiscoveryKind::Pods, 30000));
        assert_eq!(found.namespace.as_deref(), Some("ai"));
        assert_eq!(found.bootstrap_port_annotation, "sglang.ai/bootstrap-port");
        let found = discovery(&format!(
            "{DISCOVERY} --service-discovery-kind endpointslices"
        ));
        assert_eq!(
            (found.kind, found.port),
            (DiscoveryKind::EndpointSlices, 80)
        );
        assert_eq!(found.namespace, None);
    }

    #[test]
    fn the_labels_of_all_workers_join_those_of_the_roles_and_stand_for_them() {
        let roles =
            "--service-discovery --prefill-selector role=prefill --decode-selector role=decode";
        assert_eq!(
            selectors(&discovery(&format!("{roles} --selector app=a"))),
            ["prefill role=prefill,app=a", "decode role=decode,app=a"]
        );
        assert_eq!(
            selectors(&discovery("--service-discovery --selector app=a tier=b")),
            ["any app=a,tier=b"]
        );
    }

    #[test]
    fn selectors_of_the_file_are_mappings_lists_or_texts() {
        let file = temporary(
            "service_discovery: true\nprefill_selector: {app: sglang, role: prefill, debug: false, rack: 7}\n\
             decode_selector: [app=sglang, role=decode]\nselector: tier=a\n",
        );
        let found = discovery(&format!("--conf {}", file.path().display()));
        assert_eq!(
            selectors(&found),
            [
                "prefill app=sglang,role=prefill,debug=false,rack=7,tier=a",
                "decode app=sglang,role=decode,tier=a"
            ]
        );
    }

    #[test]
    fn the_file_of_the_document_means_what_it_says() {
        let text = std::fs::read_to_string("docs/kubernetes.md").unwrap();
        let [block] = support::markdown::blocks(&text, "yml").try_into().unwrap();
        let file = temporary(&block);
        let found = discovery(&format!("--conf {}", file.path().display()));
        assert_eq!(
            selectors(&found),
            [
                "prefill app=sglang,role=prefill",
                "decode app=sglang,role=decode"
            ]
        );
    }

    #[test]
    fn a_selector_is_required_and_names_have_the_form_of_kubernetes() {
        let said = problems("--service-discovery", &[]);
        assert!(
            said.starts_with("--service-discovery: a selector is required as well"),
            "{said}"
        );
        for (flag, value, expected) in [
            (
                "--service-discovery-namespace",
                "Ai",
                "the name of a namespace",
            ),
            (
                "--service-discovery-namespace",
                "a.b",
                "the name of a namespace",
            ),
            ("--service-discovery-port", "0", "a port from 1 to 65535"),
            (
                "--service-discovery-kind",
                "services",
                "pods or endpointslices",
            ),
            (
                "--bootstrap-port-annotation",
                "a/b/c",
                "the key of an annotation",
            ),
        ] {
            let flag_and_value = [flag, value];
            let mut line: Vec<_> = DISCOVERY.split(' ').collect();
            line.extend(flag_and_value);
            let said = problems(&line.join(" "), &[]);
            assert_eq!(said, format!("{flag}: `{value}` is not {expected}"));
        }
    }
}
