//! The limit of each of several workers: which one a waiting request is sent to, also when one fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::pair::{leg, serve};
use support::{Client, Exchange, TwoPairs, Worker, post, soon};

use crate::queue::{number, numbered, settle, used_client};

#[tokio::test]
async fn a_request_that_is_tried_again_waits_for_another_worker_and_holds_nobody_up() {
    let TwoPairs {
        mut prefills,
        mut decodes,
        balancer,
        ..
    } = TwoPairs::with(|config| config.max_concurrent_requests(1)).await;
    let mut clients = [
        used_client(&balancer).await,
        used_client(&balancer).await,
        used_client(&balancer).await,
    ];
    clients[0].send(post("/generate", &numbered(0))).await;
    let (busy, first) = leg(&mut prefills).await;
    let (_, first_decode) = leg(&mut decodes).await;
    clients[1].send(post("/generate", &numbered(1))).await;
    let (full, second) = leg(&mut prefills).await;
    let (_, second_decode) = leg(&mut decodes).await;
    assert_ne!(busy, full, "one each");
    let room = second.request.json()["bootstrap_room"].clone();
    second.answer("503 Service Unavailable", "{}").await;
    second_decode.closed().await;
    // The retried request waits for the busy worker, ahead of this one, which gets the other worker.
    clients[2].send(post("/generate", &numbered(2))).await;
    let (place, third) = leg(&mut prefills).await;
    assert_eq!((place, number(&third)), (full, 2));
    let (_, third_decode) = leg(&mut decodes).await;
    serve((first, first_decode)).await;
    assert_eq!(clients[0].answer().await.status(), 200);
    let (place, again) = leg(&mut prefills).await;
    assert_eq!((place, number(&again)), (busy, 1));
    assert_ne!(again.request.json()["bootstrap_room"], room);
    serve((again, leg(&mut decodes).await.1)).await;
    assert_eq!(clients[1].answer().await.status(), 200);
    serve((third, third_decode)).await;
    assert_eq!(clients[2].answer().await.status(), 200);
}

#[tokio::test]
async fn when_a_worker_dies_those_that_wait_are_served_by_the_other() {
    let TwoPairs {
        mut prefills,
        mut decodes,
        balancer,
        ..
    } = TwoPairs::with(|config| config.max_concurrent_requests(1)).await;
    let mut probe = used_client(&balancer).await;
    let mut clients = Vec::new();
    let mut live = Vec::new();
    for number in 0..5 {
        let mut client = used_client(&balancer).await;
        client.send(post("/generate", &numbered(number))).await;
        settle(&mut probe).await;
        if number < 2 {
            let (_, prefill) = leg(&mut prefills).await;
            live.push((prefill, leg(&mut decodes).await));
        }
        clients.push(client);
    }
    live.sort_by_key(|(_, (place, _))| *place);
    let (survivor, (_, survivors_decode)) = live.pop().unwrap();
    let (_, (_, dead)) = live.pop().unwrap();
    decodes[0].stop_listening().await;
    dead.reset();
    // From now on there is one decode worker, which serves every request.
    serve((survivor, survivors_decode)).await;
    let [_, decode] = &mut decodes;
    let mut served = 0;
    let answered = async {
        for client in &mut clients {
            assert_eq!(client.answer().await.status(), 200);
        }
    };
    tokio::pin!(answered);
    soon("all are served", async {
        loop {
            tokio::select! {
                () = &mut answered => return,
                (_, prefill) = leg(&mut prefills) => answer_unless_cancelled(prefill).await,
                exchange = decode.request() => {
                    served += usize::from(!exchange.request.head.contains("/abort_request"));
                    answer_unless_cancelled(exchange).await;
                }
            }
        }
    })
    .await;
    assert_eq!(served, 4, "all but the one that it had before");
}

async fn answer_unless_cancelled(exchange: Exchange) {
    let _ = exchange.try_answer("200 OK", "{}").await;
}

/// Responds to each request after some turns of other tasks. Returns the most requests at once.
fn serve_slowly(mut worker: Worker) -> Arc<AtomicUsize> {
    let (live, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    tokio::spawn(async move {
        loop {
            let exchange = worker.request().await;
            let now = live.fetch_add(1, Ordering::SeqCst) + 1;
            seen.fetch_max(now, Ordering::SeqCst);
            let live = live.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                live.fetch_sub(1, Ordering::SeqCst);
                exchange.answer("200 OK", "{}").await;
            });
        }
    });
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_worker_ever_has_more_than_its_limit_and_every_request_is_served() {
    const LIMIT: usize = 3;
    let TwoPairs {
        prefills,
        decodes,
        balancer,
        ..
    } = TwoPairs::with(|config| config.max_concurrent_requests(LIMIT)).await;
    let most: Vec<_> = prefills
        .into_iter()
        .chain(decodes)
        .map(serve_slowly)
        .collect();
    let address = balancer.address;
    let clients = (0..40).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            for number in 0..10 {
                client.send(post("/generate", &numbered(number))).await;
                assert_eq!(client.answer().await.status(), 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        soon("every request is served", client).await.unwrap();
    }
    let most: Vec<_> = most
        .iter()
        .map(|most| most.load(Ordering::SeqCst))
        .collect();
    assert!(most.iter().all(|most| *most <= LIMIT), "{most:?}");
    assert!(most.contains(&LIMIT), "{most:?}");
}
