//! The configuration as users meet it: command lines, files, variables, and what is said about mistakes.
//!
//! Nothing is started here. The environment is an argument, so that no test sees another's variables.
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use mini_lb::cli::{self, Action, Command, Serve};
use mini_lb::config::{Config, ConfigError, Effective, MiniLbConfig, Policy, Secret};

fn serve(line: &str) -> Serve {
    let words = std::iter::once("mini-lb").chain(line.split_whitespace());
    match cli::parse(words) {
        Ok(Command::Serve(serve)) => *serve,
        #[allow(unreachable_patterns, reason = "as long as there is no subcommand")]
        Ok(other) => panic!("{line}: {other:?}"),
        Err(error) => panic!("{line}: {error}"),
    }
}

fn load(line: &str, variables: &[(&str, &str)]) -> Result<(Config, Effective), ConfigError> {
    let environment = |name: &str| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| OsString::from(value))
    };
    serve(line).sources.load(&environment)
}

fn config(line: &str, variables: &[(&str, &str)]) -> Config {
    load(line, variables)
        .unwrap_or_else(|error| panic!("{line}: {error}"))
        .0
}

fn problems(line: &str, variables: &[(&str, &str)]) -> String {
    load(line, variables).unwrap_err().to_string()
}

fn yaml_files(directory: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // What is not the balancer's configuration has a folder of its own.
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    assert!(
        files
            .iter()
            .all(|path| path.extension().is_some_and(|end| end == "yaml")),
        "{files:?}"
    );
    files
}

fn temporary(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

/// What a configuration means, without the warnings.
fn meaning(config: Config) -> String {
    format!(
        "{:?}",
        Config {
            warnings: Vec::new(),
            ..config
        }
    )
}

/// `http://p:1 p:8998` for a prefill worker, `http://d:1` for a decode worker.
fn workers(config: &Config) -> Vec<String> {
    let all = config.prefill.iter().chain(&config.decode);
    all.map(|worker| match &worker.bootstrap {
        Some(bootstrap) => {
            let port = bootstrap
                .port
                .map_or("null".to_owned(), |port| port.to_string());
            format!("{} {}:{port}", worker.url, bootstrap.host)
        }
        None => worker.url.to_string(),
    })
    .collect()
}

#[test]
fn every_file_in_conf_loads() {
    let files = yaml_files("conf");
    assert!(files.len() >= 4, "{files:?}");
    for path in files {
        let config = config(&format!("--conf {}", path.display()), &[]);
        assert_eq!(config.listen.port, 8080, "{}", path.display());
        assert_eq!(config.warnings, Vec::<String>::new(), "{}", path.display());
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("# "),
            "{} does not open with what it is for",
            path.display()
        );
    }
}

#[test]
fn pingoras_keys_of_the_daemon_file_reach_pingora() {
    let server = config("--conf conf/daemon.yaml", &[]).server;
    assert!(server.daemon);
    assert_eq!(server.threads, 4);
    assert_eq!(server.pid_file, "/run/mini-lb/mini-lb.pid");
    assert_eq!(server.upgrade_sock, "/run/mini-lb/upgrade.sock");
    assert_eq!(
        server.error_log.as_deref(),
        Some("/var/log/mini-lb/error.log")
    );
    assert_eq!(server.grace_period_seconds, Some(300));
}

#[test]
fn the_grace_period_of_the_router_is_ours_and_pingoras_key_counts_instead() {
    let grace = |args: &str| {
        config(
            &format!("--prefill http://p:1 --decode http://d:1 {args}"),
            &[],
        )
        .leaving
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
        (found.leaving.grace.as_secs(), found.warnings),
        (300, vec![])
    );
    let found = config(&format!("{conf} --shutdown-grace-period-secs 7"), &[]);
    assert_eq!(found.leaving.grace.as_secs(), 300);
    assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
}

#[test]
fn bootstrap_hosts_of_the_file_are_what_decode_dials() {
    assert_eq!(
        workers(&config("--conf conf/two-by-two.yaml", &[])),
        [
            "http://10.0.0.1:30000 p0.cluster.internal:8998",
            "http://10.0.0.2:30000 p1.cluster.internal:8998",
            "http://10.0.0.3:30001",
            "http://10.0.0.4:30001",
        ]
    );
}

