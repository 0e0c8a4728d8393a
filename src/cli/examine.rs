//! The commands that take the flags of the load balancer to examine it or its workers: `doctor` and `health`.
//!
//! A command line of the balancer with one of them behind the program's name works. Flags that concern the process are taken
//! and have no effect.

use clap::{Arg, ArgMatches, Args, FromArgMatches};

use super::{
    CONF, DAEMON, Foreign, PRINT_CONFIG, Serve, TEST, UPGRADE, foreign_args, process_args,
    setting_args,
};
use crate::config::Sources;
use crate::doctor::cli::DoctorArgs;
use crate::health::HealthArgs;

pub(super) const DOCTOR: &str = "doctor";
pub(super) const HEALTH: &str = "health";

/// The settings that say where a balancer listens.
const LISTENERS: [&str; 5] = [
    "host",
    "port",
    "admin_listen",
    "tls_cert_path",
    "tls_key_path",
];

/// The command line of the doctor.
#[derive(Debug)]
pub struct Doctor {
    /// Its own flags.
    pub args: DoctorArgs,
    /// The flags of the load balancer that would run with this command line.
    pub sources: Sources,
}

/// The command line of `mini-lb health`.
#[derive(Debug)]
pub struct Health {
    /// Its own flags.
    pub args: HealthArgs,
    /// The flags of the load balancer that runs with this command line.
    pub sources: Sources,
}

impl Doctor {
    pub(super) fn from_matches(matches: &ArgMatches) -> Result<Doctor, clap::Error> {
        Ok(Doctor {
            args: DoctorArgs::from_arg_matches(matches)?,
            sources: Serve::from_matches(matches).sources,
        })
    }
}

impl Health {
    pub(super) fn from_matches(matches: &ArgMatches) -> Result<Health, clap::Error> {
        Ok(Health {
            args: HealthArgs::from_arg_matches(matches)?,
            sources: Serve::from_matches(matches).sources,
        })
    }
}

/// The doctor with its own flags, and below them those of the load balancer.
pub(super) fn doctor_command(foreign: Foreign) -> clap::Command {
    // Afterwards, because the derived code sets `about` to the docs of the struct.
    let own = DoctorArgs::augment_args(clap::Command::new(DOCTOR))
        .about("Examine the workers before the first request")
        .long_about(None)
        .override_usage(
            "mini-lb doctor --prefill <URL> [BOOTSTRAP] --decode <URL> [OPTIONS]\n       mini-lb doctor --conf <FILE> [OPTIONS]",
        )
        .after_help(
            "Takes the flags, the file and the environment of the load balancer. Exit code: 0 when requests can be served,\n\
             1 when there is a problem, 2 when the command line or the configuration is wrong.",
        );
    with_flags_of_balancer(own, foreign, |arg| {
        let without_effect = [TEST, PRINT_CONFIG, DAEMON, UPGRADE];
        without_effect.iter().all(|name| arg.get_id() != name)
    })
}

/// The health check with its own flags, and below them those that say where the load balancer listens.
pub(super) fn health_command(foreign: Foreign) -> clap::Command {
    let own = HealthArgs::augment_args(clap::Command::new(HEALTH))
        .about("Ask a running balancer whether it is ready")
        .long_about(None)
        .override_usage(
            "mini-lb health [--conf <FILE>] [OPTIONS]\n       mini-lb health --url <URL> [OPTIONS]",
        )
        .after_help(
            "Takes the flags, the file and the environment of the load balancer, and asks at admin_listen where there is one.\n\
             Exit code: 0 when it is ready, 1 when it is not or does not respond, 2 when the command line is wrong.",
        );
    with_flags_of_balancer(own, foreign, |arg| {
        arg.get_id() == CONF || LISTENERS.iter().any(|key| arg.get_id() == key)
    })
}

/// Adds all flags of the load balancer, of which the help has those that `is_shown` says.
fn with_flags_of_balancer(
    own: clap::Command,
    foreign: Foreign,
    is_shown: impl Fn(&Arg) -> bool,
) -> clap::Command {
    let args = process_args().into_iter().chain(setting_args()).map(|arg| {
        let hidden = !is_shown(&arg);
        arg.hide(hidden)
    });
    let args = args.filter(|arg| foreign == Foreign::Taken || !arg.is_hide_set());
    own.args(args).args(foreign_args(foreign))
}
