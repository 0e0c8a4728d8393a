//! A load generator: sends many requests to one server and measures throughput and latencies.
//!
//! Users run it as `mini-lb bench`; `benches/end_to_end` measures the balancer and its peers with it. It speaks HTTP
//! through hyper, on one thread, because it shares the machine with the server that it measures. It knows nothing of
//! balancers: any server with SGLang's generation endpoints will do.
//!
//! | file | what lives there |
//! |---|---|
//! | `arrivals` | when requests start: as soon as a user is free, at a rate, or at the times of a trace |
//! | `client` | one connection, one exchange on it, and its failures |
//! | `load` | the users: [`run`] sends the requests of a [`Load`] |
//! | `tally` | the results of a load: histograms and counts |
//! | `summary` | a tally as numbers: a row of the table, and JSON |
//! | `prompt` | request bodies for SGLang's endpoints, of a given length |
//! | `trace` | requests of a recorded trace: reading, scaling, and their bodies |
//! | `url` | the server's URL and its addresses |
//! | `table`, `plot`, `html` | text in columns; charts as SVG; one page with both |
//! | `cli` | `mini-lb bench`, from its arguments to the report |
//! | `args`, `error` | its command line; why it has nothing to report |
//! | `compare` | its levels of concurrency, alone or beside a second server |
//! | `report`, `charts` | its output: table, JSON, page; the page's charts |

mod args;
mod arrivals;
mod charts;
pub mod cli;
mod client;
mod compare;
mod context;
mod error;
mod html;
mod load;
pub mod plot;
mod prompt;
mod report;
mod summary;
pub mod table;
mod tally;
mod trace;
mod url;

pub use arrivals::{Arrivals, Schedule, Spacing};
pub use client::{Failure, fetch};
pub use html::page;
pub use load::{Load, RequestSource, RequestSpec, Target, run};
pub use prompt::{Endpoint, InputLength, Prompt};
pub use summary::{Quantiles, Summary};
pub use tally::{Prompts, Slo, Tally};
pub use trace::{Cut, Trace, TraceError, TracePrompt, TraceRequest, Words};
pub use url::{Url, UrlError};
