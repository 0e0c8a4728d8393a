//! The one fallible step from the user's text to the values of the program.
//!
//! First every value is checked against its row of the table, in the order of the table; then the typed groups are
//! filled, and the values of a finer form are read. All problems are reported, not only the first. Key files and
//! certificates are read here; nothing else is opened and no worker is contacted.

use std::path::PathBuf;
use std::time::Duration;

use pingora::server::configuration::ServerConf;
use serde_yaml::Value;

use super::background::Background;
use super::draft::{Draft, Given, server_conf};
use super::keys::{checked_key, read_key, read_keys};
use super::kind::addresses;
use super::log_filter::{NoFilter, translated};
use super::settings::{find, settings};
use super::tls::{self, Half, Identity, Tls};
use super::worker::{parse_host, parse_listen};
use super::workers::Listed;
use super::{
    ClientKey, ClientKeys, Config, ConfigError, Fault, Listen, Place, Problem, ReadFiles,
    RequestLimits, Secret, ShutdownConfig,
};
use crate::limits::{FromText, Group, Settings};
use crate::pd::Engine;

/// Resolves a draft that includes the defaults.
///
/// # Errors
/// All problems: the given ones, then those found here.
pub(super) fn resolve(
    draft: &Draft,
    files: Files,
    problems: Vec<Problem>,
    warnings: Vec<String>,
) -> Result<Config, ConfigError> {
    let mut resolver = Resolver {
        draft,
        files,
        problems,
        warnings,
    };
    resolver.check_rows();
    let config = resolver.config();
    let Resolver {
        problems,
        warnings,
        files,
        ..
    } = resolver;
    match config {
        Some(config) if problems.is_empty() => Ok(Config {
            warnings,
            files: ReadFiles(files.read),
            ..config
        }),
        // A value is missing only when a problem says why.
        _ => Err(ConfigError { problems }),
    }
}

/// A URL, or host and port.
fn parse_endpoint(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let uri: http::Uri = format!("{scheme}://{rest}").parse().ok()?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    let only_host = text.contains("://") || uri.path() == "/" && !text.contains('/');
    (["http", "https"].contains(&scheme) && has_host && only_host).then(|| text.to_owned())
}

/// The files that settings name.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// The directory of relative paths; empty for that of the process.
    pub(super) base: PathBuf,
    /// Those that have been looked for.
    pub(super) read: Vec<PathBuf>,
}

impl Files {
    /// The path of a file that is about to be read.
    pub(super) fn path(&mut self, text: &str) -> PathBuf {
        let path = self.base.join(text);
        self.read.push(path.clone());
        path
    }
}

pub(super) struct Resolver<'a> {
    pub(super) draft: &'a Draft,
    pub(super) files: Files,
    problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Settings for Resolver<'_> {
    fn get<T: FromText>(&mut self, key: &'static str) -> Option<T> {
        let Some(setting) = find(key) else {
            let fault = Fault::UnknownKey {
                suggestion: None,
                allowed: None,
            };
            self.report(&Place::Library(key.to_owned()), fault);
            return None;
        };
        let Some(given) = self.given(key) else {
            return T::absent();
        };
        // A value that its row does not accept has been reported.
        if !setting.kind.accepts(&given.value) {
            return None;
        }
        self.scalar(key, T::from_text)
    }
}

impl<'a> Resolver<'a> {
    /// Everything, without the warnings. Every part is read before the first missing one ends this.
    fn config(&mut self) -> Option<Config> {
        let listen = self.listen();
        let admin_listen = self.admin_listen(listen.as_ref());
        let prometheus = self.prometheus(listen.as_ref());
        let tls = self.tls();
        let clients = Group::read(self);
        let client_keys = self.client_keys();
        let requests = self.requests();
        let workers = Group::read(self);
        let resilience = Group::read(self);
        let engine = self
            .given("engine")
            .and_then(|given| Engine::of_word(&given.value));
        let policies = self.policies();
        let log_filter = self.log_filter();
        let log_json = self.get("log_json");
        let debug_requests_capacity = self.get("debug_requests_capacity");
        let enable_trace = self.get("enable_trace");
        let otlp_traces_endpoint = self.scalar("otlp_traces_endpoint", parse_endpoint);
        let disable_log_client_address = self.get("disable_log_client_address");
        let watch_config = self.get("watch_config");
        // One that is not valid has been reported.
        let dns_servers = self.given("dns_servers");
        let dns_servers = dns_servers.and_then(|given| addresses(&given.value));
        let Listed {
            prefill,
            decode,
            dns,
            keys,
        } = self.fleet();
        let workers_state_file = self.given("workers_state_file");
        let workers_state_file = workers_state_file.map(|given| (&given.value).into());
        let kubernetes = self.kubernetes();
        let server = self.server();
        let shutdown = self.shutdown(server.as_ref());
        let upgrade_wait = self.get("upgrade_wait_secs");
        let background = server.as_ref().map(|server| self.background(server));
        Some(Config {
            listen: listen?,
            admin_listen,
            prometheus,
            tls,
            prefill,
            decode,
            worker_keys: keys,
            engine: engine?,
            dns,
            dns_servers: dns_servers.unwrap_or_default(),
            workers_state_file,
            kubernetes: kubernetes?,
            policies: policies?,
            clients: clients?,
            client_keys,
            requests: requests?,
            workers: workers?,
            resilience: resilience?,
            shutdown: shutdown?,
            log_filter: log_filter?,
            log_json: log_json?,
            debug_requests_capacity: debug_requests_capacity?,
            enable_trace: enable_trace?,
            otlp_traces_endpoint,
            disable_log_client_address: disable_log_client_address?,
            upgrade_wait: upgrade_wait?,
            server: server?,
            warnings: Vec::new(),
            background: background?,
            watch_config: watch_config?,
            files: ReadFiles::default(),
        })
    }

