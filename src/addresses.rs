//! The addresses of one worker: those of its name, the one among them that was reached last, and what is spoken there.
//!
//! `discovery` sets them, `net` dials them and notes which one it has reached. Neither a lookup nor a connection
//! happens here.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// The addresses of a worker, in the order in which they are dialled. Empty until its name has been looked up.
#[derive(Debug)]
pub(crate) struct Addresses {
    all: RwLock<Arc<[SocketAddr]>>,
    http2: bool,
}

impl Addresses {
    /// Those of a worker of HTTP/1.1.
    pub(crate) fn new(known: Option<SocketAddr>) -> Self {
        Self {
            all: RwLock::new(known.into_iter().collect()),
            http2: false,
        }
    }

    /// Those of a worker of HTTP/2.
    pub(crate) fn of_http2(known: Option<SocketAddr>) -> Self {
        Self {
            http2: true,
            ..Self::new(known)
        }
    }

    /// Whether HTTP/2 is spoken there.
    pub(crate) fn is_http2(&self) -> bool {
        self.http2
    }

    /// The one that is dialled first.
    pub(crate) fn first(&self) -> Option<SocketAddr> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.first().copied()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Arc<[SocketAddr]> {
        self.all
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces them. The one that was dialled first stays the first while it is among them.
    pub(crate) fn set(&self, mut all: Vec<SocketAddr>) {
        let mut current = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = current.first() {
            put_first(&mut all, *first);
        }
        *current = all.into();
    }

    /// Notes that this address was reached: it is dialled first from now on.
    pub(crate) fn note_reached(&self, reached: SocketAddr) {
        if self.first() == Some(reached) {
            return;
        }
        let mut current = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let mut all = current.to_vec();
        put_first(&mut all, reached);
        *current = all.into();
    }
}

/// Moves this address to the front, if it is there.
fn put_first(all: &mut [SocketAddr], first: SocketAddr) {
    if let Some(at) = all.iter().position(|address| *address == first) {
        all[..=at].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 1).into()
    }

    fn all(addresses: &Addresses) -> Vec<u16> {
        let all = addresses.all();
        let last = all.iter().map(|address| match address {
            SocketAddr::V4(v4) => u16::from(v4.ip().octets()[3]),
            SocketAddr::V6(_) => 0,
        });
        last.collect()
    }

    #[test]
    fn the_address_that_was_reached_last_is_dialled_first_while_the_name_has_it() {
        let addresses = Addresses::new(None);
        assert_eq!(addresses.first(), None);
        addresses.set([1, 2, 3].map(address).to_vec());
        assert_eq!(all(&addresses), [1, 2, 3]);
        addresses.note_reached(address(3));
        assert_eq!(all(&addresses), [3, 1, 2]);
        addresses.note_reached(address(9));
        assert_eq!(all(&addresses), [3, 1, 2], "no longer an address of it");
        addresses.set([2, 4, 3].map(address).to_vec());
        assert_eq!(all(&addresses), [3, 2, 4]);
        addresses.set([4, 2].map(address).to_vec());
        assert_eq!(all(&addresses), [4, 2]);
    }
}
