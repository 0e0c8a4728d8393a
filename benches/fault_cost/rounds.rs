//! One scenario with one balancer: new workers, a new balancer, and the same fault in each round.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::timeout;

use super::client::{Client, Heard, Outcome};
use super::recorded::Recorded;
use super::scenarios::{Moment, Scenario};
use super::workers::{Leg, ScriptedWorkers, State};
use crate::programs::balancer::{ReservedPort, Workers, serving};

/// A client that waits longer than this hangs.
pub const CAP: Duration = Duration::from_secs(5);
/// A scenario ends after this many rounds that hang.
const HUNG_ROUNDS: usize = 3;
/// The time limit of a scenario.
const LONGEST: Duration = Duration::from_secs(25);
/// Requests that must be served before the first fault.
const WARM_UP: usize = 4;
/// The time limit for these requests.
const WARM: Duration = Duration::from_secs(20);

/// The measurements of one request.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Round {
    /// The client's outcome; none when it left.
    pub outcome: Option<String>,
    pub is_served: bool,
    /// Whether the fault happened.
    pub is_reached: bool,
    /// Milliseconds since the fault; none beyond the cap.
    pub client_ms: Option<f64>,
    pub prefill_ends_ms: Option<f64>,
    pub decode_ends_ms: Option<f64>,
    pub prefill_requests: usize,
    pub decode_requests: usize,
    /// Of the first leg.
    pub rooms: usize,
    /// Whether another leg followed a failed one, and whether it had another room.
    pub retried: Option<NewRoom>,
    pub has_prompt_logprobs: bool,
    /// Whether a decode leg of several prompts had the parameters of one.
    pub one_for_all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NewRoom {
    Yes,
    No,
}

/// A balancer with its command line.
#[derive(Debug, Clone)]
pub struct Target {
    pub name: String,
    pub command: String,
}

/// Runs the rounds of a scenario.
pub async fn rounds(
    scenario: &Scenario,
    target: &Target,
    mini_lb: &str,
    count: usize,
) -> Result<Vec<Round>, String> {
    let workers = ScriptedWorkers::open(scenario).await?;
    let files = tempfile::tempdir().map_err(|error| error.to_string())?;
    let result = rounds_with(&workers, scenario, target, mini_lb, count, files.path()).await;
    workers.close().await;
    result
}

async fn rounds_with(
    workers: &ScriptedWorkers,
    scenario: &Scenario,
    target: &Target,
    mini_lb: &str,
    count: usize,
    files: &Path,
) -> Result<Vec<Round>, String> {
    let flags = Workers {
        prefill: &workers.prefill,
        decode: &workers.decode,
        single: &[],
    };
    let port = ReservedPort::new()?;
    let mut command = flags.command(&target.command, mini_lb, port.number());
    command.current_dir(files);
    let log = files.join("log");
    let _program = serving(&target.name, &mut command, &port, &log).await?;
    let run = Run {
        workers,
        address: port.address,
        recorded: Arc::new(Recorded::read(scenario.engine, scenario.recorded)?),
    };
    run.warm_up(&scenario.without_fault())
        .await
        .map_err(|got| format!("{} serves nothing of it: {got}", target.name))?;
    workers.end(scenario.down()).await;
    let (mut rounds, mut hung, begun) = (Vec::new(), 0, Instant::now());
    while rounds.len() < count && hung < HUNG_ROUNDS && begun.elapsed() < LONGEST {
        let round = run.round(scenario).await;
        hung += usize::from(round.is_reached && round.has_hung(scenario.leaves));
        rounds.push(round);
        tokio::time::sleep(scenario.pause).await;
    }
    Ok(rounds)
}

struct Run<'a> {
    workers: &'a ScriptedWorkers,
    address: SocketAddr,
    recorded: Arc<Recorded>,
}

