//! Flags and variables: precedence, the flags of the router that is replaced, and what is said about mistakes.

use std::fs;
use std::time::Duration;

use mini_lb::cli::{self, Action, Command};
use mini_lb::config::{AllowedOrigins, Policy};

use crate::helpers::{config, load, problems, serve, temporary, workers};

#[test]
fn the_grace_period_of_the_router_is_ours_and_pingoras_key_counts_instead() {
    let grace = |args: &str| {
        config(
            &format!("--prefill http://p:1 --decode http://d:1 {args}"),
            &[],
        )
        .shutdown
        .grace
        .as_secs()
    };
    assert_eq!(grace(""), 180);
    assert_eq!(grace("--shutdown-grace-period-secs 7"), 7);
    let file =
        temporary("prefill: [http://p:1]\ndecode: [http://d:1]\ngrace_period_seconds: 300\n");
    let conf = format!("--conf {}", file.path().display());
    let found = config(&conf, &[]);
    assert_eq!(
        (found.shutdown.grace.as_secs(), found.warnings),
        (300, vec![])
    );
    let found = config(&format!("{conf} --shutdown-grace-period-secs 7"), &[]);
    assert_eq!(found.shutdown.grace.as_secs(), 300);
    assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file =
        temporary("port: 1\nprefill: [http://file:1]\ndecode: [http://file:2]\nthreads: 3\n");
    let conf = format!("--conf {}", file.path().display());
    let variables = [
        ("MINI_LB_PORT", "2"),
        ("MINI_LB_PREFILL", "http://env:1 8998, http://env:2"),
        ("MINI_LB_HOST", ""),
    ];

    let found = config(&conf, &[]);
    assert_eq!(
        (found.listen.port, workers(&found).join(", ").as_str()),
        (1, "http://file:1 file:null, http://file:2")
    );
    assert_eq!(found.server.threads, 3);

    let found = config(&conf, &variables);
    let expected = "http://env:1 env:8998, http://env:2 env:null, http://file:2";
    assert_eq!(
        (found.listen.port, workers(&found).join(", ").as_str()),
        (2, expected)
    );
    assert_eq!(
        found.listen.host, "0.0.0.0",
        "an empty variable counts as absent"
    );

    let found = config(
        &format!("{conf} --port 3 --prefill http://flag:1 p:7"),
        &variables,
    );
    let expected = "http://flag:1 p:7, http://file:2";
    assert_eq!(
        (found.listen.port, workers(&found).join(", ").as_str()),
        (3, expected)
    );

    let found = config("", &[("MINI_LB_CONF", file.path().to_str().unwrap())]);
    assert_eq!(found.listen.port, 1, "the file may be named by a variable");
}

#[test]
fn defaults_are_those_of_the_router_that_is_replaced() {
    let found = config("--prefill http://a:1 --decode http://b:2", &[]);
    assert_eq!(found.listen.to_string(), "0.0.0.0:30000");
    assert_eq!(found.requests.request_timeout, Duration::from_secs(1800));
    assert_eq!(found.workers.connect_timeout, Duration::from_secs(2));
    assert_eq!(found.requests.max_body_bytes, 512 << 20);
    assert_eq!(
        (found.policies.prefill, found.log_filter.as_str()),
        (Policy::Random, "info")
    );
    assert_eq!(
        found.server.threads,
        std::thread::available_parallelism().unwrap().get()
    );
    assert!(found.server.work_stealing);
    assert_eq!(
        found.summary(),
        "configuration ok: 1 prefill, 1 decode, listening on 0.0.0.0:30000"
    );
}

#[test]
fn the_words_of_python_are_levels_and_an_unknown_one_is_an_error_that_lists_them() {
    let workers = "--prefill http://a:1 --decode http://b:2 --log-level";
    let found = config(&format!("{workers} CRITICAL"), &[]);
    assert_eq!(found.log_filter, "error");
    let found = problems(&format!("{workers} verbose"), &[]);
    let said = "--log-level: `verbose` is not one of off, critical, fatal, error,";
    assert!(found.starts_with(said), "{found}");
}

