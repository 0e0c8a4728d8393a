//! vLLM's side of the simulator: its HTTP, and the transfer of KV blocks by NIXL or Mooncake.
//!
//! Listeners, connections, scripted faults, the journal, the toy model and the life of an item are those of SGLang's
//! workers. What differs is here: a prefill worker computes a request at once, answers with the names of its blocks, and
//! holds them for a lease; a decode worker gets these names in its request and reads the blocks over prefill's side
//! channel. Between workers a small line protocol takes the place of ZeroMQ and NIXL.
//!
//! | file | what lives there |
//! |---|---|
//! | `api` | a request's way from its head to its response |
//! | `routes` | the table of paths |
//! | `body` | the body of a request: JSON, schema, and what all endpoints check |
//! | `request` | a body to a batch of items, one function for each endpoint |
//! | `transfer` | `kv_transfer_params`: read, written, and the rules about them |
//! | `leases` | the blocks that a worker holds for others |
//! | `nixl` | a worker as a party of transfers: its side channel, and its connections to those of others |
//! | `mooncake` | what differs with Mooncake's connector: the bootstrap server, and transfers by their ids |
//! | `rules` | what a balancer must not send |
//! | `choice` | what the choices of all endpoints share: usage, logprobs, reasons of an end |
//! | `chat`, `completions`, `responses`, `messages`, `tokens` | one shape of responses each |
//! | `errors` | every error body |
//! | `management` | the endpoints without generation |
//! | `cli` | the arguments of `mini-lb sim vllm-...` |
//!
//! Source: raw transcripts of a vLLM 0.32.0 pair (`tests/fixtures/vllm-0.32.0`), and its sources where no transcript
//! shows a behaviour.

mod api;
mod body;
mod chat;
mod choice;
pub(super) mod cli;
mod completions;
pub(super) mod errors;
pub(super) mod leases;
mod management;
mod messages;
mod mooncake;
pub(super) mod nixl;
mod request;
mod responses;
mod routes;
mod rules;
mod tokens;
pub(super) mod transfer;

use std::time::Duration;

pub(super) use api::respond;

use super::{Reported, SimOptions};

/// What a vLLM worker has beyond the other options.
///
/// Its side channel listens at [`SimOptions::bootstrap_port`], and [`SimOptions::cache_report`] is
/// `--enable-prompt-tokens-details`.
#[derive(Clone, Debug, PartialEq)]
pub struct VllmOptions {
    /// How its blocks get to another worker.
    pub connector: Connector,
    /// How long a worker holds blocks that no decode worker has read. Source: `kv_lease_duration`, 30 s; with Mooncake
    /// `VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT`, 480 s.
    pub lease: Duration,
    /// How long decode tries to reach a side channel that it has not met before. Source: vLLM 0.32.0, 5 s.
    pub handshake_timeout: Duration,
    /// What decode does when it cannot read the blocks.
    pub failed_load: FailedLoad,
    /// Whether `/inference/v1/...` is served (`--enable-scale-out`).
    pub scale_out: bool,
    /// Whether the endpoints of `VLLM_SERVER_DEV_MODE=1` are served.
    pub dev_mode: bool,
}

/// How blocks get from a prefill worker to a decode worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Connector {
    /// `NixlConnector`: prefill answers with the names of its blocks.
    Nixl,
    /// `MooncakeConnector`: both requests name a transfer, and prefill has a bootstrap server.
    Mooncake,
}

/// What decode does when it cannot read the blocks of a prompt (`kv_load_failure_policy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FailedLoad {
    /// The request fails with 500.
    Fail,
    /// It computes the prompt itself.
    Recompute,
}

impl Default for VllmOptions {
    fn default() -> Self {
        VllmOptions {
            connector: Connector::Nixl,
            lease: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(5),
            failed_load: FailedLoad::Fail,
            scale_out: false,
            dev_mode: false,
        }
    }
}

impl SimOptions {
    /// The connector of a vLLM worker with these options.
    pub(super) fn connector(&self) -> Connector {
        let vllm = self.vllm.as_ref();
        vllm.map_or(Connector::Nixl, |vllm| vllm.connector)
    }

    /// The options of a vLLM worker: [`SimOptions::default`] with vLLM's version and blocks of 16 tokens.
    #[must_use]
    pub fn vllm() -> SimOptions {
        SimOptions::default().of_vllm(VllmOptions::default())
    }

    /// These options for a vLLM worker, with vLLM's version and blocks of 16 tokens.
    #[must_use]
    pub fn of_vllm(self, vllm: VllmOptions) -> SimOptions {
        SimOptions {
            reported: Reported {
                version: "0.32.0".to_owned(),
                page_size: 16,
                transfer_backend: match vllm.connector {
                    Connector::Nixl => "NixlConnector".to_owned(),
                    Connector::Mooncake => "MooncakeConnector".to_owned(),
                },
                ..self.reported
            },
            vllm: Some(vllm),
            ..self
        }
    }
}
