//! The door: arguments become a command. No decisions are made here, and only here the process ends.

use std::process::ExitCode;

use mini_lb::cli::{self, Action, Command, Serve};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Serve(serve)) => run(*serve),
        Err(usage) => usage.exit(),
    }
}

fn run(serve: Serve) -> ExitCode {
    let environment = |name: &str| std::env::var_os(name);
    let (config, effective) = match serve.sources.load(&environment) {
        Ok(loaded) => loaded,
        Err(problems) => return fail(problems),
    };
    match serve.action {
        Action::Test => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            println!("{}", config.summary());
            ExitCode::SUCCESS
        }
        Action::PrintConfig => {
            print!("{effective}");
            ExitCode::SUCCESS
        }
        Action::Run => {
            log_to_stderr(&config.log_filter);
            match mini_lb::run(config, serve.opt) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(error),
            }
        }
    }
}

/// Pingora's own lines are for its developers unless somebody asks for more.
fn log_to_stderr(filter: &str) {
    let mut logger = env_logger::Builder::new();
    if filter == "info" {
        logger.filter_module("pingora", log::LevelFilter::Warn);
    }
    logger.parse_filters(filter).init();
}

fn fail(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("mini-lb: {error}");
    ExitCode::FAILURE
}
