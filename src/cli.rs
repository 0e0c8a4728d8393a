//! The command line, as `clap` parses it.
//!
//! A command line of `sglang_router.launch_router --pd-disaggregation --mini-lb` works unchanged, and so do Pingora's
//! flags. The options are built from the table in `config/settings.rs`; `config` checks the values.
//!
//! Source: sglang, sgl-model-gateway/bindings/python/src/sglang_router/router_args.py;
//! pingora-core 0.9.1, src/server/configuration/mod.rs `Opt`.

#[cfg(feature = "sim")]
mod demo;
mod examine;
mod pages;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, FromArgMatches, Subcommand, ValueHint};
use pingora::server::configuration::Opt;

#[cfg(feature = "bench")]
use crate::bench::cli::BenchArgs;
use crate::config::foreign::{IGNORED, IMPLIED, Takes, VLLM};
use crate::config::kind::Kind;
use crate::config::settings::{CONF_VARIABLE, GROUPS, Setting, settings};
use crate::config::{Draft, Given, Place, Problem, Sources, WorkerDraft};
use crate::rollout::RolloutArgs;
#[cfg(feature = "sim")]
use crate::sim::cli::SimArgs;
#[cfg(feature = "sim")]
use demo::{DEMO, demo_command};
use examine::{DOCTOR, HEALTH, doctor_command, health_command};

#[cfg(feature = "sim")]
pub use demo::Demo;
pub use examine::{Doctor, Health};
pub use pages::{CompletionsArgs, ManArgs, completions, man};

/// A command of the program with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the load balancer; the command line without a subcommand.
    #[command(skip)]
    Serve(Box<Serve>),
    /// Examine the workers before the first request.
    #[command(skip)]
    Doctor(Box<Doctor>),
    /// Ask a running balancer whether it is ready.
    #[command(skip)]
    Health(Box<Health>),
    /// Run a command for each worker of a running balancer, drained before and probed after.
    Rollout(Box<RolloutArgs>),
    /// Start simulated workers and a load balancer in front of them.
    #[cfg(feature = "sim")]
    #[command(skip)]
    Demo(Box<Demo>),
    /// Start one or more simulated SGLang or vLLM workers.
    #[cfg(feature = "sim")]
    Sim(Box<SimArgs>),
    /// Measure the latency and throughput of a server under load.
    #[cfg(feature = "bench")]
    Bench(Box<BenchArgs>),
    /// Print the completions of a shell.
    Completions(CompletionsArgs),
    /// Print the manual page of the program or of a command.
    Man(ManArgs),
}

/// The command line of the load balancer.
#[derive(Debug)]
pub struct Serve {
    /// How the configuration is used.
    pub action: Action,
    /// Pingora's flags, for Pingora.
    pub opt: Opt,
    /// The flags that are part of the configuration.
    pub sources: Sources,
}

/// The use of a configuration that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Serve.
    Run,
    /// `--test`: report its problems.
    Test,
    /// `--print-config`: print it.
    PrintConfig,
}

/// Whether the flags of sglang_router that have no effect are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreign {
    /// As a command line is parsed.
    Taken,
    /// As it is documented and completed. Hidden flags are left out too.
    LeftOut,
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// `clap`'s: a mistake (exit code 2), or the text of `--help` and `--version` (0).
pub fn parse<I>(arguments: I) -> Result<Command, clap::Error>
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let matches = command().try_get_matches_from(arguments)?;
    match matches.subcommand() {
        Some((DOCTOR, matches)) => Ok(Command::Doctor(Box::new(Doctor::from_matches(matches)?))),
        Some((HEALTH, matches)) => Ok(Command::Health(Box::new(Health::from_matches(matches)?))),
        #[cfg(feature = "sim")]
        Some((DEMO, matches)) => Ok(Command::Demo(Box::new(Demo::from_matches(matches)?))),
        Some(_) => Command::from_arg_matches(&matches),
        None => Ok(Command::Serve(Box::new(Serve::from_matches(&matches)))),
    }
}

