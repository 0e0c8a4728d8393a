//! The commit that `--version` shows, wherever the sources come from.

use std::fs;
use std::path::Path;

#[allow(dead_code, reason = "the entry point of the build script")]
#[path = "../../build.rs"]
mod build;

const COMMIT: &str = "6a76634b2f7d0e5e8d9f1a2b3c4d5e6f70819203";

/// The commit of a directory with these files.
fn commit_of(files: &[(&str, &str)]) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), files);
    build::Found::below(directory.path()).commit
}

fn write(directory: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn the_commit_is_found_without_git() {
    let line = format!("{COMMIT}\n");
    let packed = format!("# pack-refs with: peeled\n{COMMIT} refs/heads/main\n");
    let package = format!("{{\"git\": {{\"sha1\": \"{COMMIT}\"}}}}");
    let branch = ".git/refs/heads/main";
    let cases: [&[(&str, &str)]; 6] = [
        &[(".git/HEAD", "ref: refs/heads/main\n"), (branch, &line)],
        &[
            (".git/HEAD", "ref: refs/heads/main\n"),
            (".git/packed-refs", &packed),
        ],
        &[(".git/HEAD", &line)],
        &[
            (".git", "gitdir: elsewhere/worktrees/a\n"),
            ("elsewhere/worktrees/a/HEAD", "ref: refs/heads/a\n"),
            ("elsewhere/worktrees/a/commondir", "../..\n"),
            ("elsewhere/refs/heads/a", &line),
        ],
        &[(".cargo_vcs_info.json", &package)],
        &[("deploy/commit.txt", &line)],
    ];
    for files in cases {
        assert_eq!(
            commit_of(files).as_deref(),
            Some(&COMMIT[..12]),
            "{files:?}"
        );
    }
}

#[test]
fn sources_that_do_not_say_their_commit_have_none() {
    let cases: [&[(&str, &str)]; 4] = [
        &[],
        &[("deploy/commit.txt", "$Format:%H$\n")],
        &[(".git/HEAD", "ref: refs/heads/none\n")],
        &[(".cargo_vcs_info.json", "{}")],
    ];
    for files in cases {
        assert_eq!(commit_of(files), None, "{files:?}");
    }
}

/// So that it is built anew at each commit, and not without one.
#[test]
fn the_files_that_a_commit_changes_are_watched() {
    let directory = tempfile::tempdir().unwrap();
    let line = format!("{COMMIT}\n");
    let files = [
        (".git/HEAD", "ref: refs/heads/main\n"),
        (".git/refs/heads/main", &line),
    ];
    write(directory.path(), &files);
    let watched = build::Found::below(directory.path()).files;
    for (name, _) in files {
        assert!(
            watched.contains(&directory.path().join(name)),
            "{watched:?}"
        );
    }
}
