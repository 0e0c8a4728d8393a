//! What the crates below this one need on a machine, and that the crate that stands in for another does its work.

use std::collections::{HashMap, HashSet, VecDeque};
use std::process::Command;

use pingora::protocols::http::compression::{Algorithm, Encode};
use serde_json::{Value, json};

/// Crates whose presence means that a build runs a tool, or needs a library, that a machine with a Rust toolchain, a C
/// compiler and make does not have. Crates that build through one of them, such as `libz-ng-sys`, `boring-sys`,
/// `aws-lc-sys` and `tonic-prost-build`, are found with it.
const NEEDS: [(&str, &str); 8] = [
    ("cmake", "runs cmake"),
    ("clang-sys", "loads libclang, for bindgen to read C headers"),
    ("openssl-src", "configures OpenSSL with perl"),
    (
        "openssl-sys",
        "needs the headers of OpenSSL, or builds it with perl",
    ),
    ("prost-build", "runs protoc"),
    ("protoc", "runs protoc"),
    ("autotools", "runs autoreconf"),
    ("nasm-rs", "runs nasm"),
];

/// The crates with native code, and all that their build needs besides a Rust toolchain.
const NATIVE: [(&str, &str); 3] = [
    (
        "ring",
        "a C compiler; the package holds the assembler that perl makes from its sources",
    ),
    (
        "tikv-jemalloc-sys",
        "a C compiler and make; the package holds the script that autoconf makes",
    ),
    (
        "zstd-sys",
        "a C compiler; pkg-config runs only where ZSTD_SYS_USE_PKG_CONFIG is set",
    ),
];

/// The same of the crates that only the feature `kubernetes` has.
const NATIVE_OF_KUBERNETES: [(&str, &str); 3] = [
    (
        "k8s-openapi",
        "nothing; by `links` a build has one version of it",
    ),
    (
        "psm",
        "a C compiler; a few lines of assembler, for a parser that guards its stack",
    ),
    ("stacker", "a C compiler; only on Windows"),
];

/// A crate of the graph, by its identifier.
struct Package {
    name: String,
    /// The native library that it links.
    links: bool,
    dependencies: Vec<String>,
}

struct Graph {
    root: String,
    packages: HashMap<String, Package>,
}

impl Graph {
    /// The graph in the output of `cargo metadata`.
    fn read(metadata: &Value) -> Graph {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let items = |value: &Value| value.as_array().unwrap().clone();
        let mut dependencies: HashMap<String, Vec<String>> = HashMap::new();
        for node in items(&metadata["resolve"]["nodes"]) {
            let of = items(&node["deps"])
                .iter()
                .map(|dependency| text(&dependency["pkg"]))
                .collect();
            dependencies.insert(text(&node["id"]), of);
        }
        let packages = items(&metadata["packages"])
            .into_iter()
            .filter_map(|package| {
                let id = text(&package["id"]);
                // A package that no feature and no target of this build turns on has no node.
                let dependencies = dependencies.remove(&id)?;
                let links = !package["links"].is_null();
                Some((
                    id,
                    Package {
                        name: text(&package["name"]),
                        links,
                        dependencies,
                    },
                ))
            });
        Graph {
            packages: packages.collect(),
            root: text(&metadata["resolve"]["root"]),
        }
    }

    /// This crate's graph for the machine that runs the test: with the default features and these, and with the crates of
    /// build scripts and tests.
    fn of_this_crate(features: &str) -> Graph {
        let version = run(&["-vV"]);
        let host = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .unwrap();
        let metadata = run(&[
            "metadata",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            host,
            "--features",
            features,
        ]);
        Graph::read(&serde_json::from_str(&metadata).unwrap())
    }

    /// The crates that ask more of a machine than it has to have, each with a shortest way to it.
    fn refused(&self) -> Vec<String> {
        let mut refused = Vec::new();
        let mut seen = HashSet::from([self.root.as_str()]);
        let mut next = VecDeque::from([(self.root.as_str(), String::new())]);
        while let Some((id, above)) = next.pop_front() {
            let package = &self.packages[id];
            let way = format!("{above}{}", package.name);
            let listed =
                |list: &'static [(&str, &str)]| list.iter().find(|(name, _)| *name == package.name);
            if let Some((_, need)) = listed(&NEEDS) {
                refused.push(format!("{way}: {need}"));
            } else if package.builds_native_code(self)
                && listed(&NATIVE).or(listed(&NATIVE_OF_KUBERNETES)).is_none()
            {
                refused.push(format!("{way}: is native code that is not in the list"));
            }
            for dependency in &package.dependencies {
                if seen.insert(dependency) {
                    next.push_back((dependency, format!("{way} > ")));
                }
            }
        }
        refused
    }
}

