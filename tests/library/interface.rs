//! The pages of the library: they begin with what a program does, and show the API and nothing else.

use std::fs;

/// The modules that the pages show.
const SHOWN: [&str; 2] = ["config", "sim"];

#[test]
fn the_first_page_begins_with_an_example_that_stops_the_balancer() {
    let source = fs::read_to_string("src/lib.rs").unwrap();
    let page = source.lines().map_while(|line| line.strip_prefix("//!"));
    let page: Vec<_> = page.map(str::trim).collect();
    assert_eq!((page[1], page[2]), ("", "```no_run"));
    let end = page.iter().skip(3).position(|line| *line == "```").unwrap() + 3;
    let example = page[3..end].join("\n");
    for part in [
        "MiniLbConfig::new",
        "MiniLoadBalancer::new",
        "balancer.handle()",
        "handle.stop()",
    ] {
        assert!(example.contains(part), "{part}");
    }
    let rest = page[end..].join("\n");
    for part in ["**Signals.**", "**The log.**", "# What is API"] {
        assert!(rest.contains(part), "{part}");
    }
}

#[test]
fn what_is_no_api_is_not_on_the_pages() {
    let source = fs::read_to_string("src/lib.rs").unwrap();
    let lines: Vec<_> = source.lines().collect();
    let mut shown = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let module = line
            .strip_prefix("pub mod ")
            .and_then(|rest| rest.split([';', ' ']).next());
        let hidden = lines[..index]
            .iter()
            .rev()
            .take_while(|above| !above.is_empty() && !above.starts_with("pub mod"))
            .any(|above| *above == "#[doc(hidden)]");
        shown.extend(module.filter(|_| !hidden));
    }
    assert_eq!(shown, SHOWN);
}

#[test]
fn the_page_of_the_library_names_the_compiler_that_is_needed() {
    let page = fs::read_to_string("docs/library.md").unwrap();
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let (_, version) = manifest.split_once("rust-version = \"").unwrap();
    let version = version.split_once('"').unwrap().0;
    assert!(page.contains(&format!("Rust {version}")), "{version}");
}
