//! SGLang's prefill/decode protocol: what a request asks for, the bootstrap fields, the merge of prompt data,
//! several samples per prompt, and how a worker reports a failure.
//!
//! Source: SGLang 0.5.23 (`srt/managers/io_struct.py`, `srt/entrypoints/http_server.py`,
//! `srt/entrypoints/openai/`), and bytes captured from its servers under `tests/fixtures/`.

pub mod bootstrap;
pub mod conceal;
pub mod error_body;
pub mod ids;
pub mod merge;
pub mod options;
pub mod outcome;
mod prefill_data;
mod prompts;
pub mod request;
pub mod samples;
pub mod stored;
pub mod stream_end;
mod worker_response;

pub use bootstrap::{Bootstrap, Fields, Injected, Room, client_part, inject, tail_reserve};
pub use error_body::ErrorShape;
pub use ids::{RequestId, RequestIds};
pub use merge::StreamMerger;
pub use outcome::{WorkerError, document_error, stream_error, tells_of_decode};
pub use prefill_data::PrefillData;
pub use request::{Batch, Facts, Invalid, Merge, Rid, parse};
pub use samples::{Gather, GatherError, GatherFault, GatherStream, Refusal};
pub use stored::{ResponseIdSearch, previous_response};
pub use stream_end::{StreamEnd, StreamError};
pub use worker_response::MergeError;
