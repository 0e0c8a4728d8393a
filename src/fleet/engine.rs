//! The engine of all workers, where it is known from the start, and where the workers tell it.
//!
//! A fleet has workers of one engine: the first round of questions in which all that respond agree decides it for the life
//! of the process. The questions themselves are asked elsewhere.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::{Fleet, Role, Worker};
use crate::pd::Engine;

/// The engine of the workers of a fleet.
#[derive(Debug, Default)]
pub(super) struct EngineOfAll {
    known: OnceLock<Engine>,
    /// How many workers told each engine in the last round that decided nothing.
    told: [AtomicUsize; 2],
}

impl EngineOfAll {
    /// One that is known from the start; `None` is asked.
    pub(super) fn new(known: Option<Engine>) -> Self {
        Self {
            known: known.map(OnceLock::from).unwrap_or_default(),
            told: Default::default(),
        }
    }

    pub(super) fn known(&self) -> Option<Engine> {
        self.known.get().copied()
    }

    pub(super) fn unknown(&self) -> Option<UnknownEngine> {
        let [sglang, vllm] =
            [&self.told[0], &self.told[1]].map(|told| told.load(Ordering::Relaxed));
        match (self.known(), sglang, vllm) {
            (Some(_), ..) => None,
            (None, 0, _) | (None, _, 0) => Some(UnknownEngine::NotTold),
            (None, sglang, vllm) => Some(UnknownEngine::Mixed { sglang, vllm }),
        }
    }

    /// Notes how many workers have told each engine in one round. Those of one engine alone decide; true when that is new.
    pub(super) fn note(&self, sglang: usize, vllm: usize) -> bool {
        self.told[0].store(sglang, Ordering::Relaxed);
        self.told[1].store(vllm, Ordering::Relaxed);
        let decided = match (sglang, vllm) {
            (1.., 0) => Engine::Sglang,
            (0, 1..) => Engine::Vllm,
            _ => return false,
        };
        self.known.set(decided).is_ok()
    }
}

/// Why the engine of the workers is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownEngine {
    /// No worker has responded to the question.
    NotTold,
    /// So many workers are of each engine.
    Mixed {
        /// Workers of SGLang.
        sglang: usize,
        /// Workers of vLLM.
        vllm: usize,
    },
}

impl fmt::Display for UnknownEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnknownEngine::NotTold => f.write_str(
                "the engine of the workers is not known yet (engine: auto), because no worker has told it",
            ),
            UnknownEngine::Mixed { sglang, vllm } => write!(
                f,
                "the workers are of different engines (engine: auto), {sglang} of sglang and {vllm} of vllm, and one balancer \
                 has workers of one engine; the log names them"
            ),
        }
    }
}

/// What makes a worker get no request, though it serves: it is not what it is listed as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mismatch {
    /// Nothing.
    #[default]
    None,
    /// It says that it has the other role.
    Role,
    /// It is of another engine than the other workers.
    Engine,
}

impl Mismatch {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Role => 1,
            Self::Engine => 2,
        }
    }

    pub(super) const fn of(number: u8) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Role,
            _ => Self::Engine,
        }
    }
}

impl Fleet {
    /// The same fleet of this engine; `None` is asked of its workers, by [`Fleet::note_engines`].
    pub fn of_engine(mut self, engine: Option<Engine>) -> Self {
        self.engine = EngineOfAll::new(engine);
        self
    }

    /// The engine of all workers; `None` while it is not known.
    pub fn engine(&self) -> Option<Engine> {
        self.engine.known()
    }

    /// Why the engine is not known; `None` where it is.
    pub fn unknown_engine(&self) -> Option<UnknownEngine> {
        self.engine.unknown()
    }

    /// Notes how many workers have told each engine in one round of questions. Those of one engine alone decide.
    pub fn note_engines(&self, sglang: usize, vllm: usize) {
        if self.engine.note(sglang, vllm)
            && let Some(engine) = self.engine()
        {
            log::info!("engine of the workers engine={}", engine.name());
        }
    }

    /// Notes the engine and the role that a worker says it has; `None` where it does not tell, which contradicts nothing. A
    /// worker with another role than its own, or of another engine than the others, gets no request.
    pub fn note_identity(
        self: &Arc<Self>,
        worker: &Worker,
        engine: Option<Engine>,
        told: Option<Role>,
    ) {
        let (role, url) = (worker.role(), worker.url());
        let other_engine = engine.filter(|engine| self.engine().is_some_and(|own| own != *engine));
        let other_role = told.filter(|told| *told != role);
        let mismatch = match (other_engine, other_role) {
            (Some(_), _) => Mismatch::Engine,
            (None, Some(_)) => Mismatch::Role,
            (None, None) => Mismatch::None,
        };
        if worker.note_mismatch(mismatch) && self.members.borrow().contains(worker.id()) {
            match (other_engine, other_role) {
                (Some(other), _) => log::error!(
                    "worker is of another engine than this balancer, and gets no request role={role} its_engine={} worker={url}",
                    other.name()
                ),
                (None, Some(told)) => log::error!(
                    "worker is listed with another role than its own, and gets no request role={role} own_role={told} worker={url}"
                ),
                (None, None) => {
                    log::info!("worker is what it is listed as again role={role} worker={url}");
                }
            }
        }
        self.serve_waiting();
    }

    /// How many members of this role are not what they are listed as, in this way.
    pub fn mismatched(&self, role: Role, mismatch: Mismatch) -> usize {
        let members = self.members.borrow();
        let of_role = members.of(role).iter();
        of_role
            .filter(|worker| worker.mismatch() == mismatch)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_agree_decide_the_engine_once() {
        let engine = EngineOfAll::new(None);
        assert_eq!(engine.unknown(), Some(UnknownEngine::NotTold));
        assert!(!engine.note(0, 0));
        assert!(!engine.note(1, 2));
        let mixed = UnknownEngine::Mixed { sglang: 1, vllm: 2 };
        assert_eq!((engine.known(), engine.unknown()), (None, Some(mixed)));
        assert!(engine.note(0, 2));
        assert_eq!(
            (engine.known(), engine.unknown()),
            (Some(Engine::Vllm), None)
        );
        // What comes later is of another engine, and decides nothing.
        assert!(!engine.note(3, 0));
        assert_eq!(engine.known(), Some(Engine::Vllm));
    }

    #[test]
    fn an_engine_of_the_configuration_is_not_asked() {
        let engine = EngineOfAll::new(Some(Engine::Sglang));
        assert_eq!(
            (engine.known(), engine.unknown()),
            (Some(Engine::Sglang), None)
        );
    }

    #[test]
    fn a_mismatch_survives_its_number() {
        for mismatch in [Mismatch::None, Mismatch::Role, Mismatch::Engine] {
            assert_eq!(Mismatch::of(mismatch.number()), mismatch);
        }
    }
}
