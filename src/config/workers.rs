//! The lists of workers: drafts become [`WorkerSpec`]s, each worker once, each with its keys.

use std::collections::HashMap;
use std::net::IpAddr;

#[cfg(feature = "cli")]
use super::Config;
use super::draft::{Given, WorkerDraft};
use super::keys::{checked_key, read_key};
use super::resolve::Resolver;
use super::settings::worker_key;
use super::worker::{bracketed, nonzero_port, parse_host};
use super::{
    BootstrapSpec, DnsSpec, DnsUrl, Fault, Place, Role, Secret, UrlFault, WorkerKeys, WorkerSpec,
    WorkerUrl,
};

impl Resolver<'_> {
    /// All workers, the names that bring some, and the keys of workers that have none of their own.
    pub(super) fn fleet(&mut self) -> Listed {
        // sglang_router has one key for clients and workers. A problem with it has been reported.
        let of_clients = |resolver: &Self| checked_key(&resolver.given("api_key")?.value).ok();
        let shared = WorkerKeys {
            api: self
                .filed_key("worker_api_key_file")
                .or_else(|| self.key_of_all(worker_key::API_KEY))
                .or_else(|| of_clients(self)),
            admin: self
                .filed_key("worker_admin_api_key_file")
                .or_else(|| self.key_of_all(worker_key::ADMIN_API_KEY)),
        };
        let mut listed = Vec::new();
        for role in [Role::Prefill, Role::Decode] {
            self.workers(role, &shared, &mut listed);
        }
        self.each_worker_once(&listed);
        #[cfg(not(feature = "dns"))]
        for name in &listed {
            if matches!(name.value, Item::Name(_)) {
                self.report(&name.place, Fault::NoDns);
            }
        }
        let mut all = Listed::default();
        for Given { value, .. } in listed {
            match value {
                Item::Worker(Role::Prefill, worker) => all.prefill.push(worker),
                Item::Worker(Role::Decode, worker) => all.decode.push(worker),
                Item::Name(name) => all.dns.push(name),
            }
        }
        self.warnings
            .extend(unreachable_bootstraps(&all.prefill, &all.decode));
        all.keys = shared;
        all
    }

    /// The key that a program gives to all workers.
    fn key_of_all(&mut self, key: &'static str) -> Option<Secret> {
        let given = self.draft.all_workers.as_ref()?.keys.get(key)?;
        self.key(checked_key(&given.value), &given.place)
    }

    /// Whether a program says that all workers speak HTTP/2.
    fn all_speak_http2(&self) -> bool {
        let all = self.draft.all_workers.as_ref();
        let given = all.and_then(|all| all.keys.get(worker_key::HTTP2));
        given.is_some_and(|given| given.value == "true")
    }

    fn workers(&mut self, role: Role, shared: &WorkerKeys, listed: &mut Vec<Given<Item>>) {
        let key = match role {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        };
        let list = self.draft.workers.get(key);
        let drafts = list.map_or(&[][..], |list| &list.value);
        if drafts.is_empty() && !self.may_get_workers_later() {
            let place = list.map_or(Place::Default, |list| list.place.clone());
            self.report(&place, Fault::NoWorkers { key });
        }
        let items = drafts.iter().filter_map(|draft| {
            let value = self.item(role, draft, shared)?;
            let place = draft.place.clone();
            Some(Given { value, place })
        });
        listed.extend(items);
    }

    /// Whether a role may have no worker at the start, because something may bring one.
    fn may_get_workers_later(&self) -> bool {
        let is_on = |key| self.given(key).is_some_and(|given| given.value == "true");
        let is_set = |key| self.given(key).is_some();
        let by_api = ["admin_listen", "admin_api_key", "workers_state_file"];
        is_on("watch_config") || is_on("service_discovery") || by_api.into_iter().any(is_set)
    }

    /// A worker, or a name of DNS that brings some.
    fn item(&mut self, role: Role, draft: &WorkerDraft, shared: &WorkerKeys) -> Option<Item> {
        let own_key = self.worker_key(draft, worker_key::API_KEY, worker_key::API_KEY_FILE);
        let own_admin_key = self.worker_key(
            draft,
            worker_key::ADMIN_API_KEY,
            worker_key::ADMIN_API_KEY_FILE,
        );
        let url = self.url(draft);
        let (host, port) = self.bootstrap(draft);
        let weight = self.key_of(
            draft,
            worker_key::WEIGHT,
            "a weight from 1 to 1000",
            |text| {
                text.parse()
                    .ok()
                    .filter(|weight| (1..=1000).contains(weight))
            },
        );
        let http2 = self.key_of(draft, worker_key::HTTP2, "true or false", |text| {
            text.parse().ok()
        });
        let http2 = http2.unwrap_or_else(|| self.all_speak_http2());
        let api_key = own_key.or_else(|| shared.api.clone());
        let admin_api_key = own_admin_key.or_else(|| shared.admin.clone());
        Some(match url? {
            Url::Dns(url) => Item::Name(DnsSpec {
                role,
                url,
                bootstrap_host: host.as_deref().map(bracketed),
                bootstrap_port: port,
                api_key,
                admin_api_key,
                weight,
                http2,
            }),
            Url::Worker(url) => Item::Worker(
                role,
                WorkerSpec {
                    bootstrap: (role == Role::Prefill).then(|| BootstrapSpec {
                        host: bracketed(host.as_deref().unwrap_or(url.host())),
                        port,
                    }),
                    server_name: None,
                    api_key,
                    admin_api_key,
                    weight: weight.unwrap_or(1),
                    http2,
                    url,
                },
            ),
        })
    }

    /// `None` where there is none, or it is not one, which has been reported.
    fn url(&mut self, draft: &WorkerDraft) -> Option<Url> {
        let given = draft.keys.get(worker_key::URL)?;
        let parsed = Url::parse(&given.value);
        parsed
            .map_err(|why| {
                let found = without_user(&given.value);
                self.report(&given.place, Fault::Url { found, why });
            })
            .ok()
    }

    /// The host and the port of the bootstrap server, where they are given.
    fn bootstrap(&mut self, draft: &WorkerDraft) -> (Option<String>, Option<u16>) {
        let host = self.key_of(
            draft,
            worker_key::BOOTSTRAP_HOST,
            "a host name or an address",
            parse_host,
        );
        let port = self.key_of(
            draft,
            worker_key::BOOTSTRAP_PORT,
            "a bootstrap port: PORT (1 to 65535), HOST:PORT or none",
            |text| match text {
                text if text.eq_ignore_ascii_case("none") => Some(None),
                text => nonzero_port(text).map(Some),
            },
        );
        (host, port.flatten())
    }

    fn key_of<T>(
        &mut self,
        draft: &WorkerDraft,
        key: &str,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let given = draft.keys.get(key)?;
        let value = read(&given.value);
        if value.is_none() {
            self.report_value(given, expected, None);
        }
        value
    }

    fn worker_key(
        &mut self,
        draft: &WorkerDraft,
        text: &'static str,
        file: &'static str,
    ) -> Option<Secret> {
        match (draft.keys.get(text), draft.keys.get(file)) {
            (None, None) => None,
            (Some(given), None) => self.key(checked_key(&given.value), &given.place),
            (None, Some(given)) => {
                let path = self.files.path(&given.value);
                self.key(read_key(&path), &given.place)
            }
            (Some(_), Some(given)) => {
                self.report(&given.place, Fault::TwoKeys { text, file });
                None
            }
        }
    }

    fn each_worker_once(&mut self, listed: &[Given<Item>]) {
        let mut seen: HashMap<String, (Role, &Place)> = HashMap::new();
        for worker in listed {
            let (role, key, url) = match &worker.value {
                // Keyed by address: one port cannot serve both http and https.
                Item::Worker(role, worker) => {
                    (*role, worker.url.authority(), worker.url.to_string())
                }
                Item::Name(name) => (name.role, name.url.to_string(), name.url.to_string()),
            };
            let Some((first_role, first)) = seen.get(&key).copied() else {
                seen.insert(key, (role, &worker.place));
                continue;
            };
            let first = Box::new(first.clone());
            let fault = if first_role == role {
                Fault::Duplicate { url, first }
            } else {
                Fault::BothRoles {
                    url,
                    prefill: first,
                }
            };
            self.report(&worker.place, fault);
        }
    }
}

