//! A DNS server on UDP, whose records the test changes while it runs.
//!
//! It writes its messages itself, so that an error in the codec of the balancer's resolver is not shared.
//!
//! Source: RFC 1035 section 4; RFC 3596 (AAAA); RFC 2782 (SRV).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The types of records that are served.
const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// The class of the Internet.
const IN: u16 = 1;

/// A record of a name.
#[derive(Debug, Clone)]
pub enum Record {
    /// An address: A or AAAA.
    Address(IpAddr),
    /// A service: priority, weight, port, target.
    Service(u16, u16, u16, String),
}

/// What the server says about a name.
#[derive(Debug, Clone)]
pub enum Zone {
    /// These records, with this TTL in seconds.
    Records(u32, Vec<Record>),
    /// Only a response code, such as 2 (SERVFAIL).
    Code(u8),
    /// Nothing.
    Silence,
}

type Zones = Arc<Mutex<HashMap<String, Zone>>>;

/// A running server. Ends when dropped. A name that it does not know has the code 3 (NXDOMAIN).
pub struct DnsServer {
    /// Where it listens.
    pub address: SocketAddr,
    zones: Zones,
    /// How many questions it has got.
    asked: watch::Receiver<u64>,
    serving: JoinHandle<()>,
}

impl DnsServer {
    /// Starts on a free port.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zones = Zones::default();
        let (count, asked) = watch::channel(0);
        let serving = tokio::spawn(serve(socket, zones.clone(), count));
        Self {
            address,
            zones,
            asked,
            serving,
        }
    }

    /// Sets what is said about a name, without a dot at its end.
    pub fn set(&self, name: &str, zone: Zone) {
        self.zones.lock().unwrap().insert(name.to_owned(), zone);
    }

    /// Sets the addresses of a name, with the shortest TTL.
    pub fn set_addresses(&self, name: &str, addresses: &[IpAddr]) {
        let records = addresses.iter().copied().map(Record::Address).collect();
        self.set(name, Zone::Records(0, records));
    }

    /// Resolves when so many more questions have come.
    pub async fn asked(&self, more: u64) {
        let mut asked = self.asked.clone();
        let wanted = *asked.borrow_and_update() + more;
        let reached = asked.wait_for(|count| *count >= wanted);
        crate::soon("questions to the DNS server", reached)
            .await
            .unwrap();
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(socket: UdpSocket, zones: Zones, count: watch::Sender<u64>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let answer = answer(&buffer[..length], &zones);
        if let Some(answer) = answer {
            socket.send_to(&answer, from).await.unwrap();
        }
        count.send_modify(|count| *count += 1);
    }
}

/// The answer to a message with one question; `None` where the server is silent.
fn answer(message: &[u8], zones: &Zones) -> Option<Vec<u8>> {
    let (name, end) = question(message)?;
    let kind = u16::from_be_bytes([message[end], message[end + 1]]);
    let zone = zones.lock().unwrap().get(&name).cloned();
    let (code, ttl, records) = match zone {
        None => (3, 0, Vec::new()),
        Some(Zone::Silence) => return None,
        Some(Zone::Code(code)) => (code, 0, Vec::new()),
        Some(Zone::Records(ttl, records)) => (0, ttl, records),
    };
    let data: Vec<_> = records
        .iter()
        .filter(|record| kind_of(record) == kind)
        .map(data)
        .collect();
    let mut answer = message[..2].to_vec();
    // A response with authority, recursion as it was asked for and available.
    answer.extend([0x84 | (message[2] & 1), 0x80 | code]);
    for count in [1, data.len() as u16, 0, 0] {
        answer.extend(count.to_be_bytes());
    }
    answer.extend(&message[12..end + 4]);
    for data in data {
        // The name of the question, by a pointer to it.
        answer.extend([0xc0, 12]);
        for word in [kind, IN] {
            answer.extend(word.to_be_bytes());
        }
        answer.extend(ttl.to_be_bytes());
        answer.extend((data.len() as u16).to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

/// The name of the first question, in lower case, and where its type begins.
fn question(message: &[u8]) -> Option<(String, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        let label = message.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
    }
}

fn kind_of(record: &Record) -> u16 {
    match record {
        Record::Address(IpAddr::V4(_)) => A,
        Record::Address(IpAddr::V6(_)) => AAAA,
        Record::Service(..) => SRV,
    }
}

fn data(record: &Record) -> Vec<u8> {
    match record {
        Record::Address(IpAddr::V4(address)) => address.octets().to_vec(),
        Record::Address(IpAddr::V6(address)) => address.octets().to_vec(),
        Record::Service(priority, weight, port, target) => {
            let numbers = [priority, weight, port];
            let mut data: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
            for label in target.split('.') {
                data.push(label.len() as u8);
                data.extend(label.as_bytes());
            }
            data.push(0);
            data
        }
    }
}
