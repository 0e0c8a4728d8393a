//! Configuration files: those of `conf/`, invalid ones, variables in them.

use std::fs;
use std::path::PathBuf;

use mini_lb::config::Secret;

use crate::helpers::{config, load, problems, temporary, workers};

fn yaml_files(directory: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // Files for other programs are in folders.
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
