//! This node's member of etcd.
//!
//! In: etcd's own programs, the client certificate of the API server. Out: how
//! it is, snapshots, less room taken. Everything blocks; a caller with other
//! things to do gives it a thread.

mod copy;
mod log;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::causes::causes;
use host::command::{Cmd, CommandError};
use operation::PhaseError;
use serde::Deserialize;
use spec::layout::{Layout, PLANET_SECRETS};
use spec::phase::EtcdRestore;

use crate::node::{file, lasting};

/// Port at which members answer clients.
pub const CLIENT_PORT: u16 = 2379;
/// Where it answers its own node.
const OWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), CLIENT_PORT);
/// Programs of the base image.
const PROGRAMS: &str = "usr/local/bin";
/// How long a question may take unless told otherwise.
const QUESTION: Duration = Duration::from_secs(15);
/// A program that hangs is killed so much later than it should have ended.
const GRACE: Duration = Duration::from_secs(1);
/// How long work on all of the data may take: 8 GB on a slow disk.
const WORK: Duration = Duration::from_secs(30 * 60);
/// Added to the revision of a snapshot, so that it is greater than every one
/// that was given away since: etcd's own recommendation.
const BUMP: u64 = 1_000_000_000;
/// Length of the SHA-256 at the end of a snapshot.
const SUM: u64 = 32;
/// Snapshots are whole sectors, and the sum.
const SECTOR: u64 = 512;

/// A member.
#[derive(Debug, Clone)]
pub struct Etcd {
    programs: PathBuf,
    secrets: PathBuf,
    endpoint: SocketAddr,
    patience: Duration,
}

/// How a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Which cluster it is a member of.
    pub cluster: u64,
    /// Last revision of its keys.
    pub revision: u64,
    /// Size of its database in bytes.
    pub size: u64,
    /// What of it is used.
    pub used: u64,
    /// How large it may become.
    pub quota: u64,
    /// Whether it has raised the alarm that the quota is used up; it then takes
    /// no writes.
    pub is_full: bool,
    /// Whether more than half of the voters agree on who leads them; otherwise
    /// it takes no writes either.
    pub has_leader: bool,
    /// Whether it has no vote; it then doesn't notice that who leads is gone.
    pub is_learner: bool,
}

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Content {
    /// Last revision.
    pub revision: u64,
    /// How many keys.
    #[serde(rename = "totalKey")]
    pub keys: u64,
}

#[derive(Debug, Deserialize)]
struct EndpointStatus {
    #[serde(rename = "Status")]
    status: RawStatus,
}

#[derive(Debug, Deserialize)]
struct RawStatus {
    header: Header,
    #[serde(rename = "dbSize", default)]
    size: u64,
    #[serde(rename = "dbSizeInUse", default)]
    used: u64,
    #[serde(rename = "dbSizeQuota", default)]
    quota: u64,
    #[serde(default)]
    leader: u64,
    #[serde(rename = "isLearner", default)]
    is_learner: bool,
    #[serde(default)]
    errors: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Header {
    #[serde(default)]
    cluster_id: u64,
    #[serde(default)]
    revision: u64,
}

#[derive(Debug, Deserialize)]
struct Members {
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Member {
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
}

impl Etcd {
    /// The member as it is reached from the host.
    ///
    /// # Errors
    /// When there is no planet.
    pub fn on_host(layout: &Layout) -> Result<Self, PhaseError> {
        let rootfs = crate::daemon::rootfs(layout)
            .ok_or_else(|| PhaseError::lasting("there is no planet on this node"))?;
        Ok(Self::new(&rootfs, &layout.planet_secrets()))
    }

    /// The member with the planet's root filesystem and the secrets of a master.
    pub fn new(rootfs: &Path, secrets: &Path) -> Self {
        Self {
            programs: rootfs.join(PROGRAMS),
            secrets: secrets.to_owned(),
            endpoint: OWN,
            patience: QUESTION,
        }
    }

    /// The member as it is reached from inside the planet.
    pub fn inside() -> Self {
        Self::new(Path::new("/"), Path::new(PLANET_SECRETS))
    }

    /// The same member, whose answers are waited for so long.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Another master's member.
    #[must_use]
    pub fn at(self, address: IpAddr) -> Self {
        let endpoint = SocketAddr::new(address, CLIENT_PORT);
        Self { endpoint, ..self }
    }

