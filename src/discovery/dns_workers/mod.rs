//! Workers by a name of DNS: every address that the name has is a worker, for as long as it has it.
//!
//! A name is asked again when the TTL of its answer is over, at the earliest after a second and at the latest after a
//! minute. An answer with fewer addresses removes workers, by draining. No answer changes nothing, and neither does one
//! without any address: a name that had workers and has none is more often a zone that is being written than a fleet that
//! has gone.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the task of each name |
//! | `answer.rs` | what an answer means, without I/O |
//! | `resolver.rs` | the questions, by hickory |

mod answer;
mod resolver;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;

use super::registry::{Listed, Registry, Source};
use crate::fleet::Role;
use answer::Answer;
use resolver::NoAnswer;
pub(crate) use resolver::Question;
use resolver::Resolver;

/// Between two questions where the last one was not answered.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The same for a name that has had no answer yet, so that a start is quick.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// A worker at this address with this share, for the list of its name; `None` where its parts cannot be made.
pub(crate) type ListAddress = Box<dyn Fn(SocketAddr, u32) -> Option<Listed> + Send + Sync>;

/// A name whose addresses are workers of one role.
pub(crate) struct DnsName {
    /// As the user wrote it.
    pub(crate) text: String,
    pub(crate) role: Role,
    pub(crate) question: Question,
    pub(crate) listed: ListAddress,
}

/// The names of a configuration.
pub(crate) struct DnsWorkers {
    registry: Arc<Registry>,
    /// Those of the system where there are none.
    servers: Vec<SocketAddr>,
    names: watch::Sender<Arc<Vec<DnsName>>>,
}

/// What is known of a name.
#[derive(Default)]
struct Known {
    answer: Option<Answer>,
    /// Why the last question was not answered.
    failure: Option<NoAnswer>,
}

/// What follows from an answer.
struct Next<'a> {
    /// `None` where the list of workers stays.
    answer: Option<&'a Answer>,
    /// Until the next question.
    pause: Duration,
}

impl DnsWorkers {
    /// These names, asked at these servers, or at those of the system where there are none.
    pub(crate) fn new(
        registry: Arc<Registry>,
        servers: Vec<SocketAddr>,
        names: Vec<DnsName>,
    ) -> Self {
        Self {
            registry,
            servers,
            names: watch::Sender::new(Arc::new(names)),
        }
    }

    /// Other names from now on. The workers of one that is gone drain; one that stays is asked again at once.
    pub(crate) fn set(&self, names: Vec<DnsName>) {
        let old = self.names.send_replace(Arc::new(names));
        let now = self.names.borrow();
        let gone = old
            .iter()
            .filter(|old| now.iter().all(|name| name.text != old.text));
        for name in gone {
            self.registry
                .set(&Source::Dns(name.text.clone()), Vec::new());
        }
    }

    /// Asks for ever.
    pub(crate) async fn run(&self) {
        let mut changes = self.names.subscribe();
        loop {
            let names = changes.borrow_and_update().clone();
            let asking = async {
                if names.is_empty() {
                    return std::future::pending().await;
                }
                let resolver = self.resolver().await;
                let watched = names
                    .iter()
                    .map(|name| self.watch(name, |question| resolver.ask(question)));
                join_all(watched).await;
            };
            tokio::select! {
                () = asking => {}
                // Never an error: the sender is borrowed.
                _ = changes.changed() => {}
            }
        }
    }

    /// The resolver, once the file of the system can be used.
    async fn resolver(&self) -> Resolver {
        loop {
            match Resolver::new(&self.servers) {
                Ok(resolver) => return resolver,
                Err(error) => log::error!("no resolver for names of workers error=\"{error}\""),
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn watch<'a, F>(&self, name: &'a DnsName, mut ask: impl FnMut(&'a Question) -> F)
    where
        F: Future<Output = Result<Answer, NoAnswer>>,
    {
        let mut known = Known::default();
        loop {
            let answered = ask(&name.question).await;
            let next = known.note(name, answered);
            if let Some(answer) = next.answer {
                let endpoints = answer.endpoints.iter();
                let list = endpoints.filter_map(|one| (name.listed)(one.address, one.weight));
                self.registry
                    .set(&Source::Dns(name.text.clone()), list.collect());
            }
            tokio::time::sleep(next.pause).await;
        }
    }
}

impl Known {
    /// Notes an answer, and logs what is new.
    fn note(&mut self, name: &DnsName, answered: Result<Answer, NoAnswer>) -> Next<'_> {
        let (role, text) = (name.role, &name.text);
        match answered {
            Ok(answer) => {
                let recovered = self.failure.take().is_some();
                let old = self.answer.as_ref();
                let changed = old.is_none_or(|old| old.endpoints != answer.endpoints);
                if changed || recovered {
                    let addresses: Vec<_> =
                        answer.endpoints.iter().map(|one| one.address).collect();
                    log::info!(
                        "workers of a name found role={role} name={text} addresses={addresses:?}"
                    );
                }
                let pause = answer.pause();
                let answer = self.answer.insert(answer);
                Next {
                    answer: changed.then_some(answer),
                    pause,
                }
            }
            Err(failure) => {
                if self.failure.as_ref() != Some(&failure) {
                    let kept = self
                        .answer
                        .as_ref()
                        .map_or(0, |answer| answer.endpoints.len());
                    log::warn!(
                        "workers of a name not found role={role} name={text} kept={kept} error=\"{failure}\""
                    );
                }
                self.failure = Some(failure);
                let pause = match self.answer {
                    Some(_) => RETRY_INTERVAL,
                    None => FIRST_INTERVAL,
                };
                Next {
                    answer: None,
                    pause,
                }
            }
        }
    }
}
