//! Module boundaries: a module names only the modules that the map in `src/lib.rs` allows.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with the other modules that it may name.
const MAY_NAME: [(&str, &[&str]); 22] = [
    ("pd", &[]),
    ("endpoint", &[]),
    ("addresses", &[]),
    ("limits", &[]),
    ("histogram", &[]),
    ("net", &["addresses", "endpoint"]),
    ("fleet", &["addresses", "histogram", "pd"]),
    ("client", &["endpoint"]),
    ("legs", &["endpoint", "fleet", "net", "pd"]),
    (
        "error",
        &["client", "endpoint", "fleet", "legs", "net", "pd"],
    ),
    (
        "proxy",
        &[
            "client",
            "endpoint",
            "error",
            "fleet",
            "legs",
            "limits",
            "net",
            "pd",
            "telemetry",
        ],
    ),
    ("telemetry", &["error", "fleet", "histogram", "pd"]),
    ("discovery", &["fleet", "net", "pd"]),
    (
        "ops",
        &[
            "discovery",
            "endpoint",
            "error",
            "fleet",
            "net",
            "pd",
            "telemetry",
        ],
    ),
    ("config", &["limits", "pd"]),
    ("sim", &["pd"]),
    ("bench", &["pd"]),
    (
        "doctor",
        &[
            "addresses",
            "config",
            "endpoint",
            "fleet",
            "net",
            "pd",
            "server",
        ],
    ),
    ("health", &["addresses", "config", "net"]),
    ("rollout", &["addresses", "config", "net"]),
    (
        "cli",
        &["bench", "config", "doctor", "health", "rollout", "sim"],
    ),
    (
        "server",
        &[
            "client",
            "config",
            "discovery",
            "fleet",
            "legs",
            "net",
            "ops",
            "pd",
            "proxy",
            "telemetry",
        ],
    ),
];

fn sources(under: &Path) -> Vec<PathBuf> {
    if under.is_file() {
        return vec![under.to_owned()];
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(under).unwrap() {
        found.extend(sources(&entry.unwrap().path()));
    }
    found
}

fn module_of(file: &Path) -> String {
    let inside = file.strip_prefix("src").unwrap();
    let first = inside.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a source text names by a path from the crate root, outside of comments.
fn named(text: &str, modules: &BTreeSet<&str>) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    code.match_indices("crate::")
        .flat_map(|(at, path)| {
            let rest = code[at + path.len()..].trim_start();
            let group = rest
                .strip_prefix('{')
                .and_then(|rest| rest.split('}').next());
            group
                .unwrap_or(rest.split([':', ';', ' ', ',']).next().unwrap())
                .split([',', ':'])
                .map(|name| name.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .filter(|name| modules.contains(name.as_str()))
        .collect()
}

#[test]
fn no_module_names_one_that_it_must_not_know() {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let modules: BTreeSet<&str> = MAY_NAME.iter().map(|(module, _)| *module).collect();
    let mut seen = BTreeSet::new();
    for file in sources(Path::new("src")) {
        let module = module_of(&file);
        if [
            "lib",
            "main",
            "demo",
            "log_json",
            "logger",
            "open_files",
            "stderr",
        ]
        .contains(&module.as_str())
        {
            continue;
        }
        let (_, allowed) = MAY_NAME
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{} is in no module of the map", file.display()));
        for name in named(&fs::read_to_string(&file).unwrap(), &modules) {
            assert!(
                name == module || allowed.contains(&name.as_str()),
                "{} names the module `{name}`, which `{module}` must not know",
                file.display()
            );
        }
        seen.insert(module);
    }
    assert_eq!(
        seen.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        modules
    );
}

/// The crates that a module must not name: the protocol is pure, and the fleet knows neither HTTP server nor proxy.
const MUST_NOT_NAME: [(&str, &[&str]); 2] = [
    ("pd", &["pingora", "tokio", "rand", "log", "http"]),
    ("fleet", &["pingora"]),
];

/// Whether a source text names a crate by a path or an import, outside of comments and tests. A crate and those that
/// begin with its name and an underscore count as one.
fn names_crate(text: &str, name: &str) -> bool {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().map(str::trim_start);
    lines.filter(|line| !line.starts_with("//")).any(|line| {
        line.match_indices(name).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let begins = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
            let after = line[at + name.len()..].split("::").next().unwrap();
            let rest = &line[at + name.len() + after.len()..];
            let whole = after.is_empty() || after.starts_with('_') && !after.contains(' ');
            begins && whole && rest.starts_with("::")
        })
    })
}

#[test]
fn the_protocol_is_pure_and_the_fleet_does_not_know_the_proxy() {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    for (module, crates) in MUST_NOT_NAME {
        for file in sources(&Path::new("src").join(module)) {
            let text = fs::read_to_string(&file).unwrap();
            for name in crates {
                assert!(
                    !names_crate(&text, name),
                    "{} names the crate `{name}`, which `{module}` must not know",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn the_walker_sees_every_way_to_name_a_crate() {
    for code in [
        "use pingora::Error;",
        "    let peer: pingora::upstreams::Peer;",
        "f(pingora::http::x())",
        "pub use pingora::prelude::*;",
    ] {
        assert!(names_crate(code, "pingora"), "{code}");
    }
    for code in [
        "// use pingora::Error;",
        "/// As pingora::x does.",
        "use crate::pingora::x;",
        "let not_pingora = my_pingora::x();",
        "#[cfg(test)]\nuse pingora::x;",
    ] {
        assert!(!names_crate(code, "pingora"), "{code}");
    }
}

/// Setting the system clock moves no deadline, because only the monotonic clock is used. The exceptions: log
/// lines are dated elsewhere, simulated workers report the time as SGLang does, a benchmark's report has a date,
/// metrics have that of the start, and spans have theirs.
#[test]
fn nothing_reads_a_clock_that_can_be_set() {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    for file in sources(Path::new("src")) {
        let text = fs::read_to_string(&file).unwrap();
        for clock in ["SystemTime", "UNIX_EPOCH", "chrono"] {
            let dated = ["sim", "bench"].contains(&module_of(&file).as_str())
                || file == Path::new("src/telemetry/metrics/process.rs")
                || file.starts_with("src/telemetry/trace");
            let reads = text.contains(clock) && !dated;
            assert!(!reads, "{} names {clock}", file.display());
        }
    }
}

/// A panic is caught by its task and ends one connection; with `panic = "abort"` it would
/// end all of them.
#[test]
fn a_panic_is_no_abort() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let aborts = |line: &str| line.trim_start().starts_with("panic");
    assert!(!manifest.lines().any(aborts));
}

#[test]
fn the_walker_sees_every_way_to_name_a_module() {
    let modules = ["pd", "net", "ops"].into();
    let text = "use crate::pd::{self, Route};\n// use crate::ops::X;\nlet a = crate::net::peer(1);\nuse crate::{ops, other};";
    assert_eq!(
        named(text, &modules),
        ["net", "ops", "pd"].map(String::from).into()
    );
}