/// All workers of a configuration, and the names of DNS that bring some.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) prefill: Vec<WorkerSpec>,
    pub(super) decode: Vec<WorkerSpec>,
    pub(super) dns: Vec<DnsSpec>,
    pub(super) keys: WorkerKeys,
}

/// One item of the lists.
enum Item {
    Worker(Role, WorkerSpec),
    Name(DnsSpec),
}

/// What a URL of the lists is.
enum Url {
    Worker(WorkerUrl),
    Dns(DnsUrl),
}

impl Url {
    fn parse(text: &str) -> Result<Self, UrlFault> {
        match DnsUrl::parse(text) {
            Some(name) => name.map(Self::Dns),
            None => WorkerUrl::parse(text).map(Self::Worker),
        }
    }
}

/// A URL without user and password, to be shown.
fn without_user(url: &str) -> String {
    let Some((user, rest)) = url.rsplit_once('@') else {
        return url.to_owned();
    };
    let scheme = user
        .split_once("://")
        .map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    format!("{scheme}{}@{rest}", Secret::MASK)
}

#[cfg(feature = "cli")]
impl Config {
    /// Those of [`Config::warnings`] that are about the addresses of bootstrap servers.
    pub(crate) fn bootstrap_warnings(&self) -> Vec<String> {
        unreachable_bootstraps(&self.prefill, &self.decode)
    }
}

/// One warning for each prefill worker with a bootstrap host on loopback, when a decode worker runs on another host:
/// that one would dial itself.
fn unreachable_bootstraps(prefill: &[WorkerSpec], decode: &[WorkerSpec]) -> Vec<String> {
    let elsewhere = decode.iter().any(|worker| !is_loopback(worker.url.host()));
    let dialled = prefill
        .iter()
        .filter_map(|worker| Some((&worker.url, worker.bootstrap.as_ref()?)));
    dialled
        .filter(|(_, bootstrap)| elsewhere && is_loopback(bootstrap.host.trim_matches(['[', ']'])))
        .map(|(url, bootstrap)| {
            format!(
                "prefill {url}: decode workers on other hosts cannot reach its bootstrap host {}, set bootstrap_host",
                bootstrap.host
            )
        })
        .collect()
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
