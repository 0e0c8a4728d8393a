//! The lists of workers: drafts become [`WorkerSpec`]s, each worker once, each with its keys.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

#[cfg(feature = "cli")]
use super::Config;
use super::draft::{Given, WorkerDraft};
use super::keys::{checked_key, read_key};
use super::resolve::Resolver;
use super::settings::worker_key;
use super::worker::{bracketed, nonzero_port, parse_host};
use super::{BootstrapSpec, Fault, Place, Role, Secret, WorkerKeys, WorkerSpec, WorkerUrl};

impl Resolver<'_> {
    /// Both lists, prefill first, and the keys of workers that have none of their own.
    pub(super) fn fleet(&mut self) -> (Vec<WorkerSpec>, Vec<WorkerSpec>, WorkerKeys) {
        // sglang_router has one key for clients and workers. A problem with it has been reported.
        let of_clients = |resolver: &Self| checked_key(&resolver.given("api_key")?.value).ok();
        let shared = WorkerKeys {
            api: self
                .filed_key("worker_api_key_file")
                .or_else(|| of_clients(self)),
            admin: self.filed_key("worker_admin_api_key_file"),
        };
        let prefill = self.workers(Role::Prefill, &shared);
        let decode = self.workers(Role::Decode, &shared);
        self.each_worker_once(&prefill, &decode);
        let specs = |workers: Vec<Given<WorkerSpec>>| {
            workers.into_iter().map(|worker| worker.value).collect()
        };
        let (prefill, decode): (Vec<_>, Vec<_>) = (specs(prefill), specs(decode));
        self.warnings
            .extend(unreachable_bootstraps(&prefill, &decode));
        (prefill, decode, shared)
    }

    fn workers(&mut self, role: Role, shared: &WorkerKeys) -> Vec<Given<WorkerSpec>> {
        let key = match role {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        };
        let list = self.draft.workers.get(key);
        let drafts = list.map_or(&[][..], |list| &list.value);
        if drafts.is_empty() {
            let place = list.map_or(Place::Default, |list| list.place.clone());
            self.report(&place, Fault::NoWorkers { key });
        }
        drafts
            .iter()
            .filter_map(|draft| self.worker(role, draft, shared))
            .collect()
    }

    fn worker(
        &mut self,
        role: Role,
        draft: &WorkerDraft,
        shared: &WorkerKeys,
    ) -> Option<Given<WorkerSpec>> {
        let own_key = self.worker_key(draft, worker_key::API_KEY, worker_key::API_KEY_FILE);
        let own_admin_key = self.worker_key(
            draft,
            worker_key::ADMIN_API_KEY,
            worker_key::ADMIN_API_KEY_FILE,
        );
        let given = draft.keys.get(worker_key::URL);
        let url = given.and_then(|given| match WorkerUrl::parse(&given.value) {
            Ok(url) => Some(url),
            Err(why) => {
                self.report(
                    &given.place,
                    Fault::Url {
                        found: without_user(&given.value),
                        why,
                    },
                );
                None
            }
        });
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
        let url = url?;
        let bootstrap = (role == Role::Prefill).then(|| BootstrapSpec {
            host: bracketed(host.as_deref().unwrap_or(url.host())),
            port: port.flatten(),
        });
        Some(Given {
            value: WorkerSpec {
                url,
                bootstrap,
                api_key: own_key.or_else(|| shared.api.clone()),
                admin_api_key: own_admin_key.or_else(|| shared.admin.clone()),
                weight: weight.unwrap_or(1),
            },
            place: draft.place.clone(),
        })
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
            (None, Some(given)) => self.key(read_key(Path::new(&given.value)), &given.place),
            (Some(_), Some(given)) => {
                self.report(&given.place, Fault::TwoKeys { text, file });
                None
            }
        }
    }

    fn each_worker_once(&mut self, prefill: &[Given<WorkerSpec>], decode: &[Given<WorkerSpec>]) {
        // Keyed by address: one port cannot serve both http and https.
        let mut seen: HashMap<String, (Role, &Place)> = HashMap::new();
        let all = prefill.iter().map(|worker| (Role::Prefill, worker));
        for (role, worker) in all.chain(decode.iter().map(|worker| (Role::Decode, worker))) {
            let url = &worker.value.url;
            let Some((first_role, first)) = seen.get(&url.authority()).copied() else {
                seen.insert(url.authority(), (role, &worker.place));
                continue;
            };
            let (url, first) = (url.to_string(), Box::new(first.clone()));
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
