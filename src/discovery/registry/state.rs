//! All entries, and every change of them. Nothing here waits: what takes time is asked for as a [`Task`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use super::entry::{Entry, Learned, Life, Seq, key_of, uuid};
use super::listing::{Conflict, First, Leave, Listed, Source};
use super::task::{Task, TaskId, Until};
use crate::fleet::{Fleet, Members, Role, Worker};

pub(super) struct State {
    pub(super) fleet: Arc<Fleet>,
    tasks: mpsc::UnboundedSender<Task>,
    pub(super) entries: BTreeMap<Seq, Entry>,
    by_key: HashMap<(String, u16), Seq>,
    by_id: HashMap<String, Seq>,
    last: Seq,
    last_task: u64,
    last_joined: u64,
    /// Workers that were removed by the API while a source lists them: it does not bring them back.
    removed: HashSet<(Source, (String, u16))>,
    /// What the last lists of the sources contradict one another in.
    pub(super) conflicts: BTreeMap<(Source, String), Conflict>,
    /// Workers that are members since the last commit.
    joined: Vec<Arc<Worker>>,
    /// Whether the list of members changes in another way.
    members_changed: bool,
}

impl State {
    pub(super) fn new(fleet: Arc<Fleet>, tasks: mpsc::UnboundedSender<Task>) -> Self {
        Self {
            fleet,
            tasks,
            entries: BTreeMap::new(),
            by_key: HashMap::new(),
            by_id: HashMap::new(),
            last: 0,
            last_task: 0,
            last_joined: 0,
            removed: HashSet::new(),
            conflicts: BTreeMap::new(),
            joined: Vec::new(),
            members_changed: false,
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(&seq)
    }

    pub(super) fn at(&self, key: &(String, u16)) -> Option<Seq> {
        self.by_key.get(key).copied()
    }

    pub(super) fn with_id(&self, id: &str) -> Option<Seq> {
        self.by_id.get(id).copied()
    }

    /// Makes the members those that the entries say, in the order in which they joined. To be called after every change.
    pub(super) fn commit(&mut self) {
        let joined = std::mem::take(&mut self.joined);
        if std::mem::take(&mut self.members_changed) {
            let entries = self.entries.values();
            let mut members: Vec<_> = entries
                .filter_map(|entry| Some((entry.joined?, entry.worker.clone())))
                .collect();
            members.sort_unstable_by_key(|(joined, _)| *joined);
            let members = members.into_iter().map(|(_, worker)| worker);
            self.fleet.replace(Members::new(members));
        } else if !joined.is_empty() {
            self.fleet.join(joined);
        }
    }

    /// The whole list of a source.
    pub(super) fn set(&mut self, source: &Source, listed: Vec<Listed>, leave: Leave) {
        let wanted: HashSet<_> = listed.iter().map(|listed| key_of(&listed.parts)).collect();
        let gone: Vec<Seq> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_listed_by(source))
            .filter(|(_, entry)| !wanted.contains(&key_of(entry.worker.parts())))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in gone {
            self.unlist(seq, source, leave);
        }
        self.removed
            .retain(|(by, key)| by != source || wanted.contains(key));
        let (before, others) = std::mem::take(&mut self.conflicts)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|((by, _), _)| by == source);
        self.conflicts = others;
        let mut seen = HashSet::new();
        for listed in listed {
            let key = key_of(&listed.parts);
            // The first wish for a worker counts.
            if !seen.insert(key.clone()) || self.removed.contains(&(source.clone(), key)) {
                continue;
            }
            if let Err(conflict) = self.list(source, listed) {
                let key = (source.clone(), conflict.url.clone());
                // A source that declares the same list again is not logged again.
                if !before.contains_key(&key) {
                    let (role, url) = (conflict.role, &conflict.url);
                    log::error!(
                        "worker is in the lists of both roles, and stays as it was role={role} worker={url} source={source}"
                    );
                }
                self.conflicts.insert(key, conflict);
            }
        }
    }

    /// One worker more in the list of a source, or other wishes for one that it lists.
    ///
    /// # Errors
    /// [`Conflict`]: the worker has the other role, and stays as it is.
    pub(super) fn list(&mut self, source: &Source, listed: Listed) -> Result<Seq, Conflict> {
        let key = key_of(&listed.parts);
        self.removed.remove(&(source.clone(), key.clone()));
        let Some(seq) = self.at(&key) else {
            return Ok(self.begin(source, listed));
        };
        let Some(entry) = self.entries.get_mut(&seq) else {
            return Ok(self.begin(source, listed));
        };
        let role = entry.worker.role();
        let agrees = listed.first.asks_role() || listed.parts.role == role || !entry.knows_role();
        let gone = matches!(entry.life, Life::Leaving | Life::Failed);
        if gone && !(agrees && entry.life == Life::Leaving) {
            // Its requests go on. What is listed now has nothing in common with it but the address.
            self.forget(seq);
            return Ok(self.begin(source, listed));
        }
        if !agrees && !entry.learned.switched {
            return Err(Conflict {
                url: entry.worker.url().to_owned(),
                role,
                sources: entry.shown().sources,
            });
        }
        match entry.listings.iter_mut().find(|(by, _)| by == source) {
            Some((_, old)) => *old = listed,
            None => entry.listings.push((source.clone(), listed)),
        }
        if gone {
            self.serve(seq);
        }
        self.apply(seq);
        Ok(seq)
    }

    fn begin(&mut self, source: &Source, listed: Listed) -> Seq {
        self.last += 1;
        let seq = self.last;
        let worker = self.fleet.new_worker(listed.parts.clone());
        self.by_key.insert(key_of(&listed.parts), seq);
        let first = listed.first;
        let wished = listed.details.id.clone();
        let id = wished.filter(|id| !self.by_id.contains_key(id));
        let id = id.unwrap_or_else(uuid);
        self.by_id.insert(id.clone(), seq);
        self.entries.insert(
            seq,
            Entry {
                id,
                listings: vec![(source.clone(), listed.clone())],
                listed,
                learned: Learned::default(),
                worker,
                life: Life::Pending,
                joined: None,
                problem: None,
                task: None,
                since: Instant::now(),
                turns: watch::Sender::new(()),
            },
        );
        match first {
            First::Serve => self.join(seq),
            _ => self.probe(seq, first),
        }
        seq
    }

    /// The worker is a member and serves.
    fn join(&mut self, seq: Seq) {
        let next = self.last_joined + 1;
        if let Some(entry) = self.turn(seq, Life::Serving)
            && !entry.is_member()
        {
            entry.joined = Some(next);
            let worker = entry.worker.clone();
            self.last_joined = next;
            self.joined.push(worker);
        }
    }

    /// Other wishes of the source that counts for this worker, until it declares the worker anew.
    pub(super) fn amend(&mut self, seq: Seq, amend: impl FnOnce(&mut Listed)) {
        let first = self.entries.get_mut(&seq);
        if let Some((_, listed)) = first.and_then(|entry| entry.listings.first_mut()) {
            amend(listed);
            self.apply(seq);
        }
    }

    /// One source less that lists the worker. Without any it leaves.
    pub(super) fn unlist(&mut self, seq: Seq, source: &Source, leave: Leave) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return;
        };
        entry.listings.retain(|(by, _)| by != source);
        match entry.listings.is_empty() {
            true => self.leave(seq, leave),
            false => self.apply(seq),
        }
    }

    /// Takes the worker out of all lists. Their sources do not bring it back as long as they list it.
    pub(super) fn remove(&mut self, seq: Seq, leave: Leave) {
        if let Some(entry) = self.entries.get_mut(&seq) {
            let key = key_of(entry.worker.parts());
            for (source, _) in entry.listings.drain(..) {
                if source != Source::Api {
                    self.removed.insert((source, key.clone()));
                }
            }
            self.leave(seq, leave);
        }
    }

    fn leave(&mut self, seq: Seq, leave: Leave) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return;
        };
        match leave {
            Leave::Within(time) if entry.is_member() => {
                let until = Instant::now().checked_add(time);
                self.drain(seq, Life::Leaving, until);
            }
            _ => self.forget(seq),
        }
    }

    pub(super) fn forget(&mut self, seq: Seq) {
        if let Some(entry) = self.entries.remove(&seq) {
            self.members_changed |= entry.is_member();
            self.by_key.remove(&key_of(entry.worker.parts()));
            self.by_id.remove(&entry.id);
            let (role, url) = (entry.role_name(), entry.worker.url());
            let in_flight = entry.worker.in_flight();
            log::info!("worker removed role={role} worker={url} in_flight={in_flight}");
        }
    }

    /// The worker gets no new request from now on.
    pub(super) fn drain(&mut self, seq: Seq, life: Life, until: Option<Instant>) {
        let fleet = self.fleet.clone();
        let Some(entry) = self.turn(seq, life) else {
            return;
        };
        fleet.set_draining(&entry.worker, true);
        let (role, url) = (entry.role_name(), entry.worker.url());
        let in_flight = entry.worker.in_flight();
        log::info!("worker drains role={role} worker={url} in_flight={in_flight}");
        self.wait(seq, Until::Idle(until));
    }

    /// The worker serves once it has been probed.
    pub(super) fn probe(&mut self, seq: Seq, first: First) {
        if self.turn(seq, Life::Pending).is_some() {
            self.wait(seq, Until::Well(first));
        }
    }

    /// The worker serves from now on.
    pub(super) fn serve(&mut self, seq: Seq) {
        self.join(seq);
        if let Some(entry) = self.entries.get(&seq) {
            let (role, url) = (entry.role_name(), entry.worker.url());
            log::info!("worker serves role={role} worker={url}");
            if entry.worker.is_draining() {
                self.fleet.set_draining(&entry.worker, false);
            }
        }
    }

    /// Begins another part of a life, which ends the wait of the last one.
    fn turn(&mut self, seq: Seq, life: Life) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&seq)?;
        entry.task = None;
        entry.problem = None;
        entry.turn(life);
        Some(entry)
    }

    fn wait(&mut self, seq: Seq, until: Until) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return;
        };
        let (task, vain) = oneshot::channel();
        self.last_task += 1;
        let id = TaskId(seq, self.last_task);
        entry.task = Some((id, task));
        // An error after the end of the process' tasks, when nothing is waited for any more.
        let _ = self.tasks.send(Task {
            id,
            worker: entry.worker.clone(),
            vain,
            until,
        });
    }

    /// Lets the wishes of the first source count.
    pub(super) fn apply(&mut self, seq: Seq) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return;
        };
        if let Some((_, first)) = entry.listings.first() {
            entry.listed = first.clone();
        }
        let parts = entry.parts();
        if entry.worker.weight() != parts.weight {
            entry.worker.set_weight(parts.weight);
            self.members_changed |= entry.is_member();
        }
        let mut same = entry.worker.parts().clone();
        same.weight = parts.weight;
        if same != parts {
            self.replace(seq);
        }
    }

    /// Another worker for the entry, because it has other parts. Requests of the old one go on.
    fn replace(&mut self, seq: Seq) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return;
        };
        let worker = self.fleet.new_worker(entry.parts());
        if worker.origin() == entry.worker.origin() {
            worker.set_addresses(entry.worker.addresses().all().to_vec());
        }
        // Not a member yet: no lock is needed.
        if entry.worker.is_draining() {
            self.fleet.set_draining(&worker, true);
        }
        entry.worker = worker;
        self.members_changed |= entry.is_member();
        let (life, first) = (entry.life, entry.listed.first);
        // The wait was for the old one.
        match life {
            Life::Pending => self.probe(seq, first),
            Life::Leaving => self.drain(seq, life, None),
            _ => {}
        }
    }

    /// The worker has another role from now on, and is probed. It must be draining.
    pub(super) fn switch(&mut self, seq: Seq, role: Role, bootstrap_port: Option<u16>) {
        let Some(entry) = self.entries.get_mut(&seq) else {
            return;
        };
        entry.learned = Learned {
            role: Some(role),
            switched: true,
            bootstrap_port: bootstrap_port.or(entry.learned.bootstrap_port),
        };
        self.apply(seq);
        let knows_port = self.get(seq).is_some_and(|entry| {
            let bootstrap = entry.worker.bootstrap();
            role == Role::Decode || bootstrap.is_some_and(|bootstrap| bootstrap.port().is_some())
        });
        let first = match knows_port {
            true => First::Probe,
            false => First::Ask { role: false },
        };
        self.probe(seq, first);
    }
}
