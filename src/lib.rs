//! mini-lb: the prefill/decode load balancer for SGLang.
//!
//! A request comes in once and goes out twice: the same body to one prefill worker and one decode
//! worker, with the three `bootstrap_*` fields that let the two meet. Decode's answer goes back to the
//! client as it arrives; what only prefill knows (the logprobs of the prompt) is spliced into it.
//!
//! # The map of the house
//!
//! | room | what lives there | may name |
//! |---|---|---|
//! | [`pd`] | the protocol as pure functions: parse, inject, events, merge, verdict | nothing |
//! | `net` | one HTTP exchange with one worker | nothing |
//! | [`fleet`] | the workers, their load, who serves the next request, live rooms | `pd` |
//! | `proxy` | the corridor: Pingora's `ProxyHttp`, phase by phase | `fleet`, `net`, `pd` |
//! | `ops` | the endpoints without legs | `fleet`, `net`, `pd` |
//! | [`config`] | what the user wrote, and what the program needs | `pd` |
//! | [`sim`] | simulated SGLang workers | `pd` |
//! | [`mod@bench`] | a load generator, for users and for `benches/end_to_end` | `pd` |
//! | [`cli`] | the command line | `bench`, `config`, `sim` |
//! | `server` | the wiring of all of them into Pingora services | all but `bench`, `cli` and `sim` |
//!
//! `tests/rooms.rs` walks the sources and fails when a room names one that it must not know.

pub mod bench;
pub mod cli;
pub mod config;
pub mod fleet;
pub mod pd;
pub mod sim;

mod net;
mod ops;
mod proxy;
mod server;

pub use config::MiniLbConfig;
pub use server::{Handle, MiniLoadBalancer, StartError, run};
