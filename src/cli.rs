//! The command line: what `clap` is told, and what it says.
//!
//! A command line of `sglang_router.launch_router --pd-disaggregation --mini-lb` works unchanged, and
//! Pingora's own flags are there. Options are built from the table in `config/settings.rs`; no value is
//! looked at here.
//!
//! Source: sglang, sgl-model-gateway/bindings/python/src/sglang_router/router_args.py;
//! pingora-core 0.9.1, src/server/configuration/mod.rs `Opt`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches, Subcommand};
use pingora_core::server::configuration::Opt;

#[cfg(feature = "bench")]
use crate::bench::cli::BenchArgs;
use crate::config::foreign::{IGNORED, IMPLIED, Takes};
use crate::config::settings::{CONF_VARIABLE, FOREIGN_POLICIES, Kind, SETTINGS, Setting};
use crate::config::{Draft, Given, Place, Problem, Sources, WorkerDraft};
#[cfg(feature = "sim")]
use crate::sim::cli::{DemoArgs, SimArgs};

/// What the program is asked to do. A further subcommand is one more variant with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Balance; the command line without a subcommand.
    #[command(skip)]
    Serve(Box<Serve>),
    /// Start simulated workers and a balancer in front of them, to try it out.
    #[cfg(feature = "sim")]
    Demo(DemoArgs),
    /// Start a simulated SGLang worker, or many.
    #[cfg(feature = "sim")]
    Sim(SimArgs),
    /// Measure a server: latencies and throughput under a load.
    #[cfg(feature = "bench")]
    Bench(Box<BenchArgs>),
}

/// The balancer's own command line.
#[derive(Debug)]
pub struct Serve {
    /// What to do with the configuration.
    pub action: Action,
    /// Pingora's flags, for Pingora.
    pub opt: Opt,
    /// The flags that are part of the configuration.
    pub sources: Sources,
}

/// What is done with the configuration once it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Serve.
    Run,
    /// `--test`: say whether it can be used.
    Test,
    /// `--print-config`: show it.
    PrintConfig,
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// What `clap` has to say: a mistake (exit code 2), or the text of `--help` and `--version` (0).
pub fn parse<I>(arguments: I) -> Result<Command, clap::Error>
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let matches = command().try_get_matches_from(arguments)?;
    match matches.subcommand_name() {
        Some(_) => Command::from_arg_matches(&matches),
        None => Ok(Command::Serve(Box::new(Serve::from_matches(&matches)))),
    }
}

