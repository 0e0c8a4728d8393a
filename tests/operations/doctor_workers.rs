//! `mini-lb doctor` and one worker that cannot be reached, refuses a key, is not well, or is no worker.

use mini_lb::sim::chaos::Script;
use mini_lb::sim::{SimOptions, Worker};
use support::mock_worker::{MockWorker, reply};
use support::tls::{Authority, Terminator};
use tokio::net::{TcpListener, TcpStream};

use crate::doctor::{examined, generated, listed, only, options, run, signed, workers};

#[tokio::test]
async fn each_way_not_to_be_reached_has_its_own_words() {
    let (prefill, decode) = workers(options(), options()).await;
    let decode = decode.url();
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = refused.local_addr().unwrap();
    drop(refused);
    // Accepts in the backlog, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = (silent.local_addr().unwrap(), silent);
    let registry = prefill.bootstrap_port().unwrap();
    let tls = prefill.url().replace("http:", "https:");
    for (url, part) in [
        (format!("http://{closed}"), "refuses connections"),
        (
            format!("http://{}", silent.0),
            "accepts connections and does not answer within",
        ),
        ("http://prefill.invalid:1".to_owned(), "is not found"),
        (tls, "the TLS handshake with"),
        (
            format!("http://127.0.0.1:{registry}"),
            "is it an SGLang worker?",
        ),
    ] {
        let line = ["--prefill", &url, "8998", "--decode", &decode].map(str::to_owned);
        let ended = run(&line, &["--timeout", "5"]).await;
        let lines = signed(&ended, "FAIL");
        assert_eq!(lines.len(), 1, "{url}: {ended:#?}");
        assert!(lines[0].contains(part), "{part}: {lines:#?}");
        assert_eq!(ended.code, Some(1));
    }
}

#[tokio::test]
async fn a_worker_behind_tls_is_reached_with_its_authority_only() {
    let (prefill, decode) = workers(options(), options()).await;
    let authority = Authority::generate();
    let config = Authority::server(&authority.sign(&["127.0.0.1"]), None);
    let terminator = Terminator::before(decode.address(), "127.0.0.1", config).await;
    let decode = ["--decode".to_owned(), terminator.url.clone()];
    let line = [&listed(&prefill)[..], &decode].concat();
    let trusted = run(&line, &["--ca-cert-paths", &authority.path()]).await;
    assert_eq!(trusted.code, Some(0), "{trusted:#?}");
    let stranger = Authority::generate();
    let untrusted = run(&line, &["--ca-cert-paths", &stranger.path()]).await;
    only(
        &untrusted,
        "FAIL",
        &["TLS handshake", "invalid peer certificate", "ca_cert_paths"],
    );
}

/// The options of a worker with these faults.
fn faulty(rules: &str) -> SimOptions {
    SimOptions {
        chaos: Script::parse(rules).unwrap(),
        ..options()
    }
}

#[tokio::test]
async fn a_worker_that_is_not_well_is_told_and_tried_all_the_same() {
    let starting = "rules: [{match: {path: /health}, do: {status: {code: 503}}}]";
    let silent = "rules: [{match: {path: /server_info}, do: silence}]";
    for (rules, parts) in [
        (starting, ["health", "/health answers 503", "is starting"]),
        (
            silent,
            ["server info", "does not answer within 2 s", "not compared"],
        ),
    ] {
        let (prefill, decode) = workers(options(), faulty(rules)).await;
        let ended = examined(&prefill, &decode, &["--timeout", "2"]).await;
        only(&ended, "warn", &parts);
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(generated(&decode));
    }
}