const ABOUT: &str = "Prefill/decode load balancer for SGLang and vLLM";

/// The whole command line, as `clap` sees it.
pub fn command() -> clap::Command {
    assembled(Foreign::Taken)
}

fn assembled(foreign: Foreign) -> clap::Command {
    let command = clap::Command::new("mini-lb")
        .version(env!("CARGO_PKG_VERSION"))
        .long_version(version::long())
        .override_usage(
            "mini-lb --prefill <URL> [BOOTSTRAP] --decode <URL> [OPTIONS]\n       mini-lb --conf <FILE> [OPTIONS]",
        )
        .after_help(
            "A flag overrides its environment variable, which overrides the configuration file, which overrides\n\
             the default. All other flags of sglang_router.launch_router (histories, tokenizers and so on) are\n\
             accepted with a warning and have no effect.",
        )
        .args_conflicts_with_subcommands(true)
        .args(setting_args())
        .args(process_args())
        .args(foreign_args(foreign))
        .subcommand(doctor_command(foreign))
        .subcommand(health_command(foreign));
    #[cfg(feature = "sim")]
    let command = command.subcommand(demo_command());
    // Last, because the derived code sets `about` to the docs of the enum.
    Command::augment_subcommands(command).about(ABOUT)
}

/// The settings, under their headings.
fn setting_args() -> impl Iterator<Item = Arg> {
    GROUPS.iter().flat_map(|(heading, settings)| {
        let args = settings.iter().map(setting_arg);
        args.map(|arg| arg.help_heading(*heading))
    })
}

/// The flags of sglang_router that have no effect.
fn foreign_args(foreign: Foreign) -> impl Iterator<Item = Arg> {
    let implied = IMPLIED.into_iter().chain([VLLM]).map(|name| {
        let arg = hidden(name).action(ArgAction::SetTrue);
        arg.overrides_with(name)
    });
    let ignored = IGNORED
        .iter()
        .map(|(name, takes)| ignored_arg(name, *takes));
    let all = implied.chain(ignored);
    all.filter(move |_| foreign == Foreign::Taken)
}

impl Serve {
    fn from_matches(matches: &ArgMatches) -> Serve {
        let opt = Opt {
            upgrade: matches.get_flag(UPGRADE),
            daemon: matches.get_flag(DAEMON),
            nocapture: false,
            test: matches.get_flag(TEST),
            conf: matches.get_one::<String>(CONF).cloned(),
        };
        let action = match (opt.test, matches.get_flag(PRINT_CONFIG)) {
            (true, _) => Action::Test,
            (false, true) => Action::PrintConfig,
            (false, false) => Action::Run,
        };
        let mut problems = Vec::new();
        let mut flags = flags(matches, settings(), &mut problems);
        if opt.daemon {
            let given = Given {
                value: true.into(),
                place: flag_place(DAEMON),
            };
            flags.server.insert("daemon".to_owned(), given);
        }
        if matches.get_flag(VLLM) {
            let given = Given {
                value: "vllm".to_owned(),
                place: flag_place(VLLM),
            };
            flags.scalars.entry("engine").or_insert(given);
        }
        let path = opt.conf.as_ref().map(PathBuf::from);
        let conf = path.map(|value| Given {
            value,
            place: flag_place(CONF),
        });
        Serve {
            action,
            opt,
            sources: Sources {
                flags,
                conf,
                problems,
                warnings: warnings(matches),
                ..Sources::default()
            },
        }
    }
}

const CONF: &str = "conf";
const TEST: &str = "test";
const DAEMON: &str = "daemon";
const UPGRADE: &str = "upgrade";
const PRINT_CONFIG: &str = "print-config";