#[test]
fn every_invalid_file_fails_with_the_errors_that_it_names() {
    let directory = "tests/fixtures/invalid";
    let files = yaml_files(directory);
    assert!(files.len() >= 15, "{files:?}");
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let expected: Vec<_> = text
            .lines()
            .map_while(|line| line.strip_prefix("# error: "))
            .collect();
        assert!(!expected.is_empty(), "{}", path.display());
        let found = problems(&format!("--conf {}", path.display()), &[]);
        let found = found.replace(&format!("{directory}/"), "");
        assert_eq!(
            found.lines().collect::<Vec<_>>(),
            expected,
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_is_the_only_problem() {
    let missing = "cannot read conf/none.yaml: No such file or directory (os error 2)";
    assert_eq!(
        problems("--conf conf/none.yaml", &[]),
        format!("--conf: {missing}")
    );
    let variables = [("MINI_LB_CONF", "conf/none.yaml")];
    assert_eq!(problems("", &variables), format!("MINI_LB_CONF: {missing}"));

    let latin = tempfile::NamedTempFile::new().unwrap();
    fs::write(latin.path(), b"host: \xe4\n").unwrap();
    let found = problems(&format!("--conf {}", latin.path().display()), &[]);
    assert!(found.ends_with("not valid UTF-8"), "{found}");
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
    assert_eq!(found.faults.request_timeout, Duration::from_secs(1800));
    assert_eq!(found.connect_timeout, Duration::from_secs(2));
    assert_eq!(found.max_body_bytes, 512 << 20);
    assert_eq!(
        (found.policy, found.log_filter.as_str()),
        (Policy::Random, "info")
    );
    assert_eq!(
        found.server.threads,
        std::thread::available_parallelism().unwrap().get()
    );
    assert_eq!(
        found.summary(),
        "configuration ok: 1 prefill, 1 decode, listening on 0.0.0.0:30000"
    );
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
         --selector app=a role=b --service-discovery --request-timeout-secs 600",
        &[],
    );
    assert_eq!(found.listen.port, 8000);
    assert_eq!(found.faults.request_timeout, Duration::from_secs(600));
    assert_eq!(found.log_filter, "debug");
    assert_eq!((found.faults.retries, &found.faults.breaker), (3, &None));
    assert_eq!(found.queue, None);
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
            "--prefill-policy",
            "--decode-policy",
            "--service-discovery",
            "--selector",
            "--prometheus-port",
            "--prometheus-duration-buckets",
            "--request-id-headers",
            "--cors-allowed-origins",
            "--policy",
        ]
    );
}

#[test]
fn a_limit_of_the_workers_brings_a_queue_and_without_one_there_is_none() {
    let workers = "--prefill http://127.0.0.1:30000 --decode http://127.0.0.1:30001";
    let queue = |flags: &str| config(&format!("{workers} {flags}"), &[]).queue;
    for unlimited in [
        "",
        "--max-concurrent-requests -1",
        "--max-concurrent-requests 0",
    ] {
        assert_eq!(queue(unlimited), None);
    }
    let found = queue("--max-concurrent-requests 32").unwrap();
    assert_eq!((found.per_worker.get(), found.size), (32, 100));
    assert_eq!(found.timeout, Duration::from_secs(60));
    let found = queue("--max-concurrent-requests 1 --queue-size 0 --queue-timeout-secs 0.5");
    let found = found.unwrap();
    assert_eq!((found.per_worker.get(), found.size), (1, 0));
    assert_eq!(found.timeout, Duration::from_millis(500));
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
    let found = problems("--prefill http://a:1 --decode http://c:1 http://d:1", &[]);
    assert_eq!(found, "--decode: `http://c:1 http://d:1` is not one URL");
}

