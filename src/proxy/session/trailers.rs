//! The end of a response that has trailers: decode's, where the client takes them.
//!
//! They go out behind everything else, with the end. A response that is framed here gets chunks for them, because a length
//! leaves no place for trailers over HTTP/1.1. The response of a sample has none: it becomes a part of another one.

use http::HeaderMap;
use pingora::Result;
use pingora::protocols::http::HttpTask;

use super::{Installed, ReplacedSession};
use crate::client;

impl Installed {
    /// Has the response end with these trailers, where its client takes them.
    pub(in super::super) fn note_trailers(&self, trailers: &HeaderMap) {
        self.0.trailers.get_or_init(|| Box::new(trailers.clone()));
    }
}

impl ReplacedSession {
    /// Makes the end of the response a task of its own, if trailers come before it. Whether that is so.
    pub(super) fn part_end(&self, tasks: &mut Vec<HttpTask>) -> bool {
        let client = self.client();
        if self.shared.trailers.get().is_none()
            || client.is_subrequest()
            || !client::takes_trailers(client.req_header())
        {
            return false;
        }
        let mut ends = false;
        for task in tasks.iter_mut() {
            match task {
                HttpTask::Body(_, end) => ends |= std::mem::take(end),
                HttpTask::Done => ends = true,
                _ => {}
            }
        }
        if ends {
            tasks.retain(|task| !matches!(task, HttpTask::Done));
            tasks.push(HttpTask::Done);
        }
        ends
    }

    /// Writes tasks whose end is one of its own, and the trailers with it. Whether the response has ended.
    pub(super) async fn write_trailers_last(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        tasks.pop();
        if !tasks.is_empty() {
            self.write_tasks(tasks).await?;
        }
        let last = match self.shared.trailers.get() {
            Some(trailers) => client::end_with(self.client(), trailers),
            None => HttpTask::Done,
        };
        self.write_tasks(vec![last]).await
    }

    async fn write_tasks(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if self.sent.events.is_complete() {
            self.write_end(tasks).await
        } else {
            self.client_mut().response_duplex_vec(tasks).await
        }
    }
}