impl Run<'_> {
    /// Sends requests until enough in a row were served. The error is the outcome of the last one.
    async fn warm_up(&self, scenario: &Scenario) -> Result<(), String> {
        let (mut served, begun) = (0, Instant::now());
        while served < WARM_UP {
            let round = self.round(scenario).await;
            served = if round.is_served { served + 1 } else { 0 };
            if !round.is_served && begun.elapsed() > WARM {
                return Err(round.outcome.unwrap_or_default());
            }
            if !round.is_served {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn round(&self, scenario: &Scenario) -> Round {
        let workers = self.workers;
        workers.begin(&self.recorded, &scenario.prefill, &scenario.decode);
        if scenario.moment == Moment::Asked {
            workers.fail();
        }
        let asked_at = Instant::now();
        let mut client = Client::ask(self.address, scenario.path, &self.recorded.request);
        let is_reached = scenario.moment == Moment::Asked
            || timeout(CAP, self.moment(scenario, &mut client))
                .await
                .unwrap_or(false);
        let mut since = asked_at;
        let mut heard = None;
        if is_reached && scenario.leaves {
            since = Instant::now();
            client.leave().await;
            let _ = timeout(CAP, workers.until(all_ended)).await;
        } else {
            if is_reached && scenario.moment != Moment::Asked {
                workers.fail();
                since = Instant::now();
            }
            let _ = timeout(CAP, async {
                // The client's task sets it before it ends.
                let _ = client
                    .heard
                    .wait_for(|heard| heard.known_at().is_some())
                    .await;
                // Some legs end later than the client's response.
                if is_reached {
                    workers.until(all_ended).await;
                }
            })
            .await;
            heard = Some(client.heard.borrow().clone());
            client.leave().await;
        }
        let round = workers.now(|state| {
            let since = match scenario.moment {
                // From the start, the whole request is the cost.
                Moment::Asked => since,
                _ => state.legs.iter().find_map(Leg::failed_at).unwrap_or(since),
            };
            self.read(state, heard.as_ref(), is_reached, since)
        });
        workers.end(scenario.down()).await;
        round
    }

    /// Waits for the moment of the fault; false when the request ends before it.
    async fn moment(&self, scenario: &Scenario, client: &mut Client) -> bool {
        let waits_for_prefill =
            scenario.moment == Moment::FirstEvent && scenario.has_prefill_served();
        let legs = self.workers.until(|state| {
            let has = |is_prefill: bool| {
                let mut legs = state.legs.iter();
                legs.any(|leg| {
                    let is_ready = !is_prefill || !waits_for_prefill || leg.end.is_some();
                    leg.worker_id.is_prefill() == is_prefill && is_ready
                })
            };
            match scenario.moment {
                Moment::PrefillLeg => has(true),
                Moment::DecodeLeg => has(false),
                _ => has(true) && has(false),
            }
        });
        let mut heard = client.heard.clone();
        let reached = async {
            legs.await;
            if scenario.moment == Moment::FirstEvent {
                // The client's task sets it before it ends.
                let _ = heard.wait_for(Heard::has_begun).await;
            }
        };
        tokio::select! {
            biased;
            _ = client.heard.wait_for(|heard| heard.known_at().is_some()) => false,
            () = reached => true,
        }
    }

    fn read(
        &self,
        state: &State,
        heard: Option<&Heard>,
        is_reached: bool,
        since: Instant,
    ) -> Round {
        let ms =
            |since: Instant, at: Instant| at.saturating_duration_since(since).as_secs_f64() * 1e3;
        // The longest time that a leg outlived the failure of its other leg, or its own arrival if that was later.
        let ends = |is_prefill| {
            let legs = || {
                let of_role = |leg: &&Leg| leg.worker_id.is_prefill() == is_prefill;
                state.legs.iter().filter(of_role)
            };
            let lives: Option<Vec<f64>> = legs()
                .map(|leg| {
                    let other = |other: &&Leg| other.rooms == leg.rooms;
                    let mut others = state.legs.iter().filter(other);
                    let since = others
                        .find_map(Leg::failed_at)
                        .unwrap_or(since.max(leg.came));
                    leg.end.map(|(at, _)| ms(since, at))
                })
                .collect();
            let longest = lives.and_then(|lives| lives.into_iter().max_by(f64::total_cmp));
            (longest, legs().count())
        };
        let (prefill_ends_ms, prefill_requests) = ends(true);
        let (decode_ends_ms, decode_requests) = ends(false);
        let outcome = heard.map(|heard| heard.outcome(self.recorded.is_stream()));
        Round {
            is_served: outcome == Some(Outcome::Served),
            outcome: outcome.map(|outcome| outcome.to_string()),
            is_reached,
            client_ms: heard
                .and_then(|heard| heard.known_at())
                .map(|at| ms(since, at)),
            prefill_ends_ms,
            decode_ends_ms,
            prefill_requests,
            decode_requests,
            rooms: state.legs.first().map_or(0, |leg| leg.rooms.len()),
            retried: retried(&state.legs),
            one_for_all: state.legs.iter().any(|leg| leg.one_for_all),
            has_prompt_logprobs: heard.is_some_and(|heard| {
                let mut events = heard.events().into_iter();
                events.any(|event| !event["meta_info"]["input_token_logprobs"][0].is_null())
            }),
        }
    }
}

impl Round {
    /// Whether the client or a leg had not ended at the cap.
    fn has_hung(&self, has_left: bool) -> bool {
        let is_open = |ms: Option<f64>, requests| ms.is_none() && requests > 0;
        (self.client_ms.is_none() && !has_left)
            || is_open(self.prefill_ends_ms, self.prefill_requests)
            || is_open(self.decode_ends_ms, self.decode_requests)
    }
}

fn all_ended(state: &State) -> bool {
    state.legs.iter().all(|leg| leg.end.is_some())
}

/// The legs at prefill after the first that failed.
fn retried(legs: &[Leg]) -> Option<NewRoom> {
    let mut prefill = legs.iter().filter(|leg| leg.worker_id.is_prefill());
    let failed = prefill.find(|leg| leg.failed_at().is_some())?;
    let next = prefill.next()?;
    Some(match failed.rooms == next.rooms {
        true => NewRoom::No,
        false => NewRoom::Yes,
    })
}