    /// All options come by the environment: it refuses one that comes both ways,
    /// and administrators have theirs there.
    fn client(&self, timeout: Duration, output: &str) -> Cmd {
        let secret = |name: &str| self.secrets.join(name);
        Cmd::new(self.programs.join("etcdctl"))
            .env("ETCDCTL_ENDPOINTS", format!("https://{}", self.endpoint))
            .env("ETCDCTL_CACERT", secret("etcd-ca.crt"))
            .env("ETCDCTL_CERT", secret("etcd-client.crt"))
            .env("ETCDCTL_KEY", secret("etcd-client.key"))
            .env("ETCDCTL_DIAL_TIMEOUT", "2s")
            .env("ETCDCTL_COMMAND_TIMEOUT", format!("{}s", timeout.as_secs()))
            .env("ETCDCTL_WRITE_OUT", output)
            .timeout(timeout + GRACE)
    }

    /// Has `etcdctl` ask it; returns the answer as JSON.
    ///
    /// # Errors
    /// When it doesn't answer, or refuses.
    pub fn ask(&self, arguments: &[String]) -> Result<String, CommandError> {
        let asked = self
            .client(self.patience, "json")
            .args(arguments)
            .describe(format!("etcdctl {}", arguments.join(" ")))
            .run()?;
        Ok(asked.stdout)
    }

    fn tool(&self) -> Cmd {
        Cmd::new(self.programs.join("etcdutl")).timeout(WORK)
    }

    /// How it is.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn status(&self) -> Result<Status, PhaseError> {
        let output = self
            .client(self.patience, "json")
            .args(["endpoint", "status"])
            .describe("ask etcd how it is")
            .run()
            .map_err(|error| PhaseError::transient(words(&error)))?;
        read_status(&output.stdout)
    }

    /// How many members its cluster has, as more than half of those who vote
    /// agree.
    ///
    /// # Errors
    /// When they don't answer.
    pub fn members(&self) -> Result<usize, PhaseError> {
        Ok(self.list("l")?.members.len())
    }

    /// Addresses of all members, itself too, as it alone knows.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn addresses(&self) -> Result<BTreeSet<IpAddr>, PhaseError> {
        let members = self.list("s")?.members;
        let urls = members.iter().flat_map(|member| &member.peer_urls);
        Ok(urls.filter_map(|url| address(url)).collect())
    }

    fn list(&self, consistency: &str) -> Result<Members, PhaseError> {
        let output = self
            .client(self.patience, "json")
            .args(["member", "list"])
            .arg(format!("--consistency={consistency}"))
            .describe("ask etcd for its members")
            .run()
            .map_err(|error| PhaseError::transient(words(&error)))?;
        serde_json::from_str(&output.stdout).map_err(lasting)
    }

    /// Writes a snapshot to a new file that root alone may read, and checks it.
    ///
    /// # Errors
    /// When etcd doesn't answer, or there is no room.
    pub fn save(&self, to: &Path) -> Result<Content, PhaseError> {
        self.client(WORK, "simple")
            .args(["snapshot", "save"])
            .arg(to)
            .describe("take a snapshot of etcd")
            .run()
            .map_err(|error| PhaseError::transient(words(&error)))?;
        self.inspect(to)
    }

    /// Checks every byte of a snapshot and tells what it holds.
    ///
    /// # Errors
    /// When it is none, or damaged.
    pub fn inspect(&self, snapshot: &Path) -> Result<Content, PhaseError> {
        check_sum(snapshot)?;
        let output = self
            .tool()
            .args(["snapshot", "status", "--write-out=json"])
            .arg(snapshot)
            .describe(format!("read the snapshot {}", snapshot.display()))
            .run()
            .map_err(|error| PhaseError::lasting(words(&error)))?;
        serde_json::from_str(&output.stdout).map_err(lasting)
    }

    /// Makes the data directory `to`, which must not exist, from a snapshot, for
    /// the only member of a cluster. Who has seen a former revision finds that
    /// it is compacted, and looks anew.
    ///
    /// # Errors
    /// When the snapshot is damaged or there is no room.
    pub fn restore(
        &self,
        snapshot: &Path,
        to: &Path,
        member: &EtcdRestore,
    ) -> Result<(), PhaseError> {
        let EtcdRestore {
            member: name,
            peer_url,
            token,
            ..
        } = member;
        self.tool()
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg(option("data-dir", to))
            .arg(format!("--name={name}"))
            .arg(format!("--initial-cluster={name}={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster-token={token}"))
            .arg(format!("--bump-revision={BUMP}"))
            .arg("--mark-compacted")
            .describe("restore the snapshot of etcd")
            .run()
            .map_err(|error| PhaseError::lasting(words(&error)))?;
        Ok(())
    }

