//! The listening sockets: one for each address of the configured host.
//!
//! Sockets are bound here before Pingora runs: a busy port then fails at once, where Pingora would retry for 30 s and
//! go on without a listener. On an upgrade they come from the old process.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{IntoRawFd, RawFd};

use super::StartError;
use super::upgrade::OldProcess;
use crate::config::Listen;

/// How often another port is tried where the system chooses one and a second address has it in use.
const PORTS: usize = 16;

/// A listening socket with its address, as Pingora's tables name it.
#[derive(Debug)]
pub(super) struct BoundSocket {
    pub(super) address: String,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Own(TcpListener),
    /// Shared with the old process.
    Inherited(RawFd),
}

impl BoundSocket {
    /// `None` when the socket is inherited.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Own(socket) => socket.local_addr().ok(),
            Socket::Inherited(_) => None,
        }
    }

    /// The descriptor, for Pingora.
    pub(super) fn into_raw(self) -> RawFd {
        match self.socket {
            Socket::Own(socket) => socket.into_raw_fd(),
            Socket::Inherited(socket) => socket,
        }
    }
}

/// The sockets of one listener: those of the old process, where there is one, and new ones for its other addresses.
///
/// # Errors
/// [`StartError::Listen`].
pub(super) fn sockets(
    listen: &Listen,
    old_process: Option<&mut OldProcess>,
) -> Result<Vec<BoundSocket>, StartError> {
    let bound = addresses(listen).and_then(|addresses| match old_process {
        None => bind_all(&addresses),
        Some(old_process) => bind_each(&addresses, |address| {
            let address = address.to_string();
            let socket = Socket::Inherited(old_process.take(&address)?);
            Some(BoundSocket { address, socket })
        }),
    });
    bound.map_err(|why| StartError::Listen {
        address: listen.to_string(),
        why,
    })
}

/// The addresses of the host, each once.
fn addresses(listen: &Listen) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for address in (listen.host.as_str(), listen.port).to_socket_addrs()? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Binds these addresses, which have one port. Where that is 0, the system chooses it for all of them.
fn bind_all(addresses: &[SocketAddr]) -> io::Result<Vec<BoundSocket>> {
    for _ in 1..PORTS {
        match bind_each(addresses, |_| None) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && chooses_port(addresses) => {}
            bound => return bound,
        }
    }
    bind_each(addresses, |_| None)
}

fn chooses_port(addresses: &[SocketAddr]) -> bool {
    addresses.iter().any(|address| address.port() == 0)
}

/// Binds each address that is not inherited. An address that the machine does not have is left out while there is
/// another one: `localhost` often has an IPv6 address where IPv6 is switched off.
fn bind_each(
    addresses: &[SocketAddr],
    mut inherited: impl FnMut(&SocketAddr) -> Option<BoundSocket>,
) -> io::Result<Vec<BoundSocket>> {
    let mut bound = Vec::new();
    let mut missing = None;
    let mut port = None;
    for address in addresses {
        let mut address = *address;
        if address.port() == 0 {
            address.set_port(port.unwrap_or_default());
        }
        if let Some(socket) = inherited(&address) {
            bound.push(socket);
            continue;
        }
        match bind(address) {
            Ok(socket) => {
                port = socket.local_address().map(|address| address.port());
                bound.push(socket);
            }
            Err(error) if is_missing(&error) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if bound.is_empty() => Err(error),
        _ if bound.is_empty() => Err(ErrorKind::NotFound.into()),
        _ => Ok(bound),
    }
}

/// The address is the configured one, with the port that the system chose for port 0.
fn bind(address: SocketAddr) -> io::Result<BoundSocket> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(BoundSocket {
        address: socket.local_addr()?.to_string(),
        socket: Socket::Own(socket),
    })
}

/// Whether the machine does not have the address, or not its family. Source: errno(3) of Linux (EAFNOSUPPORT).
fn is_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(97)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

    #[test]
    fn a_host_with_several_addresses_is_listened_on_at_each_with_one_port() {
        let bound = bind_all(&[(LOOPBACK, 0).into(), ([127, 0, 0, 2], 0).into()]).unwrap();
        let addresses: Vec<_> = bound
            .iter()
            .filter_map(BoundSocket::local_address)
            .collect();
        assert_eq!(addresses.len(), 2);
        assert_eq!(addresses[0].port(), addresses[1].port());
        for address in addresses {
            TcpStream::connect(address).unwrap();
        }
    }

    #[test]
    fn an_address_that_the_machine_does_not_have_is_left_out_and_a_busy_one_is_an_error() {
        // For documentation only: RFC 5737.
        let missing = SocketAddr::from(([192, 0, 2, 1], 0));
        let bound = bind_all(&[missing, (LOOPBACK, 0).into()]).unwrap();
        assert_eq!(bound.len(), 1);
        let busy = bound[0].local_address().unwrap();
        let other = SocketAddr::from(([127, 0, 0, 2], busy.port()));
        let error = bind_all(&[other, busy]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(bind_all(&[missing]).is_err());
        assert!(bind_all(&[]).is_err());
    }
}
