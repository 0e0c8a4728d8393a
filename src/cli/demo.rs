//! The command line of `mini-lb demo`: its own flags, and below them those of the load balancer.

use clap::{Arg, ArgMatches, Args, FromArgMatches};

use super::{flags, setting_arg};
use crate::config::Sources;
use crate::config::settings::{GROUPS, Setting, settings};
use crate::sim::cli::DemoArgs;

/// The command line of the demo.
#[derive(Debug)]
pub struct Demo {
    /// Its own flags.
    pub args: DemoArgs,
    /// Whether the workers are vLLM's, as the balancer's flag says.
    pub is_vllm: bool,
    /// The flags of the load balancer.
    pub flags: Sources,
}

impl Demo {
    pub(super) fn from_matches(matches: &ArgMatches) -> Result<Demo, clap::Error> {
        let mut problems = Vec::new();
        let flags = flags(matches, settings().filter(demo_takes), &mut problems);
        let mut engines = matches.get_raw("engine").into_iter().flatten();
        Ok(Demo {
            args: DemoArgs::from_arg_matches(matches)?,
            is_vllm: engines.next_back().is_some_and(|engine| engine == "vllm"),
            flags: Sources {
                flags,
                problems,
                ..Sources::default()
            },
        })
    }
}

pub(super) const DEMO: &str = "demo";

/// The demo with its own flags, and below them those of the load balancer.
pub(super) fn demo_command() -> clap::Command {
    // Afterwards, because the derived code sets `about` to the docs of the struct.
    let own = DemoArgs::augment_args(clap::Command::new(DEMO))
        .about("Start simulated workers and a load balancer in front of them")
        .long_about(None)
        .after_help("The flags of the load balancer work as without `demo`.");
    own.args(GROUPS.iter().flat_map(|(heading, settings)| {
        let taken = settings.iter().filter(demo_takes);
        taken
            .map(move |setting| demo_arg(setting).help_heading(format!("Load balancer: {heading}")))
    }))
}

/// Without the note on the environment variable, which the demo does not read.
fn demo_arg(setting: &Setting) -> Arg {
    let default = setting
        .default
        .map(|default| format!(" [default: {default}]"));
    let help = format!("{}{}", setting.help, default.unwrap_or_default());
    setting_arg(setting).help(help)
}

/// Whether the demo passes this flag on: all but its addresses and workers, which are its own, and the keys, which the
/// workers have as well.
fn demo_takes(setting: &&Setting) -> bool {
    let own = [
        "host",
        "port",
        "prefill",
        "decode",
        "api_key",
        "admin_api_key",
    ];
    !own.contains(&setting.key)
}