    /// Gives the room of what isn't used back to the disk; etcd answers nobody
    /// meanwhile.
    ///
    /// # Errors
    /// When etcd doesn't answer.
    pub fn defragment(&self) -> Result<(), PhaseError> {
        self.client(WORK, "simple")
            .arg("defrag")
            .describe("defragment etcd")
            .run()
            .map_err(|error| PhaseError::transient(words(&error)))?;
        Ok(())
    }

    /// Forgets all former revisions of keys.
    ///
    /// # Errors
    /// When etcd doesn't answer.
    pub fn compact(&self, revision: u64) -> Result<(), PhaseError> {
        let ended = self
            .client(WORK, "simple")
            .args(["compaction", "--physical"])
            .arg(revision.to_string())
            .describe("compact etcd")
            .run();
        match ended {
            // Somebody else was faster.
            Err(error) if error.to_string().contains("has been compacted") => Ok(()),
            ended => ended
                .map(drop)
                .map_err(|error| PhaseError::transient(words(&error))),
        }
    }

    /// Ends its alarms; one whose cause is still there is raised again.
    ///
    /// # Errors
    /// When etcd doesn't answer.
    pub fn disarm(&self) -> Result<(), PhaseError> {
        self.client(self.patience, "simple")
            .args(["alarm", "disarm"])
            .describe("end etcd's alarms")
            .run()
            .map_err(|error| PhaseError::transient(words(&error)))?;
        Ok(())
    }
}

/// Removes what a first start of etcd that was cut off left in the directory of its data:
/// nothing was stored, and etcd would not get on with it.
///
/// # Errors
/// When it can't be read or removed.
pub fn forget_first_start(data: &Path) -> std::io::Result<()> {
    let member = data.join("member");
    let is_unborn = match log::is_unborn(&member.join("wal")) {
        // Its first start is to come, or made no log yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        read => read?,
    };
    if is_unborn {
        tracing::warn!("etcd begins anew: its first start was cut off");
        std::fs::remove_dir_all(member)?;
    }
    Ok(())
}

/// What a program of etcd said of its failure: its last line, which may be JSON
/// with a stack trace.
fn words(error: &CommandError) -> String {
    let CommandError::Failed { what, stderr, .. } = error else {
        return causes(error);
    };
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.unwrap_or("it does not say why");
    let Ok(json) = serde_json::from_str::<serde_json::Value>(last) else {
        return format!("{what}: {last}");
    };
    let part = |name: &str| json[name].as_str();
    let words: Vec<_> = ["msg", "error"].into_iter().filter_map(part).collect();
    format!("{what}: {}", words.join(": "))
}

/// The address in a URL like `https://10.0.0.1:2380`.
fn address(url: &str) -> Option<IpAddr> {
    let (_, rest) = url.split_once("://")?;
    let address: SocketAddr = rest.parse().ok()?;
    Some(address.ip())
}

fn option(name: &str, value: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(format!("--{name}="));
    option.push(value);
    option
}

fn read_status(json: &str) -> Result<Status, PhaseError> {
    let endpoints: Vec<EndpointStatus> = serde_json::from_str(json).map_err(lasting)?;
    let Some(EndpointStatus { status }) = endpoints.into_iter().next() else {
        return Err(PhaseError::transient("etcd does not say how it is"));
    };
    Ok(Status {
        cluster: status.header.cluster_id,
        revision: status.header.revision,
        size: status.size,
        used: status.used,
        quota: status.quota,
        is_full: status.errors.iter().any(|error| error.contains("NOSPACE")),
        has_leader: status.leader != 0,
        is_learner: status.is_learner,
    })
}