fn process_args() -> [Arg; 5] {
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .help(help)
            .help_heading("Process")
            .action(ArgAction::SetTrue)
    };
    [
        Arg::new(CONF)
            .long(CONF)
            .short('c')
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help_heading("Process")
            .help(format!("Configuration file (YAML) [env: {CONF_VARIABLE}]")),
        switch(
            TEST,
            "Check the configuration, print all problems, and exit",
        )
        .short('t'),
        switch(
            PRINT_CONFIG,
            "Print the effective configuration and where each value comes from, and exit",
        ),
        switch(DAEMON, "Run in the background").short('d'),
        switch(
            UPGRADE,
            "Take over the listening sockets of a running process that gets SIGQUIT",
        )
        .short('u'),
    ]
}

fn setting_arg(setting: &Setting) -> Arg {
    let mut notes = format!("[env: {}]", setting.variable());
    if let Some(default) = setting.default {
        notes = format!("[default: {default}] {notes}");
    }
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_names(setting.value_names)
        .help(format!("{} {notes}", setting.help));
    let arg = match setting.kind {
        Kind::Path | Kind::Paths => arg.value_hint(ValueHint::FilePath),
        _ => arg,
    };
    match setting.kind {
        Kind::Switch => arg.action(ArgAction::SetTrue).overrides_with(setting.key),
        kind if kind.is_list() => arg.num_args(0..).action(ArgAction::Append),
        // Any number, because clap would take a surplus value for a subcommand; `WorkerDraft` reports it.
        Kind::Workers(_) => arg.num_args(1..).action(ArgAction::Append),
        // The last one wins, as with argparse.
        _ => arg.overrides_with(setting.key).allow_negative_numbers(true),
    }
}

fn ignored_arg(name: &'static str, takes: Takes) -> Arg {
    // So that -1 is a value, not a flag.
    let valued = |arg: Arg| arg.action(ArgAction::Append).allow_negative_numbers(true);
    let arg = hidden(name);
    match takes {
        Takes::Nothing => arg.action(ArgAction::Count),
        Takes::One => valued(arg),
        Takes::Some => valued(arg).num_args(1..),
        Takes::Any => valued(arg).num_args(0..),
    }
}

fn hidden(name: &'static str) -> Arg {
    Arg::new(name).long(name).hide(true)
}

/// The settings, among these, that the command line sets.
fn flags(
    matches: &ArgMatches,
    settings: impl Iterator<Item = &'static Setting>,
    problems: &mut Vec<Problem>,
) -> Draft {
    let mut draft = Draft::default();
    for setting in settings {
        let place = flag_place(&setting.flag());
        match setting.kind {
            kind if kind.is_list() => {
                if let Some(texts) = matches.get_many::<String>(setting.key) {
                    let texts: Vec<_> = texts.map(String::as_str).collect();
                    draft.set(setting, texts.join(","), place);
                }
            }
            Kind::Switch if matches.get_flag(setting.key) => draft.set(setting, "true", place),
            Kind::Switch => {}
            Kind::Workers(role) => {
                let occurrences = matches.get_occurrences::<String>(setting.key);
                for tokens in occurrences.into_iter().flatten() {
                    let tokens: Vec<_> = tokens.map(String::as_str).collect();
                    let worker = WorkerDraft::from_tokens(place.clone(), role, &tokens, problems);
                    draft.push_worker(setting, place.clone(), worker);
                }
            }
            _ => {
                if let Some(value) = matches.get_one::<String>(setting.key) {
                    draft.set(setting, value, place);
                }
            }
        }
    }
    draft
}

/// One line for each flag of sglang_router that has no effect.
fn warnings(matches: &ArgMatches) -> Vec<String> {
    let given = IGNORED.iter().filter(|(name, takes)| match takes {
        Takes::Nothing => matches.get_count(name) > 0,
        _ => matches.contains_id(name),
    });
    let line =
        |(name, _): &(&str, Takes)| format!("--{name} is accepted for sglang_router and ignored");
    given.map(line).collect()
}

fn flag_place(name: &str) -> Place {
    Place::Flag(format!("--{name}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
