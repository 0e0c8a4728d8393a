//! A worker as a party of KV transfers: its side channel, and its connections to those of others.
//!
//! One line of JSON each way. A reader says hello first, learns the worker's engine id, reads blocks, and says which
//! request's blocks it needs no longer:
//!
//! ```text
//! decode -> prefill:  "hello" | {"read":..} | {"renew":..} | {"release":..}
//! prefill -> decode:  {"engine":..} | {"kv":..} | "lost" | "done"
//! ```
//!
//! Source of the sequence and of its times: vLLM 0.32.0, `kv_connector/v1/nixl/base_worker.py`; transcripts 23, 25.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::leases::{Leases, Standing};
use super::transfer::Remote;
use super::{Connector, mooncake};
use crate::sim::SimOptions;
use crate::sim::chaos::ItemFault;
use crate::sim::engine::Engine;
use crate::sim::journal::{Journal, LeaseState};
use crate::sim::model::Context;
use crate::sim::server_info::token_capacity;

/// The part of one worker in KV transfers.
pub(crate) struct Nixl {
    /// A new one for every start of a worker, as in vLLM.
    pub(crate) engine_id: String,
    /// Address of the side channel, as prefill's params name it.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) leases: Leases,
    /// Number of transfers that failed.
    pub(crate) failed: AtomicU64,
    connections: Mutex<HashMap<String, Vec<Connection>>>,
    /// The engines that this worker has met.
    known: Mutex<HashSet<String>>,
}

/// A question over the side channel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    Hello,
    Read {
        request: String,
        blocks: Vec<u64>,
        tokens: usize,
        by: String,
        fingerprint: u64,
    },
    Renew {
        request: String,
    },
    /// `read` is whether the blocks were read.
    Release {
        request: String,
        by: String,
        read: bool,
    },
}

/// An answer over the side channel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Engine {
        id: String,
    },
    Kv {
        context: Context,
        standing: Standing,
        same_prompt: bool,
    },
    /// A scripted fault.
    Lost,
    Done,
}

/// What a reader has got.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The state of the model after all but the last token of the prompt.
    pub(crate) context: Context,
    pub(crate) standing: Standing,
    pub(crate) same_prompt: bool,
}

/// The blocks could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unreachable {
    /// How long it takes until this is noticed.
    pub(crate) after: Duration,
}

