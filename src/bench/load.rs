//! Runs a load: concurrent users that each send one request at a time, until the load's requests or time are used up.
//!
//! All users run on the thread that calls [`run`]. They share a pool of connections, of which the most recently used
//! one comes first, so that surplus connections expire.

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
use super::client::{Connection, Failure, Received, nanoseconds};
use super::tally::{Slo, Tally};

/// How many requests, how fast, for how long.
#[derive(Debug, Clone)]
pub struct Load {
    /// Number of users: the upper bound of concurrent requests.
    pub concurrency: usize,
    /// When requests start: on schedule, or when a user is free.
    pub arrivals: Arrivals,
    /// Number of requests after which none starts.
    pub requests: u64,
    /// Time after which no request starts.
    pub time: Duration,
    /// Timeout of one request.
    pub request_timeout: Duration,
    /// Seed of the arrivals.
    pub seed: u64,
    /// What a request must keep to count as good.
    pub slo: Slo,
}

/// The server and the requests for it.
pub struct Target {
    /// Addresses of the server; user `i` takes the one at `i` modulo their number.
    pub addresses: Vec<SocketAddr>,
    /// Header `host` of every request.
    pub host: HeaderValue,
    /// Path and query of every request.
    pub path: http::Uri,
    /// Headers of every request.
    pub headers: HeaderMap,
    /// The body and headers of each request.
    pub requests: RequestSource,
}

/// Gives the request with a number; numbers start at 0.
pub type RequestSource = Box<dyn Fn(u64) -> RequestSpec>;

/// The parts of a request that differ from one to the next.
#[derive(Debug, Clone, Default)]
pub struct RequestSpec {
    /// Body, as JSON.
    pub body: Bytes,
    /// Headers in addition to [`Target::headers`].
    pub headers: HeaderMap,
    /// A second server that gets the same request at the same time. Its response is read and not counted, but its
    /// failure fails the request.
    pub beside: Option<SocketAddr>,
}

/// Sends the load and returns when its last response is complete. `progress` is called after every request and after
/// every event of a stream but the first. Dropping the future closes all connections.
pub async fn run(target: Target, load: &Load, progress: impl Fn(&Tally) + 'static) -> Tally {
    let users = load.concurrency.max(1);
    let shared = Rc::new(Shared {
        started: Instant::now(),
        load: load.clone(),
        target,
        next: Cell::new(0),
        schedule: RefCell::new(Schedule::new(load.arrivals.clone())),
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

/// State that all users share.
struct Shared {
    started: Instant,
    load: Load,
    target: Target,
    /// Number of the next request.
    next: Cell<u64>,
    schedule: RefCell<Schedule>,
    draws: RefCell<SmallRng>,
    /// Idle connections, the most recently used at the end.
    idle: RefCell<HashMap<SocketAddr, Vec<Connection>>>,
    tally: RefCell<Tally>,
    progress: Box<dyn Fn(&Tally)>,
}

impl Shared {
    async fn user(self: Rc<Self>, user: usize) {
        while let Some((number, intended)) = self.next_request() {
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

    /// Number and scheduled start of the next request; `None` when the load is used up.
    fn next_request(&self) -> Option<(u64, Option<Instant>)> {
        let number = self.next.get();
        if number >= self.load.requests {
            return None;
        }
        let draw = || self.draws.borrow_mut().random::<f64>();
        let at = self.schedule.borrow_mut().next(draw);
        if at.unwrap_or_else(|| self.started.elapsed()) >= self.load.time {
            // Later requests are scheduled even later.
            self.next.set(u64::MAX);
            return None;
        }
        self.next.set(number + 1);
        Some((number, at.map(|at| self.started + at)))
    }

    async fn request(&self, user: usize, number: u64, started: Instant) {
        let spec = (self.target.requests)(number);
        let address = self.target.addresses[user % self.target.addresses.len()];
        self.tally.borrow_mut().sent_bytes += spec.body.len() as u64;
        let mut received = Received::nothing();
        let both = async {
            let Some(beside) = spec.beside else {
                return self.exchange(address, &spec, &mut received, true).await;
            };
            let mut uncounted = Received::nothing();
            let (shown, other) = tokio::join!(
                self.exchange(address, &spec, &mut received, true),
                self.exchange(beside, &spec, &mut uncounted, false)
            );
            shown.and(other)
        };
        let result = tokio::time::timeout(self.load.request_timeout, both)
            .await
            .unwrap_or(Err(Failure::Timeout));
        let mut tally = self.tally.borrow_mut();
        tally.finish(started, result, received, self.load.slo);
        (self.progress)(&tally);
    }

    async fn exchange(
        &self,
        address: SocketAddr,
        spec: &RequestSpec,
        received: &mut Received,
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
            let request = self.http_request(spec);
            let result = connection.exchange(request, received, gap).await;
            if connection.is_open() {
                let mut idle = self.idle.borrow_mut();
                idle.entry(address).or_default().push(connection);
            }
            // The server closed the idle connection at the same moment, which is not a failure: try again.
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

    fn http_request(&self, spec: &RequestSpec) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(spec.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.target.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, spec.body.len().into());
        for given in [&self.target.headers, &spec.headers] {
            for (name, value) in given {
                headers.insert(name, value.clone());
            }
        }
        request
    }
}
