//! The engines of a prefill worker, by which decode asks it for blocks with Mooncake.
//!
//! They are asked of the worker elsewhere, and forgotten with any sign that it may have been started anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Worker;
use crate::pd::{Bootstrap, KvEngines};

/// The port of a server that the configuration does not name. Source: vLLM 0.32.0, `VLLM_MOONCAKE_BOOTSTRAP_PORT`.
const DEFAULT_PORT: u16 = 8998;

/// `None` where they are not known, as with every other connector.
#[derive(Default)]
pub(super) struct KnownEngines(Mutex<Option<Arc<KvEngines>>>);

impl KnownEngines {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<KvEngines>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// `HOST:PORT` of the server that tells its engines, as decode workers reach it.
    pub(crate) fn bootstrap_server(&self) -> String {
        let bootstrap = self.bootstrap();
        let host = bootstrap.map_or(self.origin().host.as_str(), Bootstrap::host);
        let port = bootstrap.and_then(Bootstrap::port);
        format!("{host}:{}", port.unwrap_or(DEFAULT_PORT))
    }

    /// Its engines, where it has told them.
    pub(crate) fn kv_engines(&self) -> Option<Arc<KvEngines>> {
        self.kv_engines.lock().clone()
    }

    /// Notes its engines.
    pub(crate) fn note_kv_engines(&self, engines: Arc<KvEngines>) {
        *self.kv_engines.lock() = Some(engines);
    }

    /// Its engines are to be asked for again.
    pub(crate) fn forget_kv_engines(&self) {
        *self.kv_engines.lock() = None;
    }
}