    /// Checks every value against its row.
    fn check_rows(&mut self) {
        for setting in settings() {
            if let Some(given) = self.given(setting.key)
                && !setting.kind.accepts(&given.value)
            {
                self.report_value(given, setting.expects, None);
            }
        }
    }

    /// The text of a setting; `None` when no source sets it and it has no default.
    pub(super) fn given(&self, key: &str) -> Option<&'a Given<String>> {
        self.draft.scalars.get(key)
    }

    /// A value of a form that its row cannot check. `None` when there is none or it has been reported.
    pub(super) fn scalar<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let given = self.given(key)?;
        let value = read(&given.value);
        if value.is_none() {
            self.report_value(given, find(key)?.expects, None);
        }
        value
    }

    fn listen(&mut self) -> Option<Listen> {
        let host = self.scalar("host", parse_host);
        let port = self.get("port");
        Some(Listen {
            host: host?,
            port: port?,
        })
    }

    /// The second address, if there is one. It must differ from the first.
    fn admin_listen(&mut self, listen: Option<&Listen>) -> Option<Listen> {
        let found = self.scalar("admin_listen", parse_listen)?;
        if listen.is_some_and(|listen| listen.overlaps(&found)) {
            let given = self.given("admin_listen")?;
            self.report(&given.place, Fault::SameAddress);
        }
        Some(found)
    }

    /// The address for metrics, if there is one; host and port have the defaults of sglang_router. It must differ from the
    /// first address.
    fn prometheus(&mut self, listen: Option<&Listen>) -> Option<Listen> {
        let port = self.scalar("prometheus_port", |text| text.parse().ok());
        let host = self.scalar("prometheus_host", parse_host);
        if port.is_none() && host.is_none() {
            return None;
        }
        let found = Listen {
            host: host.unwrap_or_else(|| "0.0.0.0".to_owned()),
            port: port.unwrap_or(29000),
        };
        if listen.is_some_and(|listen| listen.overlaps(&found)) {
            let given = self.given("prometheus_port");
            let given = given.or_else(|| self.given("prometheus_host"))?;
            self.report(&given.place, Fault::SameAddress);
        }
        Some(found)
    }

    fn requests(&mut self) -> Option<RequestLimits> {
        let limits = RequestLimits::read(self);
        let disabled: bool = self.get("disable_retries")?;
        let limits = limits?;
        Some(RequestLimits {
            max_retries: if disabled { 0 } else { limits.max_retries },
            ..limits
        })
    }

    /// Pingora's key for the grace period, which has no default, wins: so a configuration that was printed
    /// means the same when it is read again.
    fn shutdown(&mut self, server: Option<&ServerConf>) -> Option<ShutdownConfig> {
        let ours = ShutdownConfig::read(self)?;
        let pingoras = server
            .and_then(|server| server.grace_period_seconds)
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        if let Some(given) = self.given("shutdown_grace_period_secs")
            && !matches!(given.place, Place::Default)
            && pingoras.is_some_and(|pingoras| pingoras != ours.grace)
        {
            self.warnings.push(format!(
                "{}: ignored, because Pingora's grace_period_seconds is set",
                given.place
            ));
        }
        Some(ShutdownConfig {
            grace: pingoras.unwrap_or(ours.grace),
            ..ours
        })
    }

    fn log_filter(&mut self) -> Option<String> {
        let given = self.given("log_level")?;
        match translated(&given.value) {
            Ok(filter) => Some(filter),
            Err(NoFilter { suggestion }) => {
                self.report_value(given, find("log_level")?.expects, suggestion);
                None
            }
        }
    }

    fn tls(&mut self) -> Tls {
        Tls {
            listener: self.identity("tls_cert_path", "tls_key_path"),
            client: self.identity("client_cert_path", "client_key_path"),
            roots: self.roots(),
        }
    }

    /// A certificate and its key: both settings or neither.
    fn identity(&mut self, certificate: &'static str, key: &'static str) -> Option<Identity> {
        match (self.given(certificate), self.given(key)) {
            (None, None) => None,
            (Some(given), None) => {
                self.report(&given.place, Fault::Half { missing: key });
                None
            }
            (None, Some(given)) => {
                let missing = certificate;
                self.report(&given.place, Fault::Half { missing });
                None
            }
            (Some(certificate), Some(key)) => {
                let certificate_path = self.files.path(&certificate.value);
                let key_path = self.files.path(&key.value);
                tls::read_identity(&certificate_path, &key_path)
                    .map_err(|(half, fault)| match half {
                        Half::Certificate => self.report(&certificate.place, fault),
                        Half::Key => self.report(&key.place, fault),
                    })
                    .ok()
            }
        }
    }

    fn roots(&mut self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        let Some(given) = self.given("ca_cert_paths") else {
            return Vec::new();
        };
        let paths = given.value.split(',').map(str::trim);
        let mut roots = Vec::new();
        for path in paths.filter(|path| !path.is_empty()) {
            match tls::read_roots(&self.files.path(path)) {
                Ok(found) => roots.extend(found),
                Err(fault) => self.report(&given.place, fault),
            }
        }
        roots
    }

    /// The key of the setting, then those of the file.
    fn client_keys(&mut self) -> ClientKeys {
        let named = |key| ClientKey {
            key,
            name: "api_key".to_owned(),
        };
        let mut api: Vec<_> = self.given_key("api_key").map(named).into_iter().collect();
        if let Some(given) = self.given("api_key_file") {
            match read_keys(&self.files.path(&given.value)) {
                Ok(of_file) => api.extend(of_file),
                Err(fault) => self.report(&given.place, fault),
            }
        }
        let admin = self.given_key("admin_api_key");
        ClientKeys { api, admin }
    }

    fn given_key(&mut self, key: &'static str) -> Option<Secret> {
        let given = self.given(key)?;
        self.key(checked_key(&given.value), &given.place)
    }

    /// The key in the file that this setting names.
    pub(super) fn filed_key(&mut self, key: &'static str) -> Option<Secret> {
        let given = self.given(key)?;
        let path = self.files.path(&given.value);
        self.key(read_key(&path), &given.place)
    }

    pub(super) fn key(&mut self, key: Result<Secret, Fault>, place: &Place) -> Option<Secret> {
        key.map_err(|fault| self.report(place, fault)).ok()
    }

    fn server(&mut self) -> Option<ServerConf> {
        let given = self.draft.server.iter();
        let keys = given.map(|(key, given)| (Value::from(key.as_str()), given.value.clone()));
        match server_conf(keys.collect()) {
            Ok(conf) if conf.threads == 0 => {
                let place = self.server_place("threads");
                self.report(&place, Fault::Server("must be at least 1".to_owned()));
                None
            }
            Ok(conf) => Some(conf),
            Err(why) => {
                self.report(&Place::Default, Fault::Server(why));
                None
            }
        }
    }

    /// What a process in the background needs. In the foreground nothing, and keys that name a file are of no use.
    fn background(&mut self, server: &ServerConf) -> Background {
        if server.daemon {
            return Background::of(server, |key| self.server_place(key));
        }
        let (pid_file, log) = (&server.pid_file, server.error_log.is_some());
        // A printed configuration has the defaults too.
        let pid = *pid_file != ServerConf::default().pid_file;
        for (key, is_set, instead) in [
            ("pid_file", pid, "no pid file is written"),
            ("error_log", log, "the log goes to stderr"),
        ] {
            if is_set {
                let place = self.server_place(key);
                self.warnings.push(format!(
                    "{place}: ignored without --daemon (or daemon: true), {instead}"
                ));
            }
        }
        Background::default()
    }

    fn server_place(&self, key: &str) -> Place {
        let given = self.draft.server.get(key);
        given.map_or(Place::Default, |given| given.place.clone())
    }

    pub(super) fn report_value(
        &mut self,
        given: &Given<String>,
        expected: &'static str,
        suggestion: Option<String>,
    ) {
        let fault = Fault::Value {
            found: given.value.clone(),
            expected,
            suggestion,
        };
        self.report(&given.place, fault);
    }

    pub(super) fn report(&mut self, place: &Place, fault: Fault) {
        self.problems.push(Problem {
            place: place.clone(),
            fault,
        });
    }
}
