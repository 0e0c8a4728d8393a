//! The package for Python: built, installed into a fresh virtual environment without a network, and used.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A command, without the settings of the developer.
fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("MINI_LB_") || name.starts_with("PIP_") || name.starts_with("PYTHON") {
            command.env_remove(&*name);
        }
    }
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The program without the names of its functions, which a debug build has many of; the program where there is no `strip`.
fn stripped(directory: &Path) -> String {
    let binary = env!("CARGO_BIN_EXE_mini-lb");
    let small = directory.join("mini-lb");
    let strip = Command::new("strip")
        .arg("-o")
        .arg(&small)
        .arg(binary)
        .status();
    match strip {
        Ok(status) if status.success() => small.display().to_string(),
        _ => binary.to_owned(),
    }
}

#[test]
fn the_wheel_installs_into_a_fresh_environment_and_works_there() {
    let directory = TempDir::new().unwrap();
    let environment = directory.path().join("environment");
    let made = command("python3")
        .args(["-m", "venv"])
        .arg(&environment)
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("the wheel was not built: there is no python3 with venv");
        return;
    }
    let python = environment.join("bin/python");
    let pip = ["-m", "pip", "--disable-pip-version-check", "--no-cache-dir"];
    succeeds(
        command(&python)
            .args(pip)
            .args(["wheel", "--no-index", "--wheel-dir"])
            .args([directory.path(), Path::new("./python")])
            .env("MINI_LB_BINARY", stripped(directory.path())),
    );
    let files = std::fs::read_dir(directory.path()).unwrap();
    let wheel = files
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .unwrap();
    let name = wheel.file_name().unwrap().to_str().unwrap();
    let begin = concat!("mini_lb-", env!("CARGO_PKG_VERSION"), "-py3-none-");
    assert!(name.starts_with(begin), "{name}");
    succeeds(
        command(&python)
            .args(pip)
            .args(["install", "--no-index"])
            .arg(&wheel),
    );
    let tests = ["-m", "unittest", "discover", "-s", "python/tests"];
    let output = succeeds(command(&python).args(tests));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Ran 7 tests"), "{said}");
}
