//! The files of `deploy/`, as far as the program itself can judge them, and the tools that judge the rest where they are installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use mini_lb::cli::{self, Command as Parsed};
use mini_lb::inside::reloads;
use serde_yaml::Value;

const CHART: &str = "deploy/helm/mini-lb";
const COMPOSE: &str = "deploy/compose/compose.yaml";

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_yaml::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Fails with the problems of a configuration.
fn loads(text: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let line = ["mini-lb", "--conf", file.path().to_str().unwrap()];
    let Ok(Parsed::Serve(serve)) = cli::parse(line) else {
        panic!("the command line is refused");
    };
    serve.sources.load(&|_: &str| None).unwrap();
}

/// Runs a tool, which must succeed, unless it is not installed.
fn accepts(tool: &[&str]) {
    match Command::new(tool[0]).args(&tool[1..]).output() {
        Err(_) => eprintln!("{} was not run: it is not installed", tool[0]),
        Ok(output) => assert!(
            output.status.success(),
            "{tool:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

#[test]
fn the_chart_knows_which_keys_a_reload_takes() {
    let helpers = read(&format!("{CHART}/templates/_helpers.tpl"));
    let (_, list) = helpers
        .split_once("define \"mini-lb.reloaded\" -}}")
        .unwrap();
    let (list, _) = list.split_once("{{-").unwrap();
    let listed: BTreeSet<_> = list.split_whitespace().map(str::to_owned).collect();
    let command = cli::command();
    let of_program: BTreeSet<_> = command
        .get_arguments()
        .map(|argument| argument.get_id().as_str())
        .filter(|key| reloads(key))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, of_program);
}

#[test]
fn all_packages_have_the_version_of_the_program() {
    let version = Value::from(env!("CARGO_PKG_VERSION"));
    assert_eq!(yaml(&format!("{CHART}/Chart.yaml"))["appVersion"], version);
}

/// Every key that the schema names is a value, and every value is named.
#[test]
fn the_schema_of_the_chart_has_its_values() {
    let schema: serde_json::Value =
        serde_json::from_str(&read(&format!("{CHART}/values.schema.json"))).unwrap();
    let named: BTreeSet<_> = schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let values = yaml(&format!("{CHART}/values.yaml"));
    let keys = values.as_mapping().unwrap().keys();
    let values: BTreeSet<_> = keys
        .map(|key| key.as_str().unwrap().to_owned())
        .chain(["global".to_owned()])
        .collect();
    assert_eq!(named, values);
}

#[test]
fn compose_runs_commands_and_a_configuration_that_the_program_takes() {
    let compose = yaml(COMPOSE);
    loads(compose["configs"]["mini-lb"]["content"].as_str().unwrap());
    let words = |value: &Value| -> Vec<String> {
        let items = value.as_sequence().unwrap();
        items
            .iter()
            .map(|item| item.as_str().unwrap().to_owned())
            .collect()
    };
    for service in ["prefill", "decode", "load"] {
        let mut line = vec!["mini-lb".to_owned()];
        line.extend(words(&compose["services"][service]["command"]));
        assert!(cli::parse(&line).is_ok(), "{line:?}");
    }
    let check = words(&compose["services"]["prefill"]["healthcheck"]["test"]);
    assert!(
        matches!(cli::parse(&check[1..]), Ok(Parsed::Health(_))),
        "{check:?}"
    );
    // Each file that is mounted is there.
    for service in ["prometheus", "grafana"] {
        for volume in words_or_none(&compose["services"][service]["volumes"]) {
            let source = volume.split(':').next().unwrap();
            if source.starts_with('.') {
                let path = Path::new("deploy/compose").join(source);
                assert!(path.exists(), "{}", path.display());
            }
        }
    }
}

fn words_or_none(value: &Value) -> Vec<String> {
    let items = value.as_sequence().cloned().unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// binstall builds the address of an archive from the manifest alone.
#[test]
fn binstall_asks_for_the_archive_that_is_made_and_is_promised_only_with_an_address() {
    let manifest = read("Cargo.toml");
    let address = "pkg-url = \"{ repo }/releases/download/v{ version }/mini-lb-{ version }-{ target }.tar.gz\"";
    assert!(manifest.contains(address));
    assert!(read("deploy/archive").contains("name=mini-lb-$version-$target\n"));
    let has_address = manifest
        .lines()
        .any(|line| line.starts_with("repository = "));
    let is_denied = read("docs/install.md").contains("`cargo binstall` does not find them yet");
    assert_ne!(has_address, is_denied);
}

/// The bound is the number in the script; the file has a byte more and takes no room.
#[test]
fn a_program_over_the_bound_of_a_release_makes_no_archive() {
    let script = read("deploy/archive");
    let most: u64 = script
        .lines()
        .find_map(|line| line.strip_prefix("most_bytes=")?.parse().ok())
        .unwrap();
    let target = tempfile::tempdir().unwrap();
    let directory = target.path().join("machine/release");
    fs::create_dir_all(&directory).unwrap();
    let program = fs::File::create(directory.join("mini-lb")).unwrap();
    program.set_len(most + 1).unwrap();

    let archive = Command::new("deploy/archive")
        .arg("machine")
        .env("CARGO_TARGET_DIR", target.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&archive.stderr);
    assert!(!archive.status.success());
    assert!(said.contains(&format!("has {} bytes", most + 1)), "{said}");
}

#[test]
fn the_program_of_a_release_is_built_with_a_profile() {
    let workflow = read(".github/workflows/release.yml");
    let build = workflow.find("run: deploy/pgo \"$TARGET\"").unwrap();
    let archive = workflow.find("run: deploy/archive \"$TARGET\"").unwrap();
    assert!(build < archive);
    assert!(!workflow.contains("run: cargo build"));
}

/// What a build reads is in the context of the image.
#[test]
fn the_context_of_the_image_has_what_cargo_needs() {
    let ignored = read("deploy/Dockerfile.dockerignore");
    let kept: BTreeSet<_> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    for path in &kept {
        assert!(Path::new(path).exists(), "{path}");
    }
    for path in [
        "Cargo.toml",
        "Cargo.lock",
        ".cargo",
        "build.rs",
        "src",
        "vendor",
        "tests",
        "benches",
        "examples",
    ] {
        assert!(kept.contains(path), "{path}");
    }
}

#[test]
fn the_health_check_of_the_image_is_a_command_of_the_program() {
    let text = read("deploy/Dockerfile");
    let (_, check) = text.split_once("CMD [").unwrap();
    let (check, _) = check.split_once(']').unwrap();
    let line: Vec<_> = check
        .split(", ")
        .map(|word| word.trim_matches('"'))
        .collect();
    assert!(matches!(cli::parse(line), Ok(Parsed::Health(_))), "{check}");
}

#[test]
fn the_notes_of_a_release_are_its_part_of_the_changelog() {
    let notes = Command::new("deploy/release-notes")
        .arg("9.9.9")
        .output()
        .unwrap();
    assert!(!notes.status.success());
    let said = String::from_utf8_lossy(&notes.stderr);
    assert!(said.contains("Cargo.toml has the version"), "{said}");
}

#[test]
fn the_tools_of_the_packages_take_them() {
    accepts(&["hadolint", "deploy/Dockerfile"]);
    accepts(&["helm", "lint", "--strict", CHART]);
    accepts(&["docker-compose", "-f", COMPOSE, "config", "-q"]);
    accepts(&["actionlint"]);
    accepts(&[
        "shellcheck",
        "deploy/archive",
        "deploy/pgo",
        "deploy/release-notes",
        "deploy/systemd/reload",
        "deploy/debian/build",
        "deploy/debian/check",
        "deploy/debian/check-unit",
        "deploy/debian/maintainer/postinst",
        "deploy/debian/maintainer/postrm",
    ]);
}