#[tokio::test]
async fn a_worker_of_an_older_version_is_asked_at_the_older_paths() {
    let old = "rules:\n- {match: {path: /server_info}, do: {status: {code: 404}}}\n- {match: {path: /model_info}, do: {status: {code: 404}}}";
    let (prefill, decode) = workers(faulty(old), options()).await;
    let ended = examined(&prefill, &decode, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for sign in ["warn", "FAIL", "skip"] {
        assert_eq!(signed(&ended, sign), [""; 0], "{ended:#?}");
    }
}

#[tokio::test]
async fn a_generation_that_fails_is_told_with_the_words_of_the_worker() {
    let refusing = "rules: [{match: {path: /generate}, do: {status: {code: 500, body: '{\"error\":{\"message\":\"out of luck\"}}'}}}]";
    let cut = "rules: [{match: {path: /generate}, do: {cut_after_event: {events: 2, end: close}}}]";
    let late = "rules: [{match: {path: /generate}, do: {stall_after_event: {events: 2}}}]";
    for (rules, parts) in [
        (refusing, ["-> ", "500", "out of luck"]),
        (
            cut,
            ["-> ", "the stream broke", "see the logs of both workers"],
        ),
        (
            late,
            ["-> ", "the stream broke", "see the logs of both workers"],
        ),
    ] {
        let (prefill, decode) = workers(options(), faulty(rules)).await;
        let ended = examined(&prefill, &decode, &["--timeout", "2"]).await;
        only(&ended, "FAIL", &parts);
        assert_eq!(ended.code, Some(1), "{ended:#?}");
    }
}

#[tokio::test]
async fn a_server_that_is_no_sglang_worker_is_told_although_it_has_models() {
    let models = r#"{"object":"list","data":[{"id":"m","object":"model","max_model_len":2048}]}"#;
    let other = MockWorker::start(move |seen| async move {
        match seen.target.as_str() {
            "/v1/models" => reply(200, "application/json", models),
            _ => reply(404, "application/json", "{}"),
        }
    })
    .await;
    let decode = Worker::start_decode(options()).await.unwrap();
    let line = ["--prefill", &other.url, "8998", "--decode", &decode.url()].map(str::to_owned);
    let ended = run(&line, &[]).await;
    only(&ended, "FAIL", &["server info", "is it an SGLang worker?"]);
    // Nothing but questions was asked.
    let methods: Vec<_> = other
        .seen()
        .iter()
        .map(|seen| seen.method.to_string())
        .collect();
    assert!(methods.iter().all(|method| method == "GET"), "{methods:?}");
}

#[tokio::test]
async fn keys_that_are_refused_or_missing_are_told_and_never_shown() {
    let keyed = SimOptions {
        api_key: Some("sk-worker".into()),
        admin_api_key: Some("sk-admin".into()),
        ..options()
    };
    let (prefill, decode) = workers(options(), keyed).await;
    let file = |key: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key).unwrap();
        file
    };
    let (right, wrong) = (file("sk-worker"), file("sk-wrong"));
    let admin = file("sk-admin");
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    let (right, wrong, admin) = (path(&right), path(&wrong), path(&admin));

    let none = examined(&prefill, &decode, &[]).await;
    only(&none, "FAIL", &["key", "needs one (401)", "api_key_file"]);
    let refused = examined(&prefill, &decode, &["--worker-api-key-file", &wrong]).await;
    only(
        &refused,
        "FAIL",
        &["key", "refuses the configured one (401)"],
    );
    let one = ["--worker-api-key-file", right.as_str()];
    let without_admin = examined(&prefill, &decode, &one).await;
    only(&without_admin, "warn", &["admin key", "none is configured"]);
    assert_eq!(without_admin.code, Some(0), "{without_admin:#?}");
    let both = [&one[..], &["--worker-admin-api-key-file", &wrong]].concat();
    let refused_admin = examined(&prefill, &decode, &both).await;
    only(
        &refused_admin,
        "FAIL",
        &["admin key", "refuses the configured one"],
    );
    let both = [&one[..], &["--worker-admin-api-key-file", &admin]].concat();
    let good = examined(&prefill, &decode, &both).await;
    assert_eq!(good.code, Some(0), "{good:#?}");
    for ended in [none, refused, without_admin, refused_admin, good] {
        assert!(!ended.text().contains("sk-"), "{ended:#?}");
    }
}

#[tokio::test]
async fn a_bootstrap_port_that_is_forwarded_is_a_warning() {
    let (prefill, decode) = workers(options(), options()).await;
    let registry = ("127.0.0.1", prefill.bootstrap_port().unwrap());
    let forwarding = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = forwarding.local_addr().unwrap().port().to_string();
    tokio::spawn(async move {
        while let Ok((mut outside, _)) = forwarding.accept().await {
            tokio::spawn(async move {
                let mut inside = TcpStream::connect(registry).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    let urls = [prefill.url(), decode.url()];
    let line = ["--prefill", &urls[0], &port, "--decode", &urls[1]].map(str::to_owned);
    let ended = run(&line, &[]).await;
    only(&ended, "warn", &["bootstrap port", "succeed all the same"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}
