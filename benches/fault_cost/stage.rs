//! The workers: raw sockets that do what the round wants of each of them, and note when each leg came and ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::recorded::{Recorded, Reply, about_the_worker};
use crate::programs::balancer;
use support::{Exchange, Worker};

/// Time between two tokens of a stream.
const GAP: Duration = Duration::from_millis(20);
/// The port of a bootstrap server that nobody asks: no KV cache is handed over here.
const BOOTSTRAP_PORT: u16 = 8998;
/// The harness ends a test that waits longer than half a minute for a request.
const LISTEN: Duration = Duration::from_secs(10);

/// Which worker: prefill comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Prefill(usize),
    Decode(usize),
}

impl Place {
    pub fn is_prefill(self) -> bool {
        matches!(self, Place::Prefill(_))
    }
}

/// What a worker does with a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Act {
    pub first: First,
    pub then: Then,
}

/// At once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Keeps silent.
    Nothing,
    /// Begins a stream. Decode goes on with an event every [`GAP`].
    Opening,
    /// Sends half an answer.
    Half,
}

/// Later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Never anything more.
    Hold,
    /// Answers: prefill at once, decode when prefill has answered in the same rooms.
    Serve,
    /// Answers with an error, when the round says so.
    Status(u16),
    /// Closes the connection, when the round says so.
    Close,
    /// Resets the connection and refuses others, when the round says so.
    Die,
}

/// A request at a worker.
#[derive(Debug, Clone)]
pub struct Leg {
    pub place: Place,
    pub rooms: Vec<u64>,
    pub came: Instant,
    /// When it ended, and how.
    pub end: Option<(Instant, How)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Answered,
    Failed,
    /// The balancer closed it.
    Closed,
}

/// What goes on.
#[derive(Debug, Default)]
pub struct Play {
    /// Counts the rounds; what belongs to an earlier one is over.
    round: u64,
    recorded: Arc<Recorded>,
    prefill: Vec<Act>,
    decode: Vec<Act>,
    /// Whether those who shall fail fail now.
    go: bool,
    served_rooms: BTreeSet<u64>,
    pub legs: Vec<Leg>,
    running: usize,
    /// Who shall refuse connections, and who does.
    down: BTreeSet<Place>,
    refusing: BTreeSet<Place>,
}

/// The workers, and what they know of each other.
pub struct Stage {
    pub prefill: Vec<balancer::Worker>,
    pub decode: Vec<balancer::Worker>,
    play: watch::Sender<Play>,
}

impl Stage {
    /// Workers on ports of their own.
    pub async fn open(prefill: usize, decode: usize) -> Stage {
        let mut stage = Stage {
            prefill: Vec::new(),
            decode: Vec::new(),
            play: watch::Sender::default(),
        };
        let prefill = (0..prefill).map(Place::Prefill);
        for place in prefill.chain((0..decode).map(Place::Decode)) {
            let worker = Worker::listen().await;
            let address = worker.address;
            let (of_role, bootstrap_port) = match place {
                Place::Prefill(_) => (&mut stage.prefill, Some(BOOTSTRAP_PORT)),
                Place::Decode(_) => (&mut stage.decode, None),
            };
            of_role.push(balancer::Worker {
                address,
                bootstrap_port,
            });
            tokio::spawn(be(place, worker, stage.play.clone()));
        }
        stage
    }

    /// A new round, in which each worker does this.
    pub fn begin(&self, recorded: &Arc<Recorded>, prefill: &[Act], decode: &[Act]) {
        self.play.send_modify(|play| {
            *play = Play {
                round: play.round + 1,
                recorded: recorded.clone(),
                prefill: prefill.to_vec(),
                decode: decode.to_vec(),
                running: play.running,
                down: std::mem::take(&mut play.down),
                refusing: std::mem::take(&mut play.refusing),
                ..Play::default()
            };
        });
    }

