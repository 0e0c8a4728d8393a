//! The configuration that `--print-config` prints: it means the same when it is read again, and names its sources.

use std::collections::BTreeMap;

use crate::helpers::{load, meaning, temporary};

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
        let yaml =
            serde_yaml::to_string(&BTreeMap::from([("error_log", text.replace("${", "$${"))]));
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
