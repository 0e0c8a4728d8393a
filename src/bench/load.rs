//! The users: each sends one request at a time, until there have been enough.
//!
//! All of them run on the thread that calls [`run`]; they share a pool of connections, so that the one that
//! was used last is used next and none grows old.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use http::{Method, Request};
use http_body_util::Full;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{JoinSet, LocalSet};

use super::arrivals::{Arrivals, Schedule};
use super::client::{Answer, Connection, Failure, nanoseconds};
use super::tally::Tally;

/// How much is asked.
#[derive(Debug, Clone)]
pub struct Load {
    /// Requests at the same time, at most.
    pub concurrency: usize,
    /// When they start.
    pub arrivals: Arrivals,
    /// No request starts after so many.
    pub requests: u64,
    /// No request starts after this time.
    pub time: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// Of the arrivals.
    pub seed: u64,
}

/// Who is asked for what.
pub struct Target {
    /// The server. Several are asked in turn.
    pub addresses: Vec<SocketAddr>,
    /// The value of the header `host`.
    pub host: HeaderValue,
    /// Path and query.
    pub path: http::Uri,
    /// Headers of every request.
    pub headers: HeaderMap,
    /// What each request asks.
    pub asks: Asks,
}

/// The request with this number; the numbers of a load begin at 0.
pub type Asks = Box<dyn Fn(u64) -> Ask>;

/// One request.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// JSON.
    pub body: Bytes,
    /// Headers of this request only.
    pub headers: HeaderMap,
    /// Another worker, which gets the same request at the same time; its answer is read and not counted, but
    /// the request fails when it does.
    pub beside: Option<SocketAddr>,
}

/// Sends the load, and returns when the last answer is there. `progress` is told of every request that ended, and
/// of every event of a stream but the first. A load that is dropped closes its connections.
pub async fn run(target: Target, load: &Load, progress: impl Fn(&Tally) + 'static) -> Tally {
    let users = load.concurrency.max(1);
    let shared = Rc::new(Shared {
        started: Instant::now(),
        load: load.clone(),
        target,
        given: Cell::new(0),
        schedule: RefCell::new(Schedule::new(load.arrivals)),
        draws: RefCell::new(SmallRng::seed_from_u64(load.seed)),
        idle: RefCell::default(),
        tally: RefCell::default(),
        progress: Box::new(progress),
    });
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut tasks = JoinSet::new();
            for user in 0..users {
                tasks.spawn_local(shared.clone().user(user));
            }
            while tasks.join_next().await.is_some() {}
        })
        .await;
    let mut tally = shared.tally.take();
    tally.elapsed = shared.started.elapsed();
    tally
}

/// What the users share.
struct Shared {
    started: Instant,
    load: Load,
    target: Target,
    given: Cell<u64>,
    schedule: RefCell<Schedule>,
    draws: RefCell<SmallRng>,
    /// Open connections that nobody uses, the last one used at the end.
    idle: RefCell<HashMap<SocketAddr, Vec<Connection>>>,
    tally: RefCell<Tally>,
    progress: Box<dyn Fn(&Tally)>,
}

impl Shared {
    async fn user(self: Rc<Self>, user: usize) {
        while let Some((number, intended)) = self.turn() {
            let mut started = Instant::now();
            if let Some(intended) = intended {
                if intended > started {
                    tokio::time::sleep_until(intended.into()).await;
                }
                let late = Instant::now().saturating_duration_since(intended);
                self.tally
                    .borrow_mut()
                    .late
                    .saturating_record(nanoseconds(late));
                started = intended;
            }
            self.request(user, number, started).await;
        }
    }

    /// The number of the next request and when it is to start; `None` when there have been enough.
    fn turn(&self) -> Option<(u64, Option<Instant>)> {
        let number = self.given.get();
        if number >= self.load.requests {
            return None;
        }
        let draw = || self.draws.borrow_mut().random::<f64>();
        let at = self.schedule.borrow_mut().next(draw);
        if at.unwrap_or_else(|| self.started.elapsed()) >= self.load.time {
            // All that follow are later.
            self.given.set(u64::MAX);
            return None;
        }
        self.given.set(number + 1);
        Some((number, at.map(|at| self.started + at)))
    }

    async fn request(&self, user: usize, number: u64, started: Instant) {
        let ask = (self.target.asks)(number);
        let address = self.target.addresses[user % self.target.addresses.len()];
        self.tally.borrow_mut().sent_bytes += ask.body.len() as u64;
        let mut answer = Answer::awaited();
        let both = async {
            let Some(beside) = ask.beside else {
                return self.exchange(address, &ask, &mut answer, true).await;
            };
            let mut dropped = Answer::awaited();
            let (shown, other) = tokio::join!(
                self.exchange(address, &ask, &mut answer, true),
                self.exchange(beside, &ask, &mut dropped, false)
            );
            shown.and(other)
        };
        let result = tokio::time::timeout(self.load.request_timeout, both)
            .await
            .unwrap_or(Err(Failure::Timeout));
        let mut tally = self.tally.borrow_mut();
        tally.finish(started, result, answer);
        (self.progress)(&tally);
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        ask: &Ask,
        answer: &mut Answer,
        counted: bool,
    ) -> Result<(), Failure> {
        let gap = |nanoseconds| {
            if counted {
                let mut tally = self.tally.borrow_mut();
                tally.gap(nanoseconds);
                (self.progress)(&tally);
            }
        };
        loop {
            let mut connection = self.connection(address).await?;
            let was_used = connection.served;
            let request = self.http_request(ask);
            let result = connection.exchange(request, answer, gap).await;
            if connection.is_open() {
                let mut idle = self.idle.borrow_mut();
                idle.entry(address).or_default().push(connection);
            }
            // The server closed an idle connection just then: no fault of anybody.
            if result == Err(Failure::Lost) && was_used {
                continue;
            }
            return result;
        }
    }

    async fn connection(&self, address: SocketAddr) -> Result<Connection, Failure> {
        let pooled = self.idle.borrow_mut().get_mut(&address).and_then(Vec::pop);
        if let Some(connection) = pooled.filter(Connection::is_open) {
            return Ok(connection);
        }
        self.tally.borrow_mut().connections += 1;
        Connection::open(address).await
    }

    fn http_request(&self, ask: &Ask) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.target.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, ask.body.len().into());
        for given in [&self.target.headers, &ask.headers] {
            for (name, value) in given {
                headers.insert(name, value.clone());
            }
        }
        request
    }
}
