//! Whether every name exists in a search domain.
//!
//! In: name servers and search domains of the host. Out: the domains in which a
//! name exists that nobody can have made. One packet a question, nothing more:
//! the answer's header is all that is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use host::facts::HostFacts;

/// How long a name server may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most name servers and domains that are asked.
const MOST: usize = 3;
/// The port of name servers.
const PORT: u16 = 53;

/// Domains in which a random name exists.
pub(crate) fn wildcards(host: &HostFacts) -> Result<Vec<String>, String> {
    let Some(conf) = &host.network.resolv_conf else {
        return Ok(Vec::new());
    };
    let servers: Vec<_> = conf
        .nameservers
        .iter()
        .take(MOST)
        .map(|server| SocketAddr::new(*server, PORT))
        .collect();
    found(&servers, &conf.search)
}

fn found(servers: &[SocketAddr], domains: &[String]) -> Result<Vec<String>, String> {
    let mut wildcards = Vec::new();
    let asked = domains
        .iter()
        .filter(|domain| domain.as_str() != ".")
        .take(MOST);
    for (number, domain) in asked.enumerate() {
        let name = format!("gravity-check-{:x}.{domain}", random(number));
        let mut answers = servers
            .iter()
            .map(|server| exists(*server, &name, PATIENCE));
        match answers.find_map(Result::ok) {
            Some(true) => wildcards.push(domain.clone()),
            Some(false) => {}
            None => return Err("no name server answers".into()),
        }
    }
    Ok(wildcards)
}

/// A number that nobody has guessed before; not a secret.
fn random(salt: usize) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap_or(0) ^ salt as u64
}

/// Asks for an address of the name.
fn exists(server: SocketAddr, name: &str, patience: Duration) -> Result<bool, std::io::Error> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    let question =
        question(name).ok_or_else(|| std::io::Error::other(format!("{name} is no DNS name")))?;
    socket.send(&question)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    parse(&question, answer.get(..length).unwrap_or_default())
        .ok_or_else(|| std::io::Error::other("no DNS answer"))
}

/// A question for an IPv4 address, recursion desired (RFC 1035, 4.1).
fn question(name: &str) -> Option<Vec<u8>> {
    let id = u16::try_from(random(0) & 0xffff).ok()?;
    let mut packet = Vec::from(id.to_be_bytes());
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        packet.push(length);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    (packet.len() <= 271).then_some(packet)
}

/// Whether an answer to the question holds a record; `None` when it is none, or
/// says that the server has failed.
fn parse(question: &[u8], answer: &[u8]) -> Option<bool> {
    let (id, header) = (question.get(..2)?, answer.get(..12)?);
    let is_answer = header.starts_with(id) && header[2] & 0x80 != 0;
    let records = u16::from_be_bytes([header[6], header[7]]);
    match (is_answer, header[3] & 0x0f) {
        (true, 0) => Some(records > 0),
        // The name doesn't exist.
        (true, 3) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers questions: `records` to each, with this code.
    fn server(code: u8, records: u8, questions: usize) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            for _ in 0..questions {
                let mut packet = [0; 512];
                let (length, from) = socket.recv_from(&mut packet).unwrap();
                packet[2] = 0x81;
                packet[3] = code;
                packet[7] = records;
                socket.send_to(&packet[..length], from).unwrap();
            }
        });
        address
    }

    #[test]
    fn wildcards_are_found_and_dead_servers_passed_over() {
        let domains = ["example.org".to_owned(), "lan".into()];
        let dead = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert_eq!(found(&[dead, server(0, 1, 2)], &domains).unwrap(), domains);
        assert!(found(&[server(3, 0, 2)], &domains).unwrap().is_empty());
        assert!(found(&[server(0, 0, 2)], &domains).unwrap().is_empty());
        assert!(found(&[server(2, 0, 1)], &domains).is_err());
        assert!(found(&[], &[]).unwrap().is_empty());
        assert!(question("a..b").is_none() && question(&"x".repeat(64)).is_none());
        assert_eq!(
            parse(&[1, 2], &[9, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            None
        );
    }
}