impl Package {
    fn builds_native_code(&self, graph: &Graph) -> bool {
        self.links
            || self
                .dependencies
                .iter()
                .any(|id| graph.packages[id].name == "cc")
    }
}

/// The crates that the library is built with, without its default features.
fn embedded() -> HashSet<String> {
    let tree = run(&[
        "tree",
        "--locked",
        "--no-default-features",
        "--edges=normal,build",
        "--prefix=none",
        "--format={p}",
    ]);
    let name = |line: &str| line.split(' ').next().unwrap().to_owned();
    tree.lines().map(name).collect()
}

/// What Cargo writes to stdout, in the folder of this crate.
fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_build_needs_a_rust_toolchain_a_c_compiler_and_make() {
    let graph = Graph::of_this_crate("default");
    let refused = graph.refused();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    let names: HashSet<&str> = graph
        .packages
        .values()
        .map(|package| package.name.as_str())
        .collect();
    assert!(
        names.contains("pingora-core") && names.contains("tempfile"),
        "{names:?}"
    );
    for (name, _) in NATIVE {
        assert!(
            names.contains(name),
            "{name} is in the list of native code and not in the graph"
        );
    }
}

#[test]
fn kubernetes_needs_no_more_than_that() {
    let graph = Graph::of_this_crate("kubernetes");
    let refused = graph.refused();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    let has = |name: &str| graph.packages.values().any(|package| package.name == name);
    for (name, _) in NATIVE_OF_KUBERNETES {
        assert!(has(name), "{name} is in the list and not in the graph");
    }
    assert!(has("kube"));
}

/// Pingora has a command line too, so that clap stays.
#[test]
fn the_library_alone_has_neither_the_command_line_nor_the_simulator_nor_the_load_generator() {
    let crates = embedded();
    assert!(crates.contains("pingora-core"), "{crates:?}");
    for name in [
        "clap_complete",
        "clap_mangen",
        "env_logger",
        "hdrhistogram",
        "hickory-resolver",
        "http-body-util",
        "hyper",
        "hyper-util",
        "indicatif",
        "tikv-jemallocator",
    ] {
        assert!(!crates.contains(name), "{name}");
    }
}

/// A graph as `cargo metadata` writes it: each crate with the native library that it links, and its dependencies.
fn made(packages: &[(&str, Option<&str>, &[&str])]) -> Graph {
    let dependencies = |names: &[&str]| {
        names
            .iter()
            .map(|name| json!({ "pkg": name }))
            .collect::<Vec<_>>()
    };
    let nodes = packages
        .iter()
        .map(|(name, _, below)| json!({ "id": name, "deps": dependencies(below) }));
    let packages = packages
        .iter()
        .map(|(name, links, _)| json!({ "id": name, "name": name, "links": links }));
    Graph::read(&json!({
        "packages": packages.collect::<Vec<_>>(),
        "resolve": { "root": "mini-lb", "nodes": nodes.collect::<Vec<_>>() },
    }))
}

#[test]
fn a_crate_that_runs_a_tool_is_refused_with_the_way_to_it() {
    let graph = made(&[
        ("mini-lb", None, &["bytes", "pingora-core"]),
        ("pingora-core", None, &["bytes", "flate2"]),
        ("flate2", None, &["libz-ng-sys"]),
        ("libz-ng-sys", Some("z-ng"), &["cmake"]),
        ("cmake", None, &["cc"]),
        ("bytes", None, &[]),
        ("cc", None, &[]),
    ]);
    assert_eq!(
        graph.refused(),
        [
            "mini-lb > pingora-core > flate2 > libz-ng-sys: is native code that is not in the list",
            "mini-lb > pingora-core > flate2 > libz-ng-sys > cmake: runs cmake",
        ]
    );
}

#[test]
fn every_crate_of_the_table_is_refused() {
    for (name, need) in NEEDS {
        let graph = made(&[("mini-lb", None, &[name]), (name, None, &[])]);
        assert_eq!(graph.refused(), [format!("mini-lb > {name}: {need}")]);
    }
}