#[test]
fn command_lines_of_the_router_work_unchanged() {
    let found = config(
        "--pd-disaggregation --mini-lb \
         --prefill http://127.0.0.1:30000 8998 --prefill http://127.0.0.1:30002 none \
         --decode http://127.0.0.1:30001 --host 0.0.0.0 --port 8000 --policy cache_aware \
         --prefill-policy bucket --decode-policy power_of_two \
         --retry-max-retries 3 --disable-circuit-breaker --max-concurrent-requests -1 \
         --request-id-headers x-request-id x-trace-id --cors-allowed-origins \
         --prometheus-port 29000 --prometheus-duration-buckets 0.1 1 10 --log-level debug \
         --selector app=a role=b --mcp-config-path x --request-timeout-secs 600",
        &[],
    );
    assert_eq!(found.listen.port, 8000);
    let metrics = found.prometheus.as_ref().map(|listen| listen.to_string());
    assert_eq!(metrics.as_deref(), Some("0.0.0.0:29000"));
    assert_eq!(found.requests.request_timeout, Duration::from_secs(600));
    assert_eq!(found.log_filter, "debug");
    assert_eq!(found.clients.cors_allowed_origins, AllowedOrigins::Any);
    assert_eq!(
        (found.requests.max_retries, &found.resilience.breaker),
        (3, &None)
    );
    assert_eq!(found.workers.max_concurrent_requests, None);
    assert_eq!(
        workers(&found),
        [
            "http://127.0.0.1:30000 127.0.0.1:8998",
            "http://127.0.0.1:30002 127.0.0.1:null",
            "http://127.0.0.1:30001"
        ]
    );
    let warned: Vec<_> = found
        .warnings
        .iter()
        .filter_map(|line| line.split([' ', ':']).next())
        .collect();
    assert_eq!(
        warned,
        [
            "--prometheus-duration-buckets",
            "--request-id-headers",
            "--mcp-config-path",
            "--policy",
            "--prefill-policy",
            "--selector",
        ]
    );
    let policies = (found.policies.prefill, found.policies.decode);
    assert_eq!(policies, (Policy::ExpectedTtft, Policy::PowerOfTwo));
}

#[test]
fn a_limit_of_the_workers_brings_a_queue_and_without_one_there_is_none() {
    let workers = "--prefill http://127.0.0.1:30000 --decode http://127.0.0.1:30001";
    let queue = |flags: &str| {
        let found = config(&format!("{workers} {flags}"), &[]);
        let per_worker = found.workers.max_concurrent_requests?.get();
        Some((
            per_worker,
            found.workers.queue_size,
            found.requests.queue_timeout,
        ))
    };
    for unlimited in [
        "",
        "--max-concurrent-requests -1",
        "--max-concurrent-requests 0",
    ] {
        assert_eq!(queue(unlimited), None);
    }
    assert_eq!(
        queue("--max-concurrent-requests 32"),
        Some((32, 100, Duration::from_secs(60)))
    );
    assert_eq!(
        queue("--max-concurrent-requests 1 --queue-size 0 --queue-timeout-secs 0.5"),
        Some((1, 0, Duration::from_millis(500)))
    );
}

#[test]
fn a_prefill_flag_takes_its_bootstrap_address_as_second_token() {
    let cases = [
        (
            "http://10.0.0.1:30000",
            "http://10.0.0.1:30000 10.0.0.1:null",
        ),
        (
            "http://10.0.0.1:30000 None",
            "http://10.0.0.1:30000 10.0.0.1:null",
        ),
        ("10.0.0.1:30000 8998", "http://10.0.0.1:30000 10.0.0.1:8998"),
        (
            "http://10.0.0.1:30000 p0.cluster:8998",
            "http://10.0.0.1:30000 p0.cluster:8998",
        ),
        (
            "http://[fd00::1]:30000 8998",
            "http://[fd00::1]:30000 [fd00::1]:8998",
        ),
        (
            "http://10.0.0.1:30000 [fd00::1]:8998",
            "http://10.0.0.1:30000 [fd00::1]:8998",
        ),
    ];
    for (tokens, expected) in cases {
        let found = config(&format!("--prefill {tokens} --decode http://d:1"), &[]);
        assert_eq!(workers(&found)[0], expected, "{tokens}");
    }
    for token in [
        "http://b:1",
        "fd00::1:8998",
        "0",
        "70000",
        ":8998",
        "p0:none:1",
        "1 http://b:1",
    ] {
        let line = format!("--prefill http://a:1 --prefill http://c:1 {token} --decode http://d:1");
        let found = problems(&line, &[]);
        assert!(
            found.starts_with("--prefill: `") && found.lines().count() == 1,
            "{token}: {found}"
        );
    }
    let found = problems("--prefill http://a:1 http://b:1 --decode http://d:1", &[]);
    assert!(
        found.ends_with("; repeat the flag for each worker"),
        "{found}"
    );
    let found = problems("--prefill http://a:1 --decode http://c:1 http://d:1", &[]);
    assert_eq!(
        found,
        "--decode: `http://c:1 http://d:1` is not one URL; repeat the flag for each worker"
    );
}

