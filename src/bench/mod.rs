//! A load generator: many requests to one server, and what they took.
//!
//! `mini-lb bench` is this for users, `benches/end_to_end` measures the balancer and its peers with it. It
//! speaks HTTP through hyper, on one thread, because it shares the machine with what it measures. What a
//! balancer does is not known here: any server with SGLang's generation endpoints can be asked.
//!
//! | file | what lives there |
//! |---|---|
//! | `arrivals` | when requests start: as soon as a user is free, or at a rate |
//! | `client` | one connection, one exchange, and how it can fail |
//! | `load` | the users: [`run`] sends what a [`Load`] asks for |
//! | `tally` | what came of it: histograms and counts |
//! | `prompt` | bodies for SGLang's endpoints, of a wanted length |
//! | `url` | where the server is |
//! | `cli` | `mini-lb bench`: its options |
//! | `compare` | `mini-lb bench`: level by level, alone or beside a second server |
//! | `report` | `mini-lb bench`: what it prints and writes |
//! | `summary` | a tally in numbers: a row of the table, and JSON |
//! | `table`, `plot`, `html` | text in columns; charts as SVG; one page with all of it |

mod arrivals;
pub mod cli;
mod client;
mod compare;
mod html;
mod load;
pub mod plot;
mod prompt;
mod report;
mod summary;
pub mod table;
mod tally;
mod url;

pub use arrivals::{Arrivals, Schedule, Spacing};
pub use client::{Failure, fetch};
pub use html::page;
pub use load::{Ask, Asks, Load, Target, run};
pub use prompt::{Endpoint, InputLength, Prompt};
pub use summary::{Quantiles, Summary};
pub use tally::Tally;
pub use url::{Url, UrlError};
