//! One watch: from the events of the API server to the table of a role. With the client of `client.rs` all of the I/O.

use std::fmt::Debug;
use std::pin::{Pin, pin};
use std::sync::Arc;

use futures_util::{FutureExt, Stream, StreamExt};
use kube::runtime::watcher::{Config, Error, Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Spec;
use super::backoff::Backoff;
use super::client::{self, WATCH_SECONDS};
use super::objects::Kind;
use super::reading::{Reading, of_one_role};
use super::table::{Remark, Step, Table, Workers};
use super::trouble::{Trouble, Troubles};
use crate::fleet::Role;

/// The watch of one selector.
pub(super) struct Watch<'a> {
    /// `None` is asked from each worker.
    pub(super) role: Option<Role>,
    /// `key=value,key=value`.
    pub(super) selector: &'a str,
    /// The other selectors, which must not match the same object.
    pub(super) others: Vec<&'a str>,
    pub(super) spec: &'a Spec,
    pub(super) troubles: &'a Arc<Troubles>,
}

impl Watch<'_> {
    /// Watches for ever. `changed` gets all workers after each change, from the end of the first list on.
    pub(super) async fn run<K>(&self, read: impl Fn(&K) -> Vec<Reading>, changed: impl Fn(Workers))
    where
        K: Kind + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let (role, kind, selector) = (self.role(), K::PLURAL, self.selector);
        let namespace = self.spec.namespace.as_deref().unwrap_or("all");
        log::info!(
            "watching Kubernetes role={role} kind={kind} namespace={namespace} selector=\"{selector}\""
        );
        let mut state = State::default();
        loop {
            let on_watch = {
                let troubles = self.troubles.clone();
                move || troubles.end(role)
            };
            let kubeconfig = self.spec.kubeconfig.as_deref();
            let trouble = match client::connect(kubeconfig, on_watch).await {
                Ok(client) => {
                    let config = Config::default().labels(selector).timeout(WATCH_SECONDS);
                    let events = pin!(watcher(self.api::<K>(client), config));
                    self.follow(events, &read, &mut state, &changed).await
                }
                Err(error) => Trouble::of_request(&error, "list"),
            };
            self.pause::<K>(&trouble, &mut state.backoff).await;
        }
    }

    /// Follows the events until another client is needed.
    async fn follow<K: Kind>(
        &self,
        mut events: Pin<&mut impl Stream<Item = Result<Event<K>, Error>>>,
        read: &impl Fn(&K) -> Vec<Reading>,
        state: &mut State,
        changed: &impl Fn(Workers),
    ) -> Trouble {
        let (mut following, mut changes) = (None, None);
        loop {
            let event = match following.take() {
                Some(event) => event,
                None => events.next().await,
            };
            match event {
                Some(Ok(event)) => {
                    if let Some(remarks) = state.table.take(self.step(event, read)) {
                        changes.get_or_insert_with(Vec::new).extend(remarks);
                    }
                    // The changes of many pods at once are one change of the fleet.
                    following = events.next().now_or_never();
                    if !matches!(following, Some(Some(Ok(_))))
                        && let Some(remarks) = changes.take()
                    {
                        changed(state.table.places());
                        remarks
                            .iter()
                            .for_each(|remark| self.log(remark, K::PLURAL));
                    }
                }
                Some(Err(error)) => {
                    let trouble = Trouble::of(&error);
                    if trouble.ends_watch() {
                        return trouble;
                    }
                    self.pause::<K>(&trouble, &mut state.backoff).await;
                }
                None => return Trouble::Broken("the events have ended".to_owned()),
            }
        }
    }

    fn step<K: Kind>(&self, event: Event<K>, read: &impl Fn(&K) -> Vec<Reading>) -> Step {
        let read = |object: &K| {
            let labels = object.meta().labels.as_ref();
            of_one_role(read(object), labels, &self.others)
        };
        match event {
            Event::Init => Step::Begin,
            Event::InitApply(object) => Step::Listed(key(&object), read(&object)),
            Event::InitDone => Step::End,
            Event::Apply(object) => Step::Applied(key(&object), read(&object)),
            Event::Delete(object) => Step::Deleted(key(&object)),
        }
    }

    /// Says what is wrong, and waits before the next attempt.
    async fn pause<K: Kind>(&self, trouble: &Trouble, backoff: &mut Backoff) {
        self.troubles
            .note(self.role(), trouble, K::PLURAL, K::GROUP);
        let pause = backoff.after_failure(Instant::now(), rand::random());
        tokio::time::sleep(pause).await;
    }

    /// The role as the log has it.
    fn role(&self) -> &'static str {
        self.role.map_or("any", Role::name)
    }

    fn api<K: Kind>(&self, client: Client) -> Api<K> {
        match &self.spec.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        }
    }

    fn log(&self, remark: &Remark, kind: &str) {
        let (role, selector) = (self.role(), self.selector);
        match remark {
            Remark::MatchesNothing => {
                let (namespace, flag) = match &self.spec.namespace {
                    Some(namespace) => (namespace.as_str(), format!("-n {namespace}")),
                    None => ("all", "-A".to_owned()),
                };
                log::warn!(
                    "selector matches nothing role={role} kind={kind} namespace={namespace} selector=\"{selector}\" \
                     what_to_do=\"compare with: kubectl get {kind} {flag} --show-labels\""
                );
            }
            Remark::MatchesAgain => {
                log::info!(
                    "selector matches again role={role} kind={kind} selector=\"{selector}\""
                );
            }
            Remark::Lost { name, why } => {
                log::info!("pod is no worker any more role={role} pod={name} why=\"{why}\"");
            }
            Remark::Mistaken { name, why } => {
                log::warn!("pod cannot be a worker role={role} pod={name} why=\"{why}\"");
            }
        }
    }
}

/// What a watch remembers from one client to the next.
#[derive(Default)]
struct State {
    table: Table,
    backoff: Backoff,
}

fn key(object: &impl Kind) -> String {
    let metadata = object.meta();
    let name = metadata.name.as_deref().unwrap_or_default();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{name}")
}