#[test]
fn a_typo_in_a_flag_ends_with_a_suggestion_and_code_2() {
    let cases = [
        ("--prefil http://a:1", "'--prefill'"),
        ("--reqest-timeout-secs 1", "'--request-timeout-secs'"),
        ("--retry-max-retry 1", "'--retry-max-retries'"),
    ];
    for (line, suggestion) in cases {
        let words = std::iter::once("mini-lb").chain(line.split(' '));
        let error = cli::parse(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(suggestion), "{line}: {error}");
    }
    for flag in ["--policy", "--prefill-policy", "--decode-policy"] {
        let line = format!("{flag} rondom --prefill http://a:1 --decode http://b:1");
        let said = format!("{flag}: `rondom` is not a policy, did you mean `random`?");
        assert_eq!(problems(&line, &[]), said);
    }
    let said = problems(
        "--policy nope --prefill http://a:1 --decode http://b:1",
        &[],
    );
    let list = "`nope` is not a policy: there are random, round_robin, power_of_two, least_requests, least_tokens, session and \
         expected_ttft";
    assert!(said.ends_with(list), "{said}");
}

#[test]
fn help_shows_our_flags_and_hides_those_without_effect() {
    let help = cli::command().render_help().to_string();
    for shown in [
        "--prefill <URL> [BOOTSTRAP]",
        "--conf <FILE>",
        "MINI_LB_PREFILL",
        "default: 30000",
        "sglang_router",
    ] {
        assert!(help.contains(shown), "{shown}\n{help}");
    }
    for hidden in ["--rate-limit", "--mini-lb", "--oracle"] {
        assert!(!help.contains(hidden), "{hidden}");
    }
}

#[test]
fn problems_of_all_sources_are_said_at_once() {
    let file = temporary("prot: 1\n");
    let line = format!(
        "--conf {} --port x --decode ftp://b:1",
        file.path().display()
    );
    let found = problems(
        &line,
        &[
            ("MINI_LB_PREFILL", "http://a:1 1 2,,http://a:1"),
            ("MINI_LB_CONNECT_TIMEOUT_SECS", "0"),
        ],
    );
    let found = found.replace(file.path().to_str().unwrap(), "FILE");
    assert_eq!(
        found.lines().collect::<Vec<_>>(),
        [
            "MINI_LB_PREFILL[0]: `http://a:1 1 2` is not one URL with at most a bootstrap address behind it",
            "MINI_LB_PREFILL[1]: `` is not one URL with at most a bootstrap address behind it",
            "FILE:1: prot: unknown key, did you mean `port`?",
            "--port: `x` is not a port from 0 to 65535",
            "MINI_LB_CONNECT_TIMEOUT_SECS: `0` is not a number of seconds above 0 and at most a year",
            "--decode: `ftp://b:1` is not the URL of a worker: the scheme must be http or https",
        ]
    );
}

#[test]
fn the_port_variable_of_kubernetes_is_not_taken_for_ours() {
    let variables = [("MINI_LB_PORT", "tcp://10.96.0.7:80")];
    let found = config("--prefill http://a:1 --decode http://b:1", &variables);
    assert_eq!(found.listen.port, 30000);
    assert_eq!(
        found.warnings,
        ["MINI_LB_PORT is set by Kubernetes for a service and is not used as a port"]
    );
}

/// A certificate that may vouch for others, in PEM.
fn root(name: &str) -> String {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    certified.cert.pem()
}

