//! `mini-lb completions`, `mini-lb man` and `--version`: what shells and `man` say of them, where these are installed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use mini_lb::cli;
use tempfile::TempDir;

fn mini_lb(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mini-lb"))
        .args(arguments)
        .output()
        .unwrap()
}

/// What the program writes to stdout when it succeeds.
fn printed(arguments: &[&str]) -> String {
    let output = mini_lb(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a tool on a file, which must say nothing. A tool that is not installed says nothing.
fn accepts(tool: &[&str], file: &Path) {
    match Command::new(tool[0]).args(&tool[1..]).arg(file).output() {
        Err(_) => eprintln!("{} was not run: it is not installed", tool[0]),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && said.is_empty(),
                "{tool:?}: {said}"
            );
        }
    }
}

#[test]
fn shells_take_their_completions() {
    let directory = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for word in ["prefill", "watch-config", "doctor", "health"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(
            !script.contains("tokenizer-path"),
            "{shell}: a flag without effect"
        );
        let file = directory.path().join(shell);
        fs::write(&file, script).unwrap();
        accepts(&[shell, "-n"], &file);
    }
}

/// The candidates of bash behind these words.
fn completed(words: &str) -> Option<String> {
    let script = format!(
        "source <({} completions bash)\nCOMP_WORDS=({words} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
         _mini__lb mini-lb '' \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; echo \"${{COMPREPLY[@]}}\"",
        env!("CARGO_BIN_EXE_mini-lb")
    );
    let output = Command::new("bash").args(["-c", &script]).output().ok()?;
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn bash_completes_commands_and_flags() {
    let Some(of_program) = completed("mini-lb") else {
        eprintln!("nothing was completed: there is no bash");
        return;
    };
    for word in ["--prefill", "--decode", "doctor", "health", "completions"] {
        assert!(
            of_program.split_whitespace().any(|found| found == word),
            "{of_program}"
        );
    }
    let of_command = completed("mini-lb health").unwrap();
    assert!(of_command.contains("--url"), "{of_command}");
}

/// Checks the pages of a command and of those below it.
fn check_pages(command: &clap::Command, words: &[&str], directory: &Path) {
    let name = [&["mini-lb"], words].concat().join("-");
    let file = directory.join(format!("{name}.1"));
    let page = fs::read_to_string(&file).unwrap();
    let shown = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set());
    for long in shown.filter_map(clap::Arg::get_long) {
        let flag = format!("\\-\\-{}", long.replace('-', "\\-"));
        assert!(page.contains(&flag), "{name}: {long}");
    }
    accepts(&["groff", "-man", "-ww", "-Tutf8", "-z"], &file);
    accepts(
        &["man", "--warnings=w", "--local-file", "-Tutf8", "-Z"],
        &file,
    );
    assert!(printed(&[&["man"], words].concat()) == page, "{name}");
    for below in command
        .get_subcommands()
        .filter(|below| below.get_name() != "help")
    {
        check_pages(below, &[words, &[below.get_name()]].concat(), directory);
    }
}

#[test]
fn every_page_is_good_roff_and_has_every_flag_of_the_help() {
    let directory = TempDir::new().unwrap();
    printed(&["man", "--out", directory.path().to_str().unwrap()]);
    let mut program = cli::command();
    program.build();
    check_pages(&program, &[], directory.path());
    let wrong = mini_lb(&["man", "none"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("there is no command none"));
}

#[test]
fn the_version_names_commit_target_and_features() {
    let version = printed(&["--version"]);
    let lines: Vec<_> = version.lines().collect();
    assert_eq!(lines.len(), 4, "{version}");
    assert_eq!(lines[0], concat!("mini-lb ", env!("CARGO_PKG_VERSION")));
    let begins = ["commit: ", "target: ", "features: "];
    for (line, begin) in lines[1..].iter().zip(begins) {
        assert!(
            line.starts_with(begin) && line.len() > begin.len(),
            "{line}"
        );
    }
    assert!(lines[3].contains("cli"), "{version}");
    assert_eq!(printed(&["-V"]).trim_end(), lines[0]);
}

#[test]
fn the_help_names_both_engines() {
    let help = printed(&["--help"]);
    assert!(
        help.starts_with("Prefill/decode load balancer for SGLang and vLLM"),
        "{help}"
    );
}