#[test]
fn native_code_is_refused_unless_the_list_has_it() {
    let below = |name| {
        made(&[
            ("mini-lb", None, &[name]),
            (name, None, &["cc"]),
            ("cc", None, &[]),
        ])
    };
    assert_eq!(below("zstd-sys").refused().len(), 0);
    assert_eq!(below("libz-sys").refused().len(), 1);
}

/// Both directions and their dictionaries are 1 MB of a program that has them.
#[test]
fn brotli_is_left_out_and_an_error_where_it_is_asked_for() {
    let graph = Graph::of_this_crate("default");
    let has = |name: &str| graph.packages.values().any(|package| package.name == name);
    assert!(has("brotli") && !has("brotli-decompressor"));
    let decompressor = Algorithm::Brotli.decompressor(true);
    let compressor = Algorithm::Brotli.compressor(5);
    for algorithm in [decompressor, compressor] {
        let mut algorithm = algorithm.expect("Pingora knows brotli");
        assert!(algorithm.encode(b"a", true).is_err());
        assert!(algorithm.encode(b"", true).is_err());
    }
}

/// Three events, as GNU gzip 1.12 writes them with `gzip -n -9`.
const EVENTS: &[u8] =
    b"data: {\"text\":\" the\"}\n\ndata: {\"text\":\" the\"}\n\ndata: {\"text\":\" the\"}\n\n";
const EVENTS_GZIP: &[u8] = b"\
    \x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x4b\x49\x2c\x49\xb4\x52\xa8\x56\x2a\x49\xad\x28\x51\xb2\x52\x52\
    \x28\xc9\x48\x55\xaa\xe5\xe2\x4a\x21\x49\x18\x00\x6d\xed\x0f\x8c\x45\x00\x00\x00";

/// Bytes that do not repeat, so that a compressor has to give out about as many as it takes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

fn through(algorithm: &mut dyn Encode, pieces: &[&[u8]]) -> Vec<u8> {
    let mut whole = Vec::new();
    for (nth, piece) in pieces.iter().enumerate() {
        whole.extend_from_slice(
            &algorithm
                .encode(piece, nth + 1 == pieces.len())
                .expect("no error of the algorithm"),
        );
    }
    whole
}

#[test]
fn pingora_reads_what_gzip_wrote() {
    let mut decompressor = Algorithm::Gzip
        .decompressor(true)
        .expect("Pingora knows gzip");
    assert_eq!(through(&mut *decompressor, &[EVENTS_GZIP]), EVENTS);

    let pieces: Vec<&[u8]> = EVENTS_GZIP.chunks(1).collect();
    let mut decompressor = Algorithm::Gzip
        .decompressor(true)
        .expect("Pingora knows gzip");
    assert_eq!(through(&mut *decompressor, &pieces), EVENTS, "byte by byte");
}

#[test]
fn what_pingora_compresses_it_reads_again() {
    for body in [Vec::new(), EVENTS.repeat(10_000), noise(1_000_000)] {
        for level in [1, 6, 9] {
            let mut compressor = Algorithm::Gzip
                .compressor(level)
                .expect("Pingora knows gzip");
            let pieces: Vec<&[u8]> = if body.is_empty() {
                vec![&[]]
            } else {
                body.chunks(30_011).collect()
            };
            let packed = through(&mut *compressor, &pieces);
            assert_eq!(
                packed[..3],
                [0x1f, 0x8b, 8],
                "the magic bytes of gzip, and deflate"
            );
            assert_eq!(
                packed[packed.len() - 4..],
                (body.len() as u32).to_le_bytes(),
                "the length in the trailer"
            );

            let mut decompressor = Algorithm::Gzip
                .decompressor(true)
                .expect("Pingora knows gzip");
            assert!(
                through(
                    &mut *decompressor,
                    &packed.chunks(7_919).collect::<Vec<_>>()
                ) == body
            );
        }
    }
}

#[test]
fn a_gzip_body_that_is_cut_or_changed_is_an_error() {
    let end = |bytes: &[u8]| {
        Algorithm::Gzip
            .decompressor(true)
            .expect("Pingora knows gzip")
            .encode(bytes, true)
    };
    assert!(end(EVENTS_GZIP).is_ok());
    assert!(
        end(&EVENTS_GZIP[..EVENTS_GZIP.len() - 1]).is_err(),
        "without the last byte"
    );
    let mut changed = EVENTS_GZIP.to_vec();
    let checksum = changed.len() - 8;
    changed[checksum] ^= 1;
    assert!(end(&changed).is_err(), "with another checksum");
}