#[test]
fn a_typo_in_a_flag_ends_with_a_suggestion_and_code_2() {
    let cases = [
        ("--prefil http://a:1", "'--prefill'"),
        ("--reqest-timeout-secs 1", "'--request-timeout-secs'"),
        ("--retry-max-retry 1", "'--retry-max-retries'"),
        ("--prefill-policy rondom", "'random'"),
    ];
    for (line, suggestion) in cases {
        let words = std::iter::once("mini-lb").chain(line.split(' '));
        let error = cli::parse(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(suggestion), "{line}: {error}");
    }
    let found = problems(
        "--policy rondom --prefill http://a:1 --decode http://b:1",
        &[],
    );
    assert_eq!(
        found,
        "--policy: `rondom` is not a policy, did you mean `random`?"
    );
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

#[test]
fn variables_in_the_file_are_expanded() {
    let file = temporary(
        "port: ${PORT}\nprefill: ['http://${NAME}:1']\ndecode: [{url: 'http://b:1', api_key: '${KEY}'}]\n\
         threads: ${THREADS}\npid_file: /run/${NAME}.pid\nerror_log: $${NAME}\n",
    );
    let line = format!("--conf {}", file.path().display());
    let variables = [
        ("PORT", "81"),
        ("NAME", "p0"),
        ("KEY", "sk-${PORT}"),
        ("THREADS", "5"),
    ];
    let (found, effective) = load(&line, &variables).unwrap();
    assert_eq!((found.listen.port, found.server.threads), (81, 5));
    assert_eq!(found.prefill[0].url.to_string(), "http://p0:1");
    assert_eq!(found.decode[0].api_key, Some(Secret::new("sk-${PORT}")));
    assert_eq!(found.server.pid_file, "/run/p0.pid");
    assert_eq!(found.server.error_log.as_deref(), Some("${NAME}"));
    assert!(
        effective.to_string().contains("error_log: $${NAME}")
            || effective.to_string().contains("\"$${NAME}\"")
    );
}

#[test]
fn a_printed_configuration_means_the_same_when_it_is_read() {
    let sources = [
        (
            "--conf conf/two-by-two.yaml --daemon --log-level warn,mini_lb=debug",
            &[][..],
        ),
        (
            "--conf conf/mini-lb.yaml --host :: --request-timeout-secs 0.5",
            &[],
        ),
        (
            "--prefill http://[::1]:1 [fd00::2]:8998 --decode b:1",
            &[("MINI_LB_PORT", "0")],
        ),
    ];
    for (line, variables) in sources {
        let (config, effective) = load(line, variables).unwrap();
        let file = temporary(&effective.to_string());
        let again = load(&format!("--conf {}", file.path().display()), &[]);
        let (again, _) = again.unwrap_or_else(|error| panic!("{line}: {error}\n{effective}"));
        assert_eq!(meaning(again), meaning(config), "{line}\n{effective}");
    }
}

#[test]
fn odd_texts_survive_printing() {
    for text in [
        "a # b", "a: b", "${A}", "'", "\"", "null", "8", "a\nb", "[a, b]", "{", " a ", "é",
    ] {
        let yaml = serde_yaml::to_string(&std::collections::BTreeMap::from([(
            "error_log",
            text.replace("${", "$${"),
        )]));
        let file = temporary(&format!(
            "{}prefill: [http://a:1]\ndecode: [http://b:1]\n",
            yaml.unwrap()
        ));
        let (config, effective) = load(&format!("--conf {}", file.path().display()), &[]).unwrap();
        assert_eq!(config.server.error_log.as_deref(), Some(text));
        let file = temporary(&effective.to_string());
        let again = load(&format!("--conf {}", file.path().display()), &[]);
        let (again, _) = again.unwrap_or_else(|error| panic!("{text}: {error}\n{effective}"));
        assert_eq!(again.server.error_log.as_deref(), Some(text), "{effective}");
    }
}

#[test]
fn a_printed_configuration_says_where_each_value_comes_from() {
    let file = temporary(
        "# c\nport: 1\nprefill:\n- url: http://a:1\n  bootstrap_port: 2\ndecode: [b:1]\nthreads: 2\n",
    );
    let line = format!("--conf {} --policy random --daemon", file.path().display());
    let (_, effective) = load(&line, &[("MINI_LB_HOST", "h")]).unwrap();
    let printed = effective
        .to_string()
        .replace(file.path().to_str().unwrap(), "FILE");
    for expected in [
        "host: h  # environment MINI_LB_HOST",
        "port: 1  # file FILE:2",
        "prefill:  # file FILE:3",
        "- url: http://a:1  # file FILE:4",
        "  bootstrap_port: 2  # file FILE:5",
        "- url: b:1  # file FILE:6",
        "policy: random  # flag --policy",
        "log_level: info  # default",
        "threads: 2  # file FILE:7",
        "daemon: true  # flag --daemon",
        "pid_file: /tmp/pingora.pid  # default",
    ] {
        assert!(
            printed.lines().any(|line| line == expected),
            "{expected}\n{printed}"
        );
    }
    assert!(
        printed
            .lines()
            .all(|line| line.is_empty() || line.contains("# ")),
        "{printed}"
    );
}

#[test]
fn keys_come_from_files_and_are_never_shown() {
    let own = temporary("sk-own\n");
    let shared = temporary("  sk-shared\r\n");
    let file = temporary(&format!(
        "prefill: [{{url: 'http://a:1', api_key: sk-inline}}, {{url: 'http://a:2', api_key_file: {}}}]\n\
         decode: [http://b:1]\n",
        own.path().display()
    ));
    let line = format!(
        "--conf {} --worker-api-key-file {}",
        file.path().display(),
        shared.path().display()
    );
    let (config, effective) = load(&line, &[]).unwrap();
    let keys: Vec<_> = config
        .prefill
        .iter()
        .chain(&config.decode)
        .map(|worker| worker.api_key.as_ref().unwrap())
        .collect();
    assert_eq!(
        keys.iter().map(|key| key.expose()).collect::<Vec<_>>(),
        [&b"sk-inline"[..], b"sk-own", b"sk-shared"]
    );

    let shown = format!("{config:?}{effective}{effective:?}{:?}", serve(&line));
    assert!(!shown.contains("sk-"), "{shown}");
    // The printed stars are no key.
    let printed = temporary(&effective.to_string());
    let found = problems(&format!("--conf {}", printed.path().display()), &[]);
    assert!(
        found.contains("prefill[0].api_key: the stars are"),
        "{found}"
    );
}

#[test]
fn keys_for_administration_are_the_workers_own_or_the_shared_one_and_never_shown() {
    let own = temporary("sk-own\n");
    let shared = temporary("sk-shared");
    let file = temporary(&format!(
        "prefill: [{{url: 'http://a:1', admin_api_key: sk-inline}}, {{url: 'http://a:2', admin_api_key_file: {0}}}]\n\
         decode: [http://b:1]\nworker_admin_api_key_file: {1}\n",
        own.path().display(),
        shared.path().display()
    ));
    let line = format!("--conf {}", file.path().display());
    let (config, effective) = load(&line, &[]).unwrap();
    let workers = config.prefill.iter().chain(&config.decode);
    let keys: Vec<_> = workers
        .map(|worker| {
            (
                worker.admin_api_key.as_ref().unwrap().expose(),
                &worker.api_key,
            )
        })
        .collect();
    let expected: [&[u8]; 3] = [b"sk-inline", b"sk-own", b"sk-shared"];
    assert_eq!(keys, expected.map(|key| (key, &None)));
    let shown = format!("{config:?}{effective}{effective:?}");
    assert!(!shown.contains("sk-"), "{shown}");
    std::fs::write(
        file.path(),
        "prefill: [http://a:1]\ndecode: [{url: 'http://b:1', admin_api_key: a, admin_api_key_file: b}]\n",
    )
    .unwrap();
    let found = problems(&line, &[]);
    let said = "give either admin_api_key or admin_api_key_file, not both";
    assert!(found.ends_with(said), "{found}");
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
    // What is printed is read again.
    let (_, effective) = load(&format!("{conf} {workers}"), &[]).unwrap();
    let printed = temporary(&effective.to_string());
    assert_eq!(
        count(&format!("--conf {}", printed.path().display()), &[]),
        3
    );
    std::fs::write(file.path(), format!("ca_cert_paths: {two}\n")).unwrap();
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
        ("127.0.0.1:80", "127.0.0.1:80"),
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
    let same = listen("--admin-listen 0.0.0.0:80").unwrap_err().to_string();
    assert!(
        same.starts_with("--admin-listen: clients connect there already"),
        "{same}"
    );
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

fn library(prefill: &[(&str, Option<u16>)], decode: &[&str], timeout_secs: u64) -> MiniLbConfig {
    let prefill = prefill
        .iter()
        .map(|(url, port)| (url.to_string(), *port))
        .collect();
    let decode = decode.iter().map(|url| url.to_string()).collect();
    MiniLbConfig::new("127.0.0.1".to_owned(), 0, prefill, decode, timeout_secs)
}

#[test]
fn the_library_resolves_to_what_the_command_line_resolves_to() {
    let key = temporary("sk-1");
    let line = format!(
        "--host 127.0.0.1 --port 0 --prefill http://a:1 p0:8998 --prefill http://b:1 --decode http://c:1 \
         --request-timeout-secs 60 --connect-timeout-secs 0.1 --max-payload-size 10 --policy random \
         --log-level warn --worker-api-key-file {}",
        key.path().display()
    );
    let mut expected = config(&line, &[]);
    expected.server.threads = 1;
    let found = library(
        &[("http://a:1", Some(8998)), ("b:1", None)],
        &["http://c:1/"],
        60,
    )
    .bootstrap_host(0, "p0")
    .connect_timeout(Duration::from_millis(100))
    .max_payload_size(10)
    .policy(Policy::Random)
    .log_level("warn")
    .worker_api_key("sk-1")
    .threads(1)
    .resolve()
    .unwrap();
    assert_eq!(meaning(found), meaning(expected));
}

#[test]
fn the_library_refuses_what_the_command_line_refuses() {
    let found = library(
        &[("http://a:0", Some(0)), ("http://b:1", None)],
        &["http://b:1"],
        0,
    )
    .threads(0)
    .resolve();
    assert_eq!(
        found.unwrap_err().to_string().lines().collect::<Vec<_>>(),
        [
            "request_timeout_secs: `0` is not a number of seconds above 0 and at most a year",
            "prefill_urls[0]: `http://a:0` is not the URL of a worker: the port must be a number from 1 to 65535",
            "prefill_urls[0]: `0` is not a bootstrap port: PORT (1 to 65535), HOST:PORT or none",
            "decode_urls[0]: http://b:1 cannot serve both roles, it is prefill at prefill_urls[1]",
            "threads: must be at least 1",
        ]
    );
    let found = library(&[("http://a:1", None)], &["http://b:1"], 1)
        .worker_api_key("a\r\nb: c")
        .resolve();
    let found = found.unwrap_err().to_string();
    let bad = "the key has characters that an HTTP header cannot carry";
    assert_eq!(
        found,
        format!("prefill_urls[0]: {bad}\ndecode_urls[0]: {bad}")
    );
    let found = library(&[], &[], 1).resolve().unwrap_err().to_string();
    assert_eq!(found.lines().count(), 2, "{found}");
}

#[test]
fn keys_of_clients_come_from_an_option_and_a_file_and_are_not_shown() {
    let file = temporary("sk-1\n\n sk-2 \r\n");
    let workers = "--prefill http://a:1 --decode http://b:1";
    let line = format!(
        "{workers} --api-key sk-0 --api-key-file {} --admin-api-key sk-a",
        file.path().display()
    );
    let (found, effective) = load(&line, &[]).unwrap();
    let printed = effective.to_string();
    assert!(!printed.contains("sk-"), "{printed}");
    let keys = ["sk-0", "sk-1", "sk-2"].map(Secret::new);
    assert_eq!(found.gate.api_keys, keys);
    assert_eq!(found.gate.admin_api_key, Some(Secret::new("sk-a")));
    assert_eq!(found.prefill[0].api_key, Some(Secret::new("sk-0")));
    assert!(found.warnings.is_empty(), "{:?}", found.warnings);
}

#[test]
fn a_file_without_keys_is_no_open_door() {
    let file = temporary("\n \n");
    let found = library(&[("http://a:1", None)], &["http://b:1"], 1)
        .api_key_file(file.path().to_str().unwrap())
        .api_key("a b")
        .resolve();
    let found = found.unwrap_err().to_string();
    assert_eq!(
        found,
        "api_key: the key has characters that an HTTP header cannot carry\napi_key_file: must not be empty"
    );
}