struct Connection {
    engine_id: String,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Nixl {
    /// `address` is that of the side channel, which serves already.
    pub(crate) fn of(options: &SimOptions, journal: Journal, address: SocketAddr) -> Nixl {
        let blocks = token_capacity(options) / block_size(options);
        Nixl {
            engine_id: uuid(),
            host: address.ip().to_string(),
            port: address.port(),
            leases: Leases::new(journal, blocks),
            failed: AtomicU64::new(0),
            connections: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Reads the blocks of a prompt whose fingerprint the reader `by` knows.
    ///
    /// # Errors
    /// When the worker cannot be reached, is another engine, or has lost the blocks.
    pub(crate) async fn read(
        &self,
        remote: &Remote,
        by: &str,
        fingerprint: u64,
        handshake_timeout: Duration,
    ) -> Result<Loaded, Unreachable> {
        let ask = Ask::Read {
            request: remote.request_id.clone(),
            blocks: remote.blocks.clone(),
            tokens: remote.tokens,
            by: by.to_owned(),
            fingerprint,
        };
        let asking = self.ask(remote, &ask);
        match tokio::time::timeout(handshake_timeout, asking).await {
            Ok(Some(Answer::Kv {
                context,
                standing,
                same_prompt,
            })) => Ok(Loaded {
                context,
                standing,
                same_prompt,
            }),
            Ok(Some(_)) | Err(_) => Err(Unreachable {
                after: Duration::ZERO,
            }),
            // A transfer from an engine that it has met fails at once, a first handshake after its timeout.
            Ok(None) => Err(Unreachable {
                after: match self.known().contains(&remote.engine_id) {
                    true => Duration::ZERO,
                    false => handshake_timeout,
                },
            }),
        }
    }

    /// How side channels know one request of this worker.
    pub(crate) fn reader(&self, request: u64) -> String {
        format!("{}/{request}", self.engine_id)
    }

    /// Makes the lease of blocks that are waited for last longer.
    pub(crate) async fn renew(&self, remote: &Remote) {
        let request = remote.request_id.clone();
        let _ = self.ask(remote, &Ask::Renew { request }).await;
    }

    /// Says that the blocks are not needed any longer.
    pub(crate) async fn release(&self, remote: &Remote, by: &str, read: bool) {
        let ask = Ask::Release {
            request: remote.request_id.clone(),
            by: by.to_owned(),
            read,
        };
        let _ = self.ask(remote, &ask).await;
    }

    /// None when the side channel does not answer. An answer of another engine is [`Answer::Lost`].
    async fn ask(&self, remote: &Remote, ask: &Ask) -> Option<Answer> {
        let address = remote.address();
        let idle = self.connections().get_mut(&address).and_then(Vec::pop);
        let mut fresh = idle.is_none();
        let mut connection = match idle {
            Some(idle) => idle,
            None => Connection::open(&address).await?,
        };
        loop {
            if connection.engine_id != remote.engine_id && fresh {
                return Some(Answer::Lost);
            }
            let answer = match connection.engine_id == remote.engine_id {
                true => connection.exchange(ask).await,
                false => None,
            };
            if let Some(answer) = answer {
                self.known().insert(remote.engine_id.clone());
                let mut connections = self.connections();
                connections.entry(address).or_default().push(connection);
                return Some(answer);
            }
            if fresh {
                return None;
            }
            // The worker may have been started again since.
            fresh = true;
            connection = Connection::open(&address).await?;
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<String, Vec<Connection>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    async fn open(address: &str) -> Option<Connection> {
        let stream = TcpStream::connect(address).await.ok()?;
        let _ = stream.set_nodelay(true); // only latency
        let (reader, writer) = stream.into_split();
        let mut connection = Connection {
            engine_id: String::new(),
            reader: BufReader::new(reader),
            writer,
        };
        match connection.exchange(&Ask::Hello).await? {
            Answer::Engine { id } => connection.engine_id = id,
            _ => return None,
        }
        Some(connection)
    }

    async fn exchange(&mut self, ask: &Ask) -> Option<Answer> {
        let mut line = serde_json::to_string(ask).ok()?;
        line.push('\n');
        self.writer.write_all(line.as_bytes()).await.ok()?;
        line.clear();
        self.reader.read_line(&mut line).await.ok()?;
        serde_json::from_str(&line).ok()
    }
}

/// Serves one connection to the side channel until it ends.
pub(crate) async fn serve(stream: TcpStream, engine: Arc<Engine>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let is_bootstrap = engine.options.connector() == Connector::Mooncake;
    while let (Ok(Some(line)), Some(nixl)) = (lines.next_line().await, &engine.nixl) {
        if is_bootstrap && line.starts_with("GET ") {
            return mooncake::respond(&line, &mut lines, &mut writer, &nixl.engine_id).await;
        }
        let Ok(ask) = serde_json::from_str(&line) else {
            return;
        };
        let Some(answer) = nixl.answer(&engine, ask) else {
            // A process that is gone says nothing.
            engine.crash();
            return;
        };
        let mut line = serde_json::to_string(&answer).unwrap_or_default();
        line.push('\n');
        if writer.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Nixl {
    /// None when a scripted fault takes the worker down.
    fn answer(&self, engine: &Engine, ask: Ask) -> Option<Answer> {
        Some(match ask {
            Ask::Hello => Answer::Engine {
                id: self.engine_id.clone(),
            },
            Ask::Read {
                request,
                blocks,
                tokens,
                by,
                fingerprint,
            } => {
                let found = self.leases.look(&request, &blocks, &by, fingerprint);
                match found.held.as_ref().map(|held| held.fault) {
                    Some(ItemFault::CrashInTransfer) => return None,
                    Some(ItemFault::LoseKv) => Answer::Lost,
                    _ => Answer::Kv {
                        context: found.context(engine.options.seed, tokens),
                        standing: found.standing,
                        same_prompt: found.same_prompt,
                    },
                }
            }
            Ask::Renew { request } => {
                // Source: vLLM 0.32.0, heartbeats every lease/6, each of which adds two thirds of a lease.
                self.leases.renew(&request, engine.lease() * 2 / 3);
                Answer::Done
            }
            Ask::Release { request, by, read } => {
                let how = match read {
                    true => LeaseState::Read,
                    false => LeaseState::Released,
                };
                self.leases.release(&request, &by, how);
                Answer::Done
            }
        })
    }
}

/// Tokens of a block.
pub(crate) fn block_size(options: &SimOptions) -> usize {
    usize::try_from(options.reported.page_size)
        .unwrap_or(1)
        .max(1)
}

/// A random UUID of version 4.
fn uuid() -> String {
    let bits = rand::random::<u128>();
    let hex = format!("{bits:032x}");
    format!(
        "{}-{}-4{}-{:x}{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        8 + (bits >> 60 & 3),
        &hex[17..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_id_is_a_uuid() {
        let id = uuid();
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        assert_ne!(id, uuid());
    }
}
