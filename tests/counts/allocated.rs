//! The balancer as a library, on a runtime that is one thread, and what this thread allocates: its own work and
//! nobody else's, since workers and clients live on another thread. The log line of each request is made as in the
//! binary, and thrown away.

use std::io::sink;
use std::net::SocketAddr;
use std::sync::Once;
use std::thread;

use allocation_counter::{AllocationInfo, measure};
use env_logger::Target;
use mini_lb::MiniLoadBalancer;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

use crate::support::{Worker, config};
use crate::{Counts, Watched};

/// After so many turns of the runtime, each of which looks at all sockets, nothing is left that could be done.
const TURNS: usize = 64;

static LOG: Once = Once::new();

/// A balancer on its thread, which ends with this.
pub(crate) struct Allocated {
    pub(crate) address: SocketAddr,
    questions: mpsc::UnboundedSender<oneshot::Sender<AllocationInfo>>,
}

impl Allocated {
    pub(crate) async fn start(prefill: &Worker, decode: &Worker) -> Self {
        LOG.call_once(|| {
            let mut logger = env_logger::Builder::new();
            logger.target(Target::Pipe(Box::new(sink())));
            logger.parse_filters("info,pingora=warn").init();
        });
        let balancer = MiniLoadBalancer::new(config(&[prefill.url()], &[decode.url()])).unwrap();
        let handle = balancer.handle();
        let (questions, asked) = mpsc::unbounded_channel();
        thread::spawn(move || serve(balancer, asked));
        Allocated {
            address: handle.address().await.unwrap(),
            questions,
        }
    }

    async fn ask(&self) -> AllocationInfo {
        let (answer, answered) = oneshot::channel();
        self.questions.send(answer).unwrap();
        answered.await.unwrap()
    }
}

impl Watched for Allocated {
    async fn quiet(&self) {
        self.ask().await;
    }

    /// One client and one answer at a time: there is nothing to hold it for.
    async fn hold(&self) -> impl Sized {}

    async fn woken(&self) {}

    async fn totals(&self) -> Counts {
        let info = self.ask().await;
        [
            ("allocations", info.count_total),
            ("bytes", info.bytes_total),
        ]
        .map(|(name, count)| (name.to_owned(), count as f64))
        .into()
    }
}

/// The thread's whole life. Between two questions everything that it allocates is counted.
fn serve(
    balancer: MiniLoadBalancer,
    mut asked: mpsc::UnboundedReceiver<oneshot::Sender<AllocationInfo>>,
) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.spawn(balancer.start());
    let mut totals = AllocationInfo::default();
    loop {
        let mut question = None;
        totals += measure(|| {
            question = runtime.block_on(async {
                let question = asked.recv().await;
                for _ in 0..TURNS {
                    yield_now().await;
                }
                question
            });
        });
        match question {
            // Nobody waits for the answer when a test has failed.
            Some(answer) => drop(answer.send(totals)),
            None => return,
        }
    }
}