/// The whole command line, as `clap` sees it.
pub fn command() -> clap::Command {
    let command = clap::Command::new("mini-lb")
        .version(env!("CARGO_PKG_VERSION"))
        .override_usage(
            "mini-lb --prefill <URL> [BOOTSTRAP] --decode <URL> [OPTIONS]\n       mini-lb --conf <FILE> [OPTIONS]",
        )
        .after_help(
            "A flag wins over its environment variable, that over the configuration file, that over the default.\n\
             The other flags of sglang_router.launch_router (metrics, service discovery\n\
             and so on) are accepted so that its command lines work, and have no effect but a warning.",
        )
        .args_conflicts_with_subcommands(true)
        .args(SETTINGS.map(setting_arg))
        .args(process_args())
        .args(IMPLIED.map(|name| hidden(name).action(ArgAction::SetTrue).overrides_with(name)))
        .args(IGNORED.iter().map(|(name, takes)| ignored_arg(name, *takes)));
    // Afterwards, because the derived code takes the text from the enum.
    Command::augment_subcommands(command).about("Prefill/decode load balancer for SGLang")
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
        let mut flags = flags(matches, &mut problems);
        if opt.daemon {
            let given = Given {
                value: true.into(),
                place: flag_place(DAEMON),
            };
            flags.server.insert("daemon".to_owned(), given);
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
            .help_heading("Process")
            .help(format!("Configuration file (YAML) [env: {CONF_VARIABLE}]")),
        switch(
            TEST,
            "Check the configuration, print every problem, and exit",
        )
        .short('t'),
        switch(
            PRINT_CONFIG,
            "Print the effective configuration and where each value comes from, and exit",
        ),
        switch(DAEMON, "Run in the background").short('d'),
        switch(
            UPGRADE,
            "Take over the listening sockets of a running process",
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
        .help(format!("{} {notes}", setting.help))
        .help_heading(setting.heading);
    match setting.kind {
        // The last one wins, as with argparse.
        Kind::Text | Kind::Number => arg.overrides_with(setting.key).allow_negative_numbers(true),
        Kind::Switch => arg
            .value_names([] as [&str; 0])
            .action(ArgAction::SetTrue)
            .overrides_with(setting.key),
        Kind::Paths => arg.num_args(0..).action(ArgAction::Append),
        // One token too many is said to be one too many; clap would take it for a subcommand.
        Kind::Workers(_) => arg.num_args(1..).action(ArgAction::Append),
    }
}

fn ignored_arg(name: &'static str, takes: Takes) -> Arg {
    // A value such as -1 is no flag.
    let valued = |arg: Arg| arg.action(ArgAction::Append).allow_negative_numbers(true);
    let arg = hidden(name);
    match takes {
        Takes::Nothing => arg.action(ArgAction::Count),
        Takes::One => valued(arg),
        Takes::Some => valued(arg).num_args(1..),
        Takes::Any => valued(arg).num_args(0..),
        Takes::Policy => {
            let names = FOREIGN_POLICIES.into_iter().chain(["random"]);
            valued(arg).value_parser(PossibleValuesParser::new(names))
        }
    }
}

fn hidden(name: &'static str) -> Arg {
    Arg::new(name).long(name).hide(true)
}

/// The values of the options that stand on the command line.
fn flags(matches: &ArgMatches, problems: &mut Vec<Problem>) -> Draft {
    let mut draft = Draft::default();
    for setting in SETTINGS {
        let place = flag_place(&setting.flag());
        match setting.kind {
            Kind::Text | Kind::Number => {
                if let Some(value) = matches.get_one::<String>(setting.key) {
                    draft.set(setting, value, place);
                }
            }
            Kind::Paths => {
                if let Some(paths) = matches.get_many::<String>(setting.key) {
                    let paths: Vec<_> = paths.map(String::as_str).collect();
                    draft.set(setting, paths.join(","), place);
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
        }
    }
    draft
}

/// One line for each flag that was given and does nothing.
fn warnings(matches: &ArgMatches) -> Vec<String> {
    let given = IGNORED.iter().filter(|(name, takes)| match takes {
        Takes::Nothing => matches.get_count(name) > 0,
        _ => matches.contains_id(name),
    });
    let line = |(name, takes): &(&str, Takes)| match takes {
        Takes::Policy => format!("--{name} has no effect yet, random is used"),
        _ => format!("--{name} is accepted because sglang_router has it, and has no effect"),
    };
    given.map(line).collect()
}

fn flag_place(name: &str) -> Place {
    Place::Flag(format!("--{name}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::settings::worker_key;
    use crate::config::{Environment, Role};

    fn serve(line: &[&str]) -> Serve {
        match parse(line.iter().copied()).unwrap() {
            Command::Serve(serve) => *serve,
            #[allow(unreachable_patterns, reason = "as long as there is no subcommand")]
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_of_pingora_is_here() {
        let ours = command();
        for theirs in Opt::command()
            .get_arguments()
            .filter(|arg| !arg.is_hide_set())
        {
            let found = ours
                .get_arguments()
                .find(|arg| arg.get_long() == theirs.get_long());
            let found = found.unwrap_or_else(|| panic!("{theirs} is missing"));
            assert_eq!(found.get_short(), theirs.get_short(), "{theirs}");
        }
    }

    #[test]
    fn every_foreign_flag_warns_once_however_often_it_is_given() {
        for (name, takes) in IGNORED {
            let flag = format!("--{name}");
            let given: &[&str] = match takes {
                Takes::Nothing => &[],
                Takes::One => &["-1"],
                Takes::Some => &["a=b", "c=d"],
                Takes::Any => &["a", "b", "c"],
                Takes::Policy => &["round_robin"],
            };
            let mut line = vec!["mini-lb"];
            for _ in 0..2 {
                line.push(&flag);
                line.extend(given);
            }
            // A flag behind it must not be swallowed.
            line.extend(["--port", "1"]);
            let serve = serve(&line);
            assert_eq!(serve.sources.warnings.len(), 1, "{line:?}");
            assert!(serve.sources.warnings[0].starts_with(&flag), "{line:?}");
            assert_eq!(serve.sources.flags.scalars["port"].value, "1", "{line:?}");
        }
    }

    #[test]
    fn implied_flags_are_silent() {
        let serve = serve(&["mini-lb", "--pd-disaggregation", "--mini-lb", "--mini-lb"]);
        assert!(serve.sources.warnings.is_empty());
    }

    fn scalar(
        sources: Sources,
        environment: Environment<'_>,
        setting: &Setting,
    ) -> (String, Place) {
        let (_, effective) = sources.load(environment).unwrap();
        let given = &effective.0.scalars[setting.key];
        (given.value.clone(), given.place.clone())
    }

    #[test]
    fn every_scalar_option_is_a_flag_a_variable_and_a_key_that_override_in_this_order() {
        let workers = [
            "mini-lb",
            "--prefill",
            "http://a:1",
            "--decode",
            "http://b:1",
        ];
        let sources = |more: &[String]| {
            let more = more.iter().map(String::as_str);
            serve(&workers.into_iter().chain(more).collect::<Vec<_>>()).sources
        };
        let key_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key_file.path(), "sk-1").unwrap();
        let roots = tempfile::NamedTempFile::new().unwrap();
        let authority = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        std::fs::write(roots.path(), authority.cert.pem()).unwrap();
        for setting in SETTINGS {
            let value = match setting.key {
                "prefill" | "decode" => continue,
                // A certificate needs its key.
                "tls_cert_path" | "tls_key_path" | "client_cert_path" | "client_key_path" => {
                    continue;
                }
                "ca_cert_paths" => roots.path().to_str().unwrap(),
                "admin_listen" => "127.0.0.1:1",
                "host" => "::1",
                "policy" => "random",
                "log_level" => "warn",
                "worker_api_key_file" | "worker_admin_api_key_file" | "api_key_file" => {
                    key_file.path().to_str().unwrap()
                }
                "health_check_endpoint" => "/health_generate",
                _ if setting.kind == Kind::Switch => "true",
                _ => "7",
            };
            let yaml = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(yaml.path(), format!("{}: {value}\n", setting.key)).unwrap();
            let conf = ["--conf".to_owned(), yaml.path().display().to_string()];
            let mut flag = vec![format!("--{}", setting.flag())];
            if setting.kind != Kind::Switch {
                flag.push(value.to_owned());
            }
            let unset = |_: &str| None;
            let set = |name: &str| (name == setting.variable()).then(|| value.into());

            let file = Place::File {
                path: yaml.path().into(),
                line: Some(1),
                key: setting.key.to_owned(),
            };
            assert_eq!(
                scalar(sources(&conf), &unset, setting),
                (value.to_owned(), file)
            );
            let variable = Place::Environment(setting.variable());
            assert_eq!(
                scalar(sources(&conf), &set, setting),
                (value.to_owned(), variable)
            );
            let all = [&conf[..], &flag].concat();
            assert_eq!(
                scalar(sources(&all), &set, setting),
                (value.to_owned(), Place::Flag(flag[0].clone()))
            );
            if let Some(default) = setting.default {
                assert_eq!(
                    scalar(sources(&[]), &unset, setting),
                    (default.to_owned(), Place::Default)
                );
            }
        }
    }

    #[test]
    fn the_reference_file_has_every_key_at_its_default() {
        let text = std::fs::read_to_string("conf/mini-lb.yaml").unwrap();
        let file: serde_yaml::Mapping = serde_yaml::from_str(&text).unwrap();
        for setting in SETTINGS {
            let value = file
                .get(setting.key)
                .unwrap_or_else(|| panic!("{} is missing", setting.key));
            match setting.kind {
                Kind::Workers(role) => {
                    let first = value.get(0).unwrap();
                    let shown = |key: &&str| role == Role::Decode || first.get(key).is_some();
                    assert!(worker_key::of(role).iter().all(shown), "{first:?}");
                }
                _ if setting.key == "port" => assert_eq!(value.as_u64(), Some(8080)),
                _ => {
                    let default = setting.default.map_or(serde_yaml::Value::Null, |default| {
                        serde_yaml::from_str(default).unwrap()
                    });
                    assert_eq!(*value, default, "{}", setting.key);
                }
            }
        }
    }
}