    /// Those who shall fail fail.
    pub fn fail(&self) {
        self.play.send_modify(|play| play.go = true);
    }

    /// Closes what is still open; who died is back, apart from these. Returns when that is so.
    pub async fn end(&self, down: impl IntoIterator<Item = Place>) {
        self.play.send_modify(|play| {
            play.round += 1;
            play.down = down.into_iter().collect();
        });
        self.until(|play| play.running == 0 && play.down == play.refusing)
            .await;
    }

    /// No worker listens any more.
    pub async fn close(&self) {
        let prefill = (0..self.prefill.len()).map(Place::Prefill);
        self.end(prefill.chain((0..self.decode.len()).map(Place::Decode)))
            .await;
    }

    /// Waits for something to be so.
    pub async fn until(&self, is_so: impl Fn(&Play) -> bool) {
        // The sender is in self.
        let _ = self.play.subscribe().wait_for(|play| is_so(play)).await;
    }

    /// What goes on now.
    pub fn now<T>(&self, look: impl FnOnce(&Play) -> T) -> T {
        look(&self.play.borrow())
    }
}

impl Leg {
    /// When it failed.
    pub fn failed_at(&self) -> Option<Instant> {
        self.end
            .and_then(|(at, how)| (how == How::Failed).then_some(at))
    }
}

impl Play {
    fn act(&self, place: Place) -> Option<Act> {
        match place {
            Place::Prefill(index) => self.prefill.get(index).copied(),
            Place::Decode(index) => self.decode.get(index).copied(),
        }
    }
}

/// A worker, while it is there and while it is not.
async fn be(place: Place, mut worker: Worker, play: watch::Sender<Play>) {
    loop {
        let is_down = async {
            // The sender is ours.
            let mut seen = play.subscribe();
            let _ = seen.wait_for(|play| play.down.contains(&place)).await;
        };
        tokio::pin!(is_down);
        loop {
            tokio::select! {
                () = &mut is_down => break,
                asked = timeout(LISTEN, worker.request()) => if let Ok(exchange) = asked {
                    tokio::spawn(serve(place, exchange, play.clone()));
                },
            }
        }
        let address: SocketAddr = worker.address;
        worker.stop_listening().await;
        drop(worker);
        play.send_modify(|play| {
            play.refusing.insert(place);
        });
        let mut seen = play.subscribe();
        let _ = seen.wait_for(|play| !play.down.contains(&place)).await;
        worker = Worker::listen_on(address).await;
        play.send_modify(|play| {
            play.refusing.remove(&place);
        });
    }
}

/// One request: a leg, or a question about the worker.
async fn serve(place: Place, exchange: Exchange, play: watch::Sender<Play>) {
    let target = exchange.request.head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let is_leg = ["/generate", "/v1/chat/completions", "/v1/completions"].contains(&path);
    if !is_leg {
        let said = about_the_worker(path, place.is_prefill());
        // Who asked may be gone.
        let _ = match said {
            Some(Value::Null) => exchange.try_answer("200 OK", "").await,
            Some(said) => exchange.try_answer("200 OK", &said.to_string()).await,
            None => exchange.try_answer("404 Not Found", "{}").await,
        };
        return;
    }
    let (mut at, mut role) = ((0, 0), None);
    let rooms = rooms_of(&exchange.request.body);
    play.send_modify(|play| {
        let reply = match place {
            Place::Prefill(_) => play.recorded.prefill.clone(),
            Place::Decode(_) => play.recorded.decode.clone(),
        };
        role = play.act(place).map(|act| (act, reply));
        at = (play.round, play.legs.len());
        play.legs.push(Leg {
            place,
            rooms: rooms.clone(),
            came: Instant::now(),
            end: None,
        });
        play.running += 1;
    });
    let performance = Performance {
        place,
        rooms,
        play: &play,
        at,
    };
    let is_over = async {
        let is_over = |play: &Play| play.round != at.0 || role.is_none();
        // The sender is ours.
        let _ = play.subscribe().wait_for(is_over).await;
    };
    tokio::select! {
        how = performance.go(exchange, role.as_ref()) => performance.note_end(how),
        () = is_over => {}
    }
    play.send_modify(|play| play.running -= 1);
}

