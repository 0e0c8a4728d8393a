//! README.md and docs/ can be followed: commands are understood, configurations load, links lead somewhere.

use std::fs;
use std::path::Path;
use std::process::Command as Program;

use mini_lb::cli::{self, Command};
use support::markdown::{blocks, documents, without_blocks};

const README_LINES: usize = 200;

#[test]
fn pictures_are_what_the_script_draws() {
    let check = Program::new("python3")
        .args(["docs/pictures/draw.py", "--check"])
        .output();
    let Ok(check) = check else {
        eprintln!("pictures were not drawn again: there is no python3");
        return;
    };
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stderr)
    );
}

/// The words of a command line, as a shell has them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars().chain([' ']) {
        match (letter, quote) {
            (letter, Some(open)) if letter == open => quote = None,
            (letter, Some(_)) => word.push(letter),
            ('\'' | '"', None) => quote = Some(letter),
            ('#', None) if word.is_empty() => break,
            (' ', None) if word.is_empty() => {}
            (' ', None) => words.push(std::mem::take(&mut word)),
            (letter, None) => word.push(letter),
        }
    }
    words
}

/// Fails when cargo does not have this target.
fn is_target(kind: &str, name: &str) {
    let folder = match kind {
        "--bench" => "benches",
        "--example" => "examples",
        _ => "tests",
    };
    let places = [
        format!("{folder}/{name}.rs"),
        format!("{folder}/{name}/main.rs"),
    ];
    assert!(
        places.iter().any(|place| Path::new(place).exists()),
        "{kind} {name}"
    );
}

#[test]
fn every_command_of_the_documents_is_understood() {
    let mut understood = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for block in blocks(&text, "sh") {
            for line in block.replace("\\\n", " ").lines() {
                let words = words(line);
                for pair in words
                    .windows(2)
                    .filter(|pair| ["--bench", "--test", "--example"].contains(&&*pair[0]))
                {
                    if words[0] == "cargo" {
                        is_target(&pair[0], &pair[1]);
                    }
                }
                let own = match words.first().map(String::as_str) {
                    Some("mini-lb") => &words[..],
                    Some("cargo") if words[1] == "run" && !words.contains(&"--example".into()) => {
                        let dashes = words.iter().position(|word| word == "--").unwrap();
                        &words[dashes..]
                    }
                    _ => continue,
                };
                if let Err(error) = cli::parse(own.iter().cloned()) {
                    panic!("{}: {line}\n{error}", path.display());
                }
                understood += 1;
            }
        }
    }
    assert!(understood > 10);
}

#[test]
fn every_configuration_of_the_documents_loads() {
    for path in documents() {
        for block in blocks(&fs::read_to_string(&path).unwrap(), "yaml") {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), block).unwrap();
            let line = ["mini-lb", "--conf", file.path().to_str().unwrap()];
            let Ok(Command::Serve(serve)) = cli::parse(line) else {
                panic!("{line:?}")
            };
            if let Err(error) = serve.sources.load(&|_: &str| None) {
                panic!("{}: {error}", path.display());
            }
        }
    }
}

#[test]
fn every_signal_that_a_shell_or_a_system_sends_has_a_row() {
    let text = fs::read_to_string("docs/configuration.md").unwrap();
    let (_, table) = text.split_once("### Signals").unwrap();
    let (table, _) = table.split_once("###").unwrap();
    let rows = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let named: Vec<_> = rows.flat_map(|signals| signals.split([',', ' '])).collect();
    for signal in [
        "SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGKILL",
    ] {
        assert!(named.contains(&signal), "{signal}");
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_leads_to_a_file_and_to_a_heading() {
    for path in documents() {
        let text = without_blocks(&fs::read_to_string(&path).unwrap());
        let links = text
            .split("](")
            .skip(1)
            .map(|rest| rest.split_once(')').unwrap().0);
        let sources = ["src=\"", "srcset=\"", "href=\""]
            .into_iter()
            .flat_map(|name| text.split(name).skip(1));
        let sources = sources.map(|rest| rest.split_once('"').unwrap().0);
        for link in links
            .chain(sources)
            .filter(|link| !link.starts_with("http"))
        {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !heading.is_empty() {
                let page = without_blocks(&fs::read_to_string(&target).unwrap());
                let mut headings = page.lines().filter(|line| line.starts_with('#'));
                let is_there =
                    headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading);
                assert!(is_there, "{}: {link}", path.display());
            }
        }
    }
}

#[test]
fn the_readme_is_short_and_names_the_compiler_that_is_needed() {
    let readme = fs::read_to_string("README.md").unwrap();
    let lines = readme.lines().count();
    assert!(lines <= README_LINES, "{lines} lines");
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let (_, version) = manifest.split_once("rust-version = \"").unwrap();
    let version = version.split_once('"').unwrap().0;
    assert!(readme.contains(&format!("Rust {version}")), "{version}");
}
