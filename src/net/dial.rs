//! Opening a connection to a worker that may have several addresses.
//!
//! They are dialled one after the other: the next one when an address refuses, or when it has not accepted after
//! [`STEP`] at most, while it may still accept. The first connection wins, and its address is remembered. All of them
//! share one deadline. Source: RFC 8305 (Happy Eyeballs), section 5.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pingora::protocols::{ALPN, Stream};
use pingora::{Error, ErrorType, Result};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::peer::{Dialling, reuse_key};
use super::pool::Pool;
use crate::addresses::Addresses;

/// The longest time that one address has before the next one is dialled as well.
const STEP: Duration = Duration::from_millis(250);

/// Opens a connection to one of these addresses.
///
/// # Errors
/// Pingora's, of the types that [`super::Failure::from_pingora`] knows: that of the address that failed last.
pub(super) async fn dial(
    pool: &Pool,
    dialling: &Dialling,
    addresses: &Addresses,
    server_name: Option<&str>,
) -> Result<(SocketAddr, Stream)> {
    let all = addresses.all();
    if addresses.is_http2() {
        // Boxed because it is rare: the future of every dial would carry it.
        return Box::pin(dial_http2(pool, dialling, addresses, server_name)).await;
    }
    let one = |address| async move { pool.dial(&dialling.peer(address, server_name)).await };
    let (address, stream) = match *all {
        [] => return Error::e_explain(ErrorType::ConnectError, "its name has no address"),
        [only] => (only, one(only).await?),
        _ => race(&all, dialling.connect_timeout, one).await?,
    };
    addresses.note_reached(address);
    Ok((address, stream))
}

/// A stream over a connection of HTTP/2 to one of these addresses, which is opened where none has room.
async fn dial_http2(
    pool: &Pool,
    dialling: &Dialling,
    addresses: &Addresses,
    server_name: Option<&str>,
) -> Result<(SocketAddr, Stream)> {
    let all = addresses.all();
    let open = |address: &SocketAddr| {
        let stream = pool.http2.open(reuse_key(*address, server_name))?;
        Some((*address, stream))
    };
    if let Some(open) = all.iter().find_map(open) {
        return Ok(open);
    }
    let one = |address| async move {
        let mut peer = dialling.peer(address, server_name);
        peer.options.set_http_version(2, 2);
        pool.dial(&peer).await
    };
    let (address, stream) = race(&all, dialling.connect_timeout, one).await?;
    let is_negotiated = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
    if server_name.is_some() && !is_negotiated {
        let why = "the worker does not negotiate HTTP/2 (http2: true)";
        return Error::e_explain(ErrorType::TLSHandshakeFailure, why);
    }
    addresses.note_reached(address);
    let key = reuse_key(address, server_name);
    Ok((address, pool.http2.begin(key, stream).await?))
}

/// The first of these addresses that accepts, within `limit`.
async fn race<T, F>(
    addresses: &[SocketAddr],
    limit: Duration,
    dial: impl Fn(SocketAddr) -> F,
) -> Result<(SocketAddr, T)>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + limit;
    let step = STEP.min(limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX));
    let mut waiting = addresses.iter();
    let mut dialled = FuturesUnordered::new();
    let mut failure = None;
    let first_accepts = async {
        loop {
            let next = waiting.next();
            if let Some(address) = next {
                let attempt = dial(*address);
                dialled.push(async move { (*address, attempt.await) });
            }
            let turn = Instant::now() + step;
            tokio::select! {
                Some((address, result)) = dialled.next() => match result {
                    Ok(connection) => return Some((address, connection)),
                    Err(error) => failure = Some(error),
                },
                () = sleep_until(turn), if next.is_some() => {}
                else => return None,
            }
        }
    };
    match timeout_at(deadline, first_accepts).await {
        Ok(Some(accepted)) => Ok(accepted),
        Ok(None) => Err(failure.unwrap_or_else(|| Error::new(ErrorType::ConnectError))),
        Err(_) => Error::e_explain(ErrorType::ConnectTimedout, "no address accepted in time"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What an address of a test does.
    #[derive(Clone, Copy)]
    enum Does {
        Accepts(u64),
        Refuses,
        Hangs,
    }

    const LIMIT: Duration = Duration::from_secs(2);

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (0..count)
            .map(|last| ([10, 0, 0, last], 1).into())
            .collect()
    }

    /// The address that accepts, and when each was dialled, in milliseconds.
    async fn raced(does: &[Does]) -> (Result<SocketAddr>, Vec<u64>) {
        let begun = Instant::now();
        let dialled = RefCell::new(Vec::new());
        let all = addresses(u8::try_from(does.len()).unwrap());
        let raced = race(&all, LIMIT, |address| {
            let at = all.iter().position(|other| *other == address).unwrap();
            let elapsed = u64::try_from(begun.elapsed().as_millis()).unwrap();
            dialled.borrow_mut().push(elapsed);
            async move {
                match does[at] {
                    Does::Accepts(after) => {
                        tokio::time::sleep(Duration::from_millis(after)).await;
                        Ok(())
                    }
                    Does::Refuses => Error::e_explain(ErrorType::ConnectRefused, ""),
                    Does::Hangs => std::future::pending().await,
                }
            }
        })
        .await;
        (raced.map(|(address, ())| address), dialled.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_dialled_at_once_after_a_refusal_and_soon_after_silence() {
        use Does::{Accepts, Hangs, Refuses};
        let all = addresses(3);
        for (does, accepted, dialled) in [
            (&[Accepts(100), Accepts(0)][..], 0, vec![0]),
            (&[Refuses, Accepts(0)], 1, vec![0, 0]),
            (&[Hangs, Accepts(0)], 1, vec![0, 250]),
            (&[Hangs, Refuses, Accepts(0)], 2, vec![0, 250, 250]),
            // The first one may still be the fastest.
            (&[Accepts(300), Accepts(100)], 0, vec![0, 250]),
            (&[Hangs, Hangs, Accepts(900)], 2, vec![0, 250, 500]),
        ] {
            let (address, times) = raced(does).await;
            assert_eq!((address.unwrap(), times), (all[accepted], dialled));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_addresses_share_the_deadline_and_the_time_until_it() {
        let begun = Instant::now();
        let (refused, dialled) = raced(&[Does::Hangs; 10]).await;
        assert_eq!(*refused.unwrap_err().etype(), ErrorType::ConnectTimedout);
        assert_eq!(begun.elapsed(), LIMIT);
        assert_eq!(dialled, (0..10).map(|turn| turn * 200).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_ends_the_dial_once_every_address_has_one() {
        let begun = Instant::now();
        let (refused, _) = raced(&[Does::Refuses; 3]).await;
        assert_eq!(*refused.unwrap_err().etype(), ErrorType::ConnectRefused);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