/// A worker's part in one leg.
struct Performance<'a> {
    place: Place,
    rooms: Vec<u64>,
    play: &'a watch::Sender<Play>,
    /// Its round, and its number among the legs.
    at: (u64, usize),
}

impl Performance<'_> {
    async fn go(&self, mut exchange: Exchange, role: Option<&(Act, Reply)>) -> How {
        let Some((act, reply)) = role else {
            return std::future::pending().await;
        };
        let begun = match act.first {
            First::Nothing => &[],
            First::Opening => reply.opening(),
            First::Half => reply.half(),
        };
        if exchange.try_send(begun).await.is_err() {
            return How::Closed;
        }
        let streams = act.first == First::Opening && !self.place.is_prefill();
        let is_due = self.until_due(act.then);
        tokio::pin!(is_due);
        loop {
            tokio::select! {
                () = exchange.until_closed() => return How::Closed,
                () = &mut is_due => break,
                () = sleep(GAP), if streams => if exchange.try_send(reply.event()).await.is_err() {
                    return How::Closed;
                },
            }
        }
        self.finish(act.then, exchange, reply).await
    }

    async fn until_due(&self, then: Then) {
        let mut seen = self.play.subscribe();
        // The sender is ours.
        let _ = match (then, self.place) {
            (Then::Hold, _) => std::future::pending().await,
            (Then::Serve, Place::Prefill(_)) => return,
            (Then::Serve, Place::Decode(_)) => {
                let has_met = |play: &Play| {
                    let mut rooms = self.rooms.iter();
                    rooms.all(|room| play.served_rooms.contains(room))
                };
                seen.wait_for(has_met).await
            }
            _ => seen.wait_for(|play| play.go).await,
        };
    }

    /// Does what was due.
    async fn finish(&self, then: Then, mut exchange: Exchange, reply: &Reply) -> How {
        match then {
            Then::Hold => return std::future::pending().await,
            Then::Serve => {
                if self.place.is_prefill() {
                    self.play
                        .send_modify(|play| play.served_rooms.extend(&self.rooms));
                }
                if exchange.try_send(reply.whole()).await.is_err() {
                    return How::Closed;
                }
                exchange.keep();
                return How::Answered;
            }
            Then::Status(status) => {
                self.note_end(How::Failed);
                let error = format!(
                    r#"{{"object":"error","message":"as told","type":"error","param":null,"code":{status}}}"#
                );
                // It may have been closed meanwhile.
                let _ = exchange.try_answer(&format!("{status} Told"), &error).await;
            }
            Then::Close => {
                self.note_end(How::Failed);
                drop(exchange);
            }
            Then::Die => {
                self.play.send_modify(|play| {
                    play.down.insert(self.place);
                });
                let mut seen = self.play.subscribe();
                // The sender is ours.
                let _ = seen
                    .wait_for(|play| play.refusing.contains(&self.place))
                    .await;
                self.note_end(How::Failed);
                exchange.reset();
            }
        }
        How::Failed
    }

    /// Who fails has ended when it begins to.
    fn note_end(&self, how: How) {
        let (round, number) = self.at;
        self.play.send_modify(|play| {
            if play.round == round {
                play.legs[number]
                    .end
                    .get_or_insert_with(|| (Instant::now(), how));
            }
        });
    }
}

/// The rooms of a leg: one, or one for each prompt.
fn rooms_of(body: &[u8]) -> Vec<u64> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match &body["bootstrap_room"] {
        Value::Array(rooms) => rooms.iter().filter_map(Value::as_u64).collect(),
        room => room.as_u64().into_iter().collect(),
    }
}
