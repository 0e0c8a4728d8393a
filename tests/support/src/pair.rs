//! One prefill worker, one decode worker, the balancer in front of them, and a client: what most tests start with.
//!
//! The test plays the workers and the client; only the balancer acts by itself.

use mini_lb::MiniLbConfig;
use mini_lb::pd::Role;

use crate::{Answer, Balancer, Client, Exchange, Worker, config, post};

/// A running pair. The balancer stops when this is dropped.
pub struct Pair {
    pub prefill: Worker,
    pub decode: Worker,
    pub balancer: Balancer,
    pub client: Client,
}

impl Pair {
    /// With the configuration that [`config`] gives.
    pub async fn start() -> Self {
        Self::with(|config| config).await
    }

    /// With that configuration as `change` returns it.
    pub async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let (prefill, decode) = Worker::pair().await;
        let config = change(config(&[prefill.url()], &[decode.url()]));
        let balancer = Balancer::start(config).await;
        let client = balancer.client().await;
        Self {
            prefill,
            decode,
            balancer,
            client,
        }
    }

    /// Sends a POST with a JSON body, and returns the two legs, prefill's first.
    pub async fn legs(&mut self, path: &str, body: &str) -> (Exchange, Exchange) {
        self.legs_of(post(path, body)).await
    }

    /// Sends these bytes, and returns the two legs. The bytes may be more than the sockets' buffers hold.
    pub async fn legs_of(&mut self, request: impl AsRef<[u8]>) -> (Exchange, Exchange) {
        let legs = async { (self.prefill.request().await, self.decode.request().await) };
        tokio::join!(self.client.send(request), legs).1
    }

    /// The next request at each worker, prefill's first.
    pub async fn next_legs(&mut self) -> (Exchange, Exchange) {
        (self.prefill.request().await, self.decode.request().await)
    }

    /// Sends a POST that asks for `n` samples, and returns the legs of each, prefill's first, in no particular order.
    pub async fn samples(&mut self, path: &str, body: &str, n: usize) -> Vec<(Exchange, Exchange)> {
        self.client.send(post(path, body)).await;
        self.next_samples(n).await
    }

    /// The legs of the next `n` requests, each with its own of the other role.
    pub async fn next_samples(&mut self, n: usize) -> Vec<(Exchange, Exchange)> {
        let room = |exchange: &Exchange| exchange.request.json()["bootstrap_room"].clone();
        let mut prefills = Vec::new();
        let mut decodes = Vec::new();
        for _ in 0..n {
            prefills.push(self.prefill.request().await);
            decodes.push(self.decode.request().await);
        }
        let mut legs = Vec::new();
        for prefill in prefills {
            let own = |decode: &Exchange| room(decode) == room(&prefill);
            let place = decodes.iter().position(own).expect("a decode leg");
            legs.push((prefill, decodes.swap_remove(place)));
        }
        legs
    }

    /// Sends these bytes over a connection of their own: they are refused with this status and code, and neither
    /// worker gets a request.
    pub async fn refuses(&self, what: &str, request: impl AsRef<[u8]>, status: u16, code: &str) {
        let mut client = self.balancer.client().await;
        client.send(request).await;
        let answer = client.answer().await;
        assert_eq!(answer.outcome(), (status, Some(code)), "{what}");
        assert!(self.is_idle(), "{what}");
    }

    /// The client's next response, which is a 502 with this code.
    pub async fn bad_gateway(&mut self, what: &str, code: &str) -> Answer {
        let answer = self.client.answer().await;
        assert_eq!(answer.outcome(), (502, Some(code)), "{what}");
        answer
    }

    /// Whether neither worker has a request that the test has not taken.
    pub fn is_idle(&self) -> bool {
        !self.prefill.has_request() && !self.decode.has_request()
    }
}

/// Two prefill and two decode workers, the balancer in front of them, and a client.
pub struct TwoPairs {
    pub prefills: [Worker; 2],
    pub decodes: [Worker; 2],
    pub balancer: Balancer,
    pub client: Client,
}

impl TwoPairs {
    /// With the configuration of [`config`] as `change` returns it.
    pub async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let prefills = [Worker::listen().await, Worker::listen().await];
        let decodes = [Worker::listen().await, Worker::listen().await];
        let urls = |workers: &[Worker; 2]| workers.each_ref().map(Worker::url);
        let config = change(config(&urls(&prefills), &urls(&decodes)));
        let balancer = Balancer::start(config).await;
        let client = balancer.client().await;
        Self {
            prefills,
            decodes,
            balancer,
            client,
        }
    }

    /// Both legs of the next attempt, each with the index of its worker.
    pub async fn next_legs(&mut self) -> ((usize, Exchange), (usize, Exchange)) {
        (leg(&mut self.prefills).await, leg(&mut self.decodes).await)
    }
}

/// The next request at either worker that is not an abort, with the index of that worker.
pub async fn leg(workers: &mut [Worker; 2]) -> (usize, Exchange) {
    loop {
        let [one, two] = workers;
        let (index, exchange) = tokio::select! {
            exchange = one.request() => (0, exchange),
            exchange = two.request() => (1, exchange),
        };
        if !exchange.request.head.contains("/abort_request") {
            return (index, exchange);
        }
        exchange.answer("200 OK", "").await;
    }
}

/// Both roles, for claims that hold for each of them.
pub const ROLES: [Role; 2] = [Role::Prefill, Role::Decode];

/// The leg of this role, and the other one.
pub fn leg_of(role: Role, (prefill, decode): (Exchange, Exchange)) -> (Exchange, Exchange) {
    match role {
        Role::Prefill => (prefill, decode),
        Role::Decode => (decode, prefill),
    }
}

/// Both legs respond 200 with an empty JSON object.
pub async fn serve((prefill, decode): (Exchange, Exchange)) {
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
}
