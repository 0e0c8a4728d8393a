//! The sources of a command line: flags over environment variables over the file over the defaults.
//!
//! Two readers: the whole configuration, in which every problem counts, and the address of the process's own listener, for
//! a command that asks a balancer whether it is ready.

use std::path::PathBuf;

#[cfg(feature = "cli")]
use rustls::pki_types::CertificateDer;

use super::draft::{Draft, Environment, Given};
#[cfg(feature = "cli")]
use super::worker::{parse_host, parse_listen};
use super::{Config, ConfigError, Effective, Place, Problem, file, resolve, settings};
#[cfg(feature = "cli")]
use super::{Fault, Listen, tls};

/// The command line, before the environment and the file are laid under it.
#[derive(Debug, Default, Clone)]
#[doc(hidden)]
pub struct Sources {
    /// The directory of relative paths; empty for that of the process.
    pub(crate) base: PathBuf,
    pub(crate) flags: Draft,
    pub(crate) conf: Option<Given<PathBuf>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
}

impl Sources {
    /// Reads the other sources and resolves all of them. A flag overrides an environment variable, which overrides
    /// the file, which overrides the default.
    ///
    /// # Errors
    /// Every problem of every source.
    pub fn load(self, environment: Environment<'_>) -> Result<(Config, Effective), ConfigError> {
        let Gathered {
            draft,
            files,
            problems,
            warnings,
        } = self.gather(environment)?;
        let config = resolve::resolve(&draft, files, problems, warnings)?;
        Ok((config, Effective(draft)))
    }

    /// The listener that a balancer with these sources has, and that answers for its readiness.
    ///
    /// Other settings are not checked: a balancer whose file has a problem by now still serves with the values that it has
    /// read.
    ///
    /// # Errors
    /// A file that cannot be read, an address that cannot be connected to.
    #[cfg(feature = "cli")]
    pub(crate) fn own_listener(
        self,
        environment: Environment<'_>,
    ) -> Result<OwnListener, ConfigError> {
        self.gather(environment)?.own_listener()
    }

    /// Reads the other sources and lays all of them over each other.
    fn gather(self, environment: Environment<'_>) -> Result<Gathered, ConfigError> {
        let (mut problems, mut warnings) = (self.problems, self.warnings);
        let mut files = Vec::new();
        let variables = Draft::from_environment(environment, &mut problems, &mut warnings);
        let file = match self.conf.or_else(|| conf_of(environment)) {
            None => Draft::default(),
            Some(mut conf) => {
                conf.value = self.base.join(conf.value);
                files.push(conf.value.clone());
                match file::read(&conf, environment, &mut problems) {
                    Some(file) => file,
                    // Without the file, everything that it sets would be reported as missing.
                    None => return Err(ConfigError { problems }),
                }
            }
        };
        let draft = self
            .flags
            .over(variables)
            .over(file)
            .over(Draft::defaults());
        Ok(Gathered {
            draft,
            files: resolve::Files {
                base: self.base,
                read: files,
            },
            problems,
            warnings,
        })
    }
}

/// All sources, laid over each other. Only the form of workers has been checked.
struct Gathered {
    draft: Draft,
    files: resolve::Files,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// The listener of a balancer on this machine.
#[cfg(feature = "cli")]
#[derive(Debug)]
pub(crate) struct OwnListener {
    /// An address that can be connected to.
    pub(crate) at: Listen,
    /// The certificates that it shows; empty for plain HTTP.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

#[cfg(feature = "cli")]
impl Gathered {
    /// That of administration where there is one: the limit of client connections does not hold there.
    fn own_listener(mut self) -> Result<OwnListener, ConfigError> {
        let at = match self.scalar("admin_listen", parse_listen)? {
            Some(at) => at,
            // Both have a default.
            None => Listen {
                host: self.scalar("host", parse_host)?.unwrap_or_default(),
                port: self
                    .scalar("port", |text| text.parse().ok())?
                    .unwrap_or_default(),
            },
        };
        let certificates = match self.draft.scalars.get("tls_cert_path") {
            None => Vec::new(),
            Some(given) => {
                let path = self.files.path(&given.value);
                tls::read_certificates(&path).map_err(|fault| problem(given, fault))?
            }
        };
        Ok(OwnListener { at, certificates })
    }

    fn scalar<T>(
        &self,
        key: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(given) = self.draft.scalars.get(key) else {
            return Ok(None);
        };
        let fault = || Fault::Value {
            found: given.value.clone(),
            expected: settings::find(key).map_or("a value", |setting| setting.expects),
            suggestion: None,
        };
        read(&given.value)
            .map(Some)
            .ok_or_else(|| problem(given, fault()))
    }
}

#[cfg(feature = "cli")]
fn problem(given: &Given<String>, fault: Fault) -> ConfigError {
    let place = given.place.clone();
    ConfigError {
        problems: vec![Problem { place, fault }],
    }
}

fn conf_of(environment: Environment<'_>) -> Option<Given<PathBuf>> {
    let path = environment(settings::CONF_VARIABLE).filter(|path| !path.is_empty())?;
    let place = Place::Environment(settings::CONF_VARIABLE.to_owned());
    Some(Given {
        value: PathBuf::from(path),
        place,
    })
}
