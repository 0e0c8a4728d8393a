//! The answers of API servers that are errors, and what is said of them.

#![allow(clippy::unwrap_used)]

use super::*;

/// As a kube-apiserver writes it.
fn status(code: u16, reason: &str, message: &str) -> Box<Status> {
    let text = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","message":{message:?},"reason":"{reason}","code":{code}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn said(trouble: &Trouble) -> String {
    Advice {
        trouble,
        plural: "pods",
        group: "",
    }
    .to_string()
}

#[test]
fn a_missing_right_is_named_with_its_verb_and_resource() {
    let why = "pods is forbidden: User \"system:serviceaccount:ai:mini-lb\" cannot list resource \"pods\" in API group \
               \"\" in the namespace \"ai\"";
    for (error, verb) in [
        (
            watcher::Error::InitialListFailed(kube::Error::Api(status(403, "Forbidden", why))),
            "list",
        ),
        (
            watcher::Error::WatchStartFailed(kube::Error::Api(status(403, "Forbidden", why))),
            "watch",
        ),
        (
            watcher::Error::WatchFailed(kube::Error::Api(status(403, "Forbidden", why))),
            "watch",
        ),
    ] {
        let trouble = Trouble::of(&error);
        let said = said(&trouble);
        assert!(
            said.starts_with(&format!("verb={verb} resource=pods")),
            "{said}"
        );
        assert!(said.contains("system:serviceaccount:ai:mini-lb"), "{said}");
        assert!(said.contains("deploy/kubernetes/rbac.yaml"), "{said}");
        assert!(!trouble.ends_watch());
    }
}

#[test]
fn a_version_that_is_too_old_begins_with_a_list_whether_it_is_a_response_or_an_event() {
    let too_old = || status(410, "Expired", "too old resource version: 27272 (43334)");
    for error in [
        watcher::Error::WatchError(too_old()),
        watcher::Error::WatchStartFailed(kube::Error::Api(too_old())),
        watcher::Error::WatchFailed(kube::Error::Api(too_old())),
        watcher::Error::InitialListFailed(kube::Error::Api(too_old())),
    ] {
        let trouble = Trouble::of(&error);
        assert!(matches!(trouble, Trouble::Expired(_)) && trouble.ends_watch());
    }
}

#[test]
fn a_connection_that_breaks_ends_no_watch() {
    let broken = std::io::Error::other("reset");
    let trouble = Trouble::of(&watcher::Error::WatchFailed(kube::Error::ReadEvents(
        broken,
    )));
    assert!(matches!(trouble, Trouble::Broken(_)) && !trouble.ends_watch());
}

#[test]
fn a_page_of_a_proxy_is_one_line_and_not_a_long_one() {
    let page = format!("<html>\n<body class=\"a\">{}", "x".repeat(10_000));
    let text = quotable(&page);
    assert!(text.starts_with("<html>\\n<body class='a'>xxx"), "{text}");
    assert!(text.len() < 500);
}

#[test]
fn a_token_that_is_refused_begins_with_a_new_client() {
    let error = kube::Error::Api(status(401, "Unauthorized", "Unauthorized"));
    let trouble = Trouble::of(&watcher::Error::InitialListFailed(error));
    assert_eq!(trouble, Trouble::Unauthorized);
    assert!(trouble.ends_watch());
}

#[test]
fn a_trouble_that_the_watches_share_is_said_once() {
    let troubles = Troubles::default();
    let kind = |trouble: &Trouble| discriminant(trouble);
    let refused = Trouble::Refused("500".to_owned());
    assert!(troubles.is_new("prefill", kind(&Trouble::Unauthorized)));
    assert!(!troubles.is_new("decode", kind(&Trouble::Unauthorized)));
    assert!(!troubles.is_new("prefill", kind(&Trouble::Unauthorized)));
    assert!(troubles.is_new("prefill", kind(&refused)));
    troubles.end("prefill");
    assert!(!troubles.is_new("decode", kind(&Trouble::Unauthorized)));
    troubles.end("decode");
    assert!(troubles.is_new("decode", kind(&Trouble::Unauthorized)));
}
