//! The entry point: arguments become a command, its result the exit code. Nothing is decided here.

#[cfg(feature = "sim")]
mod demo;
mod log_json;
mod logger;
mod open_files;
mod stderr;

use std::fmt::Display;
use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;

use log::Level;
#[cfg(feature = "bench")]
use mini_lb::bench::cli::run_bench;
use mini_lb::cli::{self, Action, Command, Doctor, Health, Serve};
use mini_lb::config::Reloader;
use mini_lb::doctor::examine;
#[cfg(feature = "sim")]
use mini_lb::sim::cli::run_sim;
use mini_lb::{health, rollout};

/// Returns memory to the system after a wave of streams, which glibc does not: figures in `Cargo.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    open_files::raise();
    match cli::parse(std::env::args_os()) {
        Ok(Command::Serve(serve)) => run(*serve),
        Ok(Command::Doctor(doctor)) => diagnose(*doctor),
        Ok(Command::Health(health)) => block_on(ask_health(*health)),
        Ok(Command::Completions(args)) => say(cli::completions(&args)),
        Ok(Command::Man(args)) => match cli::man(&args) {
            Ok(page) => say(page),
            Err(error) => fail(error),
        },
        Ok(Command::Rollout(args)) => block_on(rollout::run(*args, |line| {
            say(format_args!("{line}\n"));
        })),
        #[cfg(feature = "sim")]
        Ok(Command::Demo(demo)) => block_on(demo::run(*demo)),
        #[cfg(feature = "sim")]
        Ok(Command::Sim(args)) => {
            logger::start("warn", Form::Text, true);
            block_on(run_sim(*args))
        }
        #[cfg(feature = "bench")]
        Ok(Command::Bench(args)) => match run_bench(*args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error),
        },
        Err(usage) => usage.exit(),
    }
}

/// What a user may want who has typed the name of the program and nothing else.
#[cfg(feature = "sim")]
const FIRST_STEPS: &str =
    "Try `mini-lb demo`, which needs no GPU and no SGLang, or see `mini-lb --help`";
#[cfg(not(feature = "sim"))]
const FIRST_STEPS: &str = "See `mini-lb --help`";

fn run(serve: Serve) -> ExitCode {
    let environment = |name: &str| std::env::var_os(name);
    let sources = serve.sources.clone();
    let (config, effective) = match serve.sources.load(&environment) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let code = fail(problems);
            if std::env::args_os().len() == 1 {
                complain(FIRST_STEPS);
            }
            return code;
        }
    };
    match serve.action {
        Action::Test => {
            if let Err(problems) = config.check_machine() {
                return fail(problems);
            }
            for warning in &config.warnings {
                complain(format_args!("warning: {warning}"));
            }
            say(format_args!("{}\n", config.summary()))
        }
        Action::PrintConfig => say(effective),
        Action::Run => {
            if let Err(problems) = config.check_machine() {
                return fail(problems);
            }
            let forks = serve.opt.daemon || config.server.daemon;
            let form = Form::of(config.log_json);
            logger::start(&config.log_filter, form, forks);
            let reloader = Reloader::new(sources, &config, effective, forks, logger::set_filter);
            let ended = mini_lb::run(config, serve.opt, reloader);
            stderr::flush();
            match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail_as(form, error),
            }
        }
    }
}

/// A command line or a configuration that cannot be used, as `clap` has it.
const USAGE: u8 = 2;

/// Examines the workers. Nothing is logged: the report says it.
fn diagnose(doctor: Doctor) -> ExitCode {
    let environment = |name: &str| std::env::var_os(name);
    let config = match doctor.sources.load(&environment) {
        Ok((config, _)) => config,
        Err(problems) => {
            fail(problems);
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    let examined = runtime.block_on(examine(&config, &doctor.args));
    // A name that is still looked up must not hold up the end.
    runtime.shutdown_background();
    match examined {
        Err(error) => fail(error),
        Ok(examination) => match (say(examination.output()), examination.is_good()) {
            (said, true) => said,
            (_, false) => ExitCode::FAILURE,
        },
    }
}

async fn ask_health(health: Health) -> Result<(), String> {
    let environment = |name: &str| std::env::var_os(name);
    let state = health::run(&health.args, health.sources, &environment).await?;
    say(format_args!("{state}\n"));
    Ok(())
}

/// Runs a command that needs only a runtime.
fn block_on<E: Display>(command: impl Future<Output = Result<(), E>>) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error),
    };
    let ended = runtime.block_on(command);
    stderr::flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error),
    }
}

/// The form of the lines on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

impl Form {
    fn of(json: bool) -> Self {
        match json {
            true => Self::Json,
            false => Self::Text,
        }
    }

    /// A line that is not the log's.
    fn line(self, level: Level, message: impl Display) -> String {
        match self {
            Self::Text => message.to_string(),
            Self::Json => log_json::line(level, message),
        }
    }
}

fn fail(error: impl Display) -> ExitCode {
    fail_as(Form::Text, error)
}

fn fail_as(form: Form, error: impl Display) -> ExitCode {
    complain(form.line(Level::Error, format_args!("mini-lb: {error}")));
    ExitCode::FAILURE
}

/// Writes a line to stderr. `eprintln!` would panic when it is full or closed.
fn complain(message: impl Display) {
    let _ = writeln!(io::stderr(), "{message}"); // there is no other place to report it
}

/// Writes the output of a command to stdout. A reader that closes the pipe, such as `head`, is no failure.
fn say(output: impl Display) -> ExitCode {
    let mut stdout = io::stdout();
    let written = write!(stdout, "{output}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(format_args!("cannot write to stdout: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}
