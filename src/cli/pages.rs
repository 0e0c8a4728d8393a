//! `mini-lb completions` and `mini-lb man`: the command line for shells and for `man`, from the table that `--help` shows.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Foreign, assembled};

/// Arguments of `mini-lb completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// Arguments of `mini-lb man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// The command, such as `doctor` or `sim prefill`; without it the page of the program.
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write the pages of the program and of all its commands into this directory.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "command")]
    out: Option<PathBuf>,
}

/// The script for a shell.
pub fn completions(args: &CompletionsArgs) -> String {
    let shell = match args.shell.as_str() {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut script = Vec::new();
    let mut command = assembled(Foreign::LeftOut);
    clap_complete::generate(shell, &mut command, "mini-lb", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        // A function of the script is named in two ways where the program's name has a hyphen.
        // Source: clap_complete 4.6.12, `aot/shells/bash.rs` (`fn_name`, `subcommand_details`).
        Shell::Bash => script.replace("mini__subcmd__lb", "mini__lb"),
        _ => script,
    }
}

/// The manual page, for stdout; empty where pages were written to a directory.
///
/// # Errors
/// The command does not exist, or a page cannot be written.
pub fn man(args: &ManArgs) -> io::Result<String> {
    // Its own page says what the help of a command says.
    let mut program = assembled(Foreign::LeftOut).disable_help_subcommand(true);
    program.build();
    if let Some(directory) = &args.out {
        write_pages(&program, directory)?;
        return Ok(String::new());
    }
    let mut command = &program;
    for name in &args.command {
        command = command.find_subcommand(name).ok_or_else(|| {
            let names: Vec<_> = command
                .get_subcommands()
                .map(clap::Command::get_name)
                .collect();
            let names = names.join(", ");
            io::Error::other(format!(
                "there is no command {name}: expected one of {names}"
            ))
        })?;
    }
    let mut text = Vec::new();
    page_of(command).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The page of a command, and those of the commands below it.
fn write_pages(command: &clap::Command, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands() {
        write_pages(below, directory)?;
    }
    page_of(command).generate_to(directory).map(drop)
}

fn page_of(command: &clap::Command) -> Man {
    // `--version` has several lines, which are no part of a title.
    let short = command.clone().long_version(env!("CARGO_PKG_VERSION"));
    Man::new(short)
        .source(concat!("mini-lb ", env!("CARGO_PKG_VERSION")))
        .manual("mini-lb")
}