#[test]
fn authorities_are_named_by_any_number_of_files_in_each_source() {
    let (one, two) = (temporary(&root("a")), temporary(&(root("b") + &root("c"))));
    let (one, two) = (one.path().display(), two.path().display());
    let workers = "--prefill https://a --decode https://b:1";
    let count = |line: &str, variables: &[(&str, &str)]| {
        let found = config(&format!("{line} {workers}"), variables);
        assert_eq!(found.prefill[0].url.to_string(), "https://a:443");
        found.tls.roots.len()
    };
    assert_eq!(count("", &[]), 0);
    assert_eq!(count("--ca-cert-paths", &[]), 0);
    assert_eq!(count(&format!("--ca-cert-paths {one} {two}"), &[]), 3);
    assert_eq!(
        count(&format!("--ca-cert-paths {one} --ca-cert-paths {two}"), &[]),
        3
    );
    let both = format!("{one}, {two}");
    assert_eq!(count("", &[("MINI_LB_CA_CERT_PATHS", &both)]), 3);
    let file = temporary(&format!("ca_cert_paths: [{one}, {two}]\n"));
    let conf = format!("--conf {}", file.path().display());
    assert_eq!(count(&conf, &[]), 3);
    // The printed configuration is read again.
    let (_, effective) = load(&format!("{conf} {workers}"), &[]).unwrap();
    let printed = temporary(&effective.to_string());
    assert_eq!(
        count(&format!("--conf {}", printed.path().display()), &[]),
        3
    );
    fs::write(file.path(), format!("ca_cert_paths: {two}\n")).unwrap();
    assert_eq!(count(&conf, &[]), 2);
}

#[test]
fn an_address_for_administration_is_another_one() {
    let listen = |more: &str| {
        let line = format!("--prefill http://a:1 --decode http://b:1 --port 80 {more}");
        load(&line, &[]).map(|(config, _)| config.admin_listen.map(|listen| listen.to_string()))
    };
    assert_eq!(listen("").unwrap(), None);
    for (text, address) in [
        ("127.0.0.1:29500", "127.0.0.1:29500"),
        ("[::1]:0", "[::1]:0"),
        ("Host:81", "host:81"),
        ("127.0.0.1:81", "127.0.0.1:81"),
    ] {
        let found = listen(&format!("--admin-listen {text}")).unwrap();
        assert_eq!(found.as_deref(), Some(address), "{text}");
    }
    for text in [
        "29500",
        "127.0.0.1",
        "::1:80",
        "a b:1",
        "a:x",
        "a:65536",
        ":1",
    ] {
        let line = [
            "mini-lb",
            "--prefill",
            "a:1",
            "--decode",
            "b:1",
            "--admin-listen",
            text,
        ];
        let Ok(Command::Serve(serve)) = cli::parse(line) else {
            panic!("{text}");
        };
        let found = serve.sources.load(&|_| None).unwrap_err().to_string();
        assert!(
            found.ends_with("is not an address to listen on: HOST:PORT"),
            "{found}"
        );
    }
    // All addresses of IPv4 are this one as well.
    for same in ["0.0.0.0:80", "127.0.0.1:80"] {
        let found = listen(&format!("--admin-listen {same}")).unwrap_err();
        let found = found.to_string();
        assert!(
            found.starts_with("--admin-listen: clients connect to this address"),
            "{found}"
        );
    }
}

#[test]
fn a_bootstrap_server_on_loopback_is_warned_about_when_decode_is_elsewhere() {
    let warned = |line: &str| config(line, &[]).warnings;
    let line = "--prefill http://127.0.0.1:1 8998 --decode http://10.0.0.2:1";
    assert_eq!(
        warned(line),
        [
            "prefill http://127.0.0.1:1: decode workers on other hosts cannot reach its bootstrap host 127.0.0.1, \
          set bootstrap_host"
        ]
    );
    for line in [
        "--prefill http://127.0.0.1:1 8998 --decode http://localhost:2",
        "--prefill http://127.0.0.1:1 10.0.0.1:8998 --decode http://10.0.0.2:1",
        "--prefill http://10.0.0.1:1 8998 --decode http://127.0.0.1:1",
    ] {
        assert_eq!(warned(line), Vec::<String>::new(), "{line}");
    }
}

#[test]
fn the_process_flags_choose_the_action() {
    for (line, action) in [
        ("", Action::Run),
        ("-t", Action::Test),
        ("--test --print-config", Action::Test),
        ("--print-config", Action::PrintConfig),
    ] {
        assert_eq!(serve(line).action, action, "{line}");
    }
    let opt = serve("-d -u -t -c conf/minimal.yaml").opt;
    assert!(opt.daemon && opt.upgrade && opt.test);
    assert_eq!(opt.conf.as_deref(), Some("conf/minimal.yaml"));
}
