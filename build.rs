//! Tells the program its commit and its target, for `--version`.
//!
//! The commit is that of `MINI_LB_COMMIT`, which a packager sets, or of a package of crates.io, or of an archive that git made
//! (`deploy/commit.txt`), or of `.git`, which is read without git. Otherwise it is unknown.
//!
//! A debug build does not have it: each commit would compile the crate anew.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The file in which `git archive` writes the commit (`export-subst` in `.gitattributes`).
const ARCHIVED: &str = "deploy/commit.txt";

/// The file that Cargo adds to a package.
const PACKAGED: &str = ".cargo_vcs_info.json";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MINI_LB_COMMIT");
    let given = env::var("MINI_LB_COMMIT")
        .ok()
        .filter(|given| !given.is_empty());
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match given {
        Some(given) => given,
        None if is_release => {
            let found = Found::below(Path::new("."));
            for file in found.files {
                println!("cargo::rerun-if-changed={}", file.display());
            }
            found.commit.unwrap_or_else(|| "unknown".to_owned())
        }
        None => "unknown (a debug build)".to_owned(),
    };
    println!("cargo::rustc-env=MINI_LB_BUILD_COMMIT={commit}");
    let target = env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=MINI_LB_BUILD_TARGET={target}");
}

/// What a directory says of its commit.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) commit: Option<String>,
    /// The files that were read: another commit changes one of them.
    pub(crate) files: Vec<PathBuf>,
}

impl Found {
    pub(crate) fn below(root: &Path) -> Found {
        let mut found = Found::default();
        found.commit = found
            .packaged(root)
            .or_else(|| found.archived(root))
            .or_else(|| found.checked_out(root));
        found
    }

    fn packaged(&mut self, root: &Path) -> Option<String> {
        let text = self.read(&root.join(PACKAGED))?;
        let (_, rest) = text.split_once("\"sha1\"")?;
        hash(rest.split('"').nth(1)?)
    }

    fn archived(&mut self, root: &Path) -> Option<String> {
        hash(&self.read(&root.join(ARCHIVED))?)
    }

    fn checked_out(&mut self, root: &Path) -> Option<String> {
        let git = root.join(".git");
        // In a work tree of its own `.git` is a file that names the directory.
        let git = match self.read(&git) {
            Some(text) => root.join(text.strip_prefix("gitdir:")?.trim()),
            None => git,
        };
        let head = self.read(&git.join("HEAD"))?;
        let Some(name) = head.strip_prefix("ref:") else {
            return hash(&head);
        };
        let name = name.trim();
        let common = match self.read(&git.join("commondir")) {
            Some(text) => git.join(text.trim()),
            None => git,
        };
        if let Some(text) = self.read(&common.join(name)) {
            return hash(&text);
        }
        let packed = self.read(&common.join("packed-refs"))?;
        let line = packed
            .lines()
            .find(|line| line.ends_with(&format!(" {name}")))?;
        hash(line.split(' ').next()?)
    }

    fn read(&mut self, file: &Path) -> Option<String> {
        let text = fs::read_to_string(file).ok()?;
        self.files.push(file.to_owned());
        Some(text)
    }
}

/// The first digits of a hash.
fn hash(text: &str) -> Option<String> {
    let text = text.trim();
    let is_hash = text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| text[..12].to_owned())
}