/// A snapshot ends with the SHA-256 of what comes before it.
fn check_sum(path: &Path) -> Result<(), PhaseError> {
    let failed = file("read", path);
    let damaged = |what: &str| {
        PhaseError::lasting(format!(
            "{} is no whole snapshot of etcd: {what}",
            path.display()
        ))
    };
    let mut snapshot = File::open(path).map_err(failed)?;
    let metadata = snapshot.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() <= SUM || metadata.len() % SECTOR != SUM {
        return Err(damaged("its length is wrong"));
    }
    let mut left = metadata.len() - SUM;
    let mut sum = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let part = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        snapshot.read_exact(&mut buffer[..part]).map_err(failed)?;
        sum.update(&buffer[..part]);
        left -= part as u64;
    }
    let mut expected = [0; SUM as usize];
    snapshot
        .seek(SeekFrom::Start(metadata.len() - SUM))
        .and_then(|_| snapshot.read_exact(&mut expected))
        .map_err(failed)?;
    match sum.finish().as_ref() == expected {
        true => Ok(()),
        false => Err(damaged("its checksum is wrong")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_sizes_and_the_alarm_of_a_full_database() {
        let json = |errors: &str| {
            format!(
                r#"[{{"Endpoint":"https://127.0.0.1:2379","Status":{{"header":{{"cluster_id":1,
                "member_id":2,"revision":17,"raft_term":2}},"version":"3.6.8","dbSize":4096,
                "leader":2,"dbSizeInUse":1024,"storageVersion":"3.6.0","dbSizeQuota":8589934592
                {errors}}}}}]"#
            )
        };
        let status = read_status(&json("")).unwrap();
        let expected = Status {
            cluster: 1,
            revision: 17,
            size: 4096,
            used: 1024,
            quota: 8 << 30,
            is_full: false,
            has_leader: true,
            is_learner: false,
        };
        assert_eq!(status, expected);
        let full = r#","errors":["memberID:2 alarm:NOSPACE "]"#;
        assert!(read_status(&json(full)).unwrap().is_full);
        let other = r#","errors":["etcdserver: no leader"]"#;
        let alone = json(other).replace("\"leader\":2,", "");
        let alone = read_status(&alone).unwrap();
        assert!(!alone.is_full && !alone.has_leader);
        for bad in ["", "[]", "{}", "[{}]"] {
            assert!(read_status(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn members_are_known_by_their_addresses() {
        let json = r#"{"header":{},"members":[{"ID":1,"peerURLs":["https://10.0.0.1:2380"]},
            {"ID":2,"peerURLs":["https://[fd00::2]:2380", "https://name:2380", "x"]}, {"ID":3}]}"#;
        let members: Members = serde_json::from_str(json).unwrap();
        let urls = members.members.iter().flat_map(|one| &one.peer_urls);
        let found: Vec<_> = urls.filter_map(|url| address(url)).collect();
        let known = ["10.0.0.1", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(found, known);
    }

    #[test]
    fn failures_are_told_without_stack_traces() {
        let said = |stderr: &str| {
            let script = format!("cat >&2 <<'END'\n{stderr}\nEND\nexit 1");
            let failed = Cmd::new("sh")
                .args(["-c", &script])
                .describe("ask etcd")
                .run();
            words(&failed.unwrap_err())
        };
        assert_eq!(said("one\nError: two"), "ask etcd: Error: two");
        let json = r#"{"level":"fatal","msg":"can't","error":"no reason","stacktrace":"x"}"#;
        assert_eq!(said(json), "ask etcd: can't: no reason");
        assert_eq!(said(""), "ask etcd: it does not say why");
        let none = Cmd::new("/nonexistent").describe("ask etcd").run();
        assert!(words(&none.unwrap_err()).contains("/nonexistent"));
    }

    #[test]
    fn a_snapshot_that_was_cut_or_changed_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let put = |bytes: &[u8]| host::atomic::write(&path, bytes, 0o600).unwrap();
        let mut bytes = vec![7; 1024];
        let sum = ring::digest::digest(&ring::digest::SHA256, &bytes);
        bytes.extend(sum.as_ref());
        put(&bytes);
        check_sum(&path).unwrap();
        let reason = || check_sum(&path).unwrap_err().message;
        put(&bytes[..bytes.len() - 1]);
        assert!(reason().contains("length"), "{}", reason());
        put(&bytes[..0]);
        assert!(reason().contains("length"));
        bytes[3] = 8;
        put(&bytes);
        assert!(reason().contains("checksum"));
        assert!(check_sum(directory.path()).is_err());
        assert!(check_sum(&directory.path().join("none")).is_err());
    }
}
