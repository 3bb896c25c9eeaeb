//! Members of etcd, as the cluster's masters come and go.
//!
//! In: the masters of the cluster's description. Out: changed membership. A new
//! member is a learner, which has no vote, until there are three masters: of two
//! voters neither could go on alone. Always holds: a voter leaves only where
//! others are left to vote. It is done by `etcdctl` of the planet, with the
//! client certificate of a master.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::snapshots::{self, Kind};
use event::Sink;
use host::command::CommandError;
use serde::Deserialize;
use spec::care::Care;
use spec::layout::{Layout, PLANET_SECRETS};
use spec::{ClusterSpec, NodeSpec, Role};
use tokio::time::{Instant, sleep};

use crate::services::etcd::peer_url;

pub use crate::services::etcd::PEER_PORT;

/// Voters that a cluster of three masters or more has.
const VOTERS: usize = 3;
/// How long one server may take to answer.
const TRY: Duration = Duration::from_secs(5);
/// How long a learner may take to catch up before it must vote.
const CATCH_UP: Duration = Duration::from_secs(60);
/// How long a change of members is tried. etcd refuses it while one of them is not
/// connected, and for 5 s after that ("unhealthy cluster").
const SETTLE: Duration = Duration::from_secs(30);
/// How long it is waited before the next try.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the membership can't be seen or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No server did it.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The answer isn't understood.
    #[error("read etcd's list of members")]
    Answer(#[from] serde_json::Error),
    /// There is nobody to ask, or nobody else to vote.
    #[error("there is no other master in etcd")]
    NoOther,
    /// The work was cut off.
    #[error("wait for etcdctl")]
    Wait(#[from] tokio::task::JoinError),
}

/// The members, as one master reaches them.
#[derive(Debug, Clone)]
pub struct Etcd {
    secrets: PathBuf,
    /// This node's own, and where its snapshots are.
    member: agent::etcd::Etcd,
    snapshots: PathBuf,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Member {
    #[serde(rename = "ID")]
    id: u64,
    /// Empty until it has been started.
    #[serde(default)]
    name: String,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default)]
    is_learner: bool,
}

impl Member {
    fn is_at(&self, address: IpAddr) -> bool {
        self.peer_urls.contains(&peer_url(address))
    }

    fn is_started(&self) -> bool {
        !self.name.is_empty()
    }
}

/// What `etcdctl member list` prints.
#[derive(Debug, Deserialize)]
struct Members {
    members: Vec<Member>,
}

impl Etcd {
    /// As the planet's own services see it.
    pub fn inside() -> Self {
        let snapshots = Care::layout().etcd_snapshots();
        Self::new(Path::new("/"), Path::new(PLANET_SECRETS), snapshots)
    }

    /// As the host of a master sees it, with the planet's root filesystem.
    pub fn on_host(rootfs: &Path, layout: &Layout) -> Self {
        Self::new(rootfs, &layout.planet_secrets(), layout.etcd_snapshots())
    }

    fn new(rootfs: &Path, secrets: &Path, snapshots: PathBuf) -> Self {
        Self {
            secrets: secrets.to_owned(),
            member: agent::etcd::Etcd::new(rootfs, secrets),
            snapshots,
        }
    }

    /// Takes a snapshot of this node's member before `what` changes the cluster. One
    /// that fails is told and stops nothing: a node that is dead must go, whatever
    /// the disk says.
    pub(crate) async fn snapshot(&self, what: &str, sink: &dyn Sink) {
        let Self {
            member, snapshots, ..
        } = self.clone();
        let taking = move || snapshots::take(&member, &snapshots, Kind::BeforeOperation);
        let why = match tokio::task::spawn_blocking(taking).await {
            Ok(Ok((snapshot, _))) => {
                tracing::info!("took snapshot {} before {what}", snapshot.name);
                return;
            }
            Ok(Err(error)) => error.message,
            Err(error) => error.to_string(),
        };
        sink.warning(&format!(
            "There is no snapshot of etcd from before {what}: {why}"
        ));
    }

    /// Names of the masters that are members and have been started.
    ///
    /// # Errors
    /// When no server answers.
    pub(crate) async fn started(&self, cluster: &ClusterSpec) -> Result<BTreeSet<String>, Error> {
        let servers: Vec<_> = cluster.masters().collect();
        let members = self.members(&servers).await?;
        let started = masters(cluster).filter(|(_, address)| {
            members
                .iter()
                .any(|member| member.is_at(*address) && member.is_started())
        });
        Ok(started.map(|(node, _)| node.hostname.clone()).collect())
    }

    /// Whether a master is a learner, which stands by.
    ///
    /// # Errors
    /// When no server answers.
    pub async fn stands_by(&self, cluster: &ClusterSpec, node: &NodeSpec) -> Result<bool, Error> {
        let servers: Vec<_> = cluster.masters().collect();
        let members = self.members(&servers).await?;
        let own = masters(cluster).find(|(master, _)| master.id == node.id);
        Ok(own.is_some_and(|(_, address)| {
            members
                .iter()
                .any(|member| member.is_at(address) && member.is_learner)
        }))
    }

    /// Adds a master as a learner. One that was added and has never been started
    /// is fine, and so is one that works; one that has lost its data is added anew.
    ///
    /// # Errors
    /// When the other masters don't do it.
    pub(crate) async fn add(&self, cluster: &ClusterSpec, node: &NodeSpec) -> Result<(), Error> {
        let address = node.address().ok_or(Error::NoOther)?;
        let others = others(cluster, address)?;
        let tries = Tries::until(SETTLE);
        loop {
            let tried = self.try_add(&others, address, &node.hostname).await;
            if let Some(ended) = tries.ended(tried).await {
                return ended;
            }
        }
    }

    async fn try_add(&self, others: &[IpAddr], address: IpAddr, name: &str) -> Result<(), Error> {
        let members = self.members(others).await?;
        if let Some(member) = members.iter().find(|member| member.is_at(address)) {
            if !member.is_started() || self.works(address, member).await {
                return Ok(());
            }
            self.expel(others, &members, member).await?;
        }
        let peer = format!("--peer-urls={}", peer_url(address));
        let add = ["member", "add", name, "--learner", &peer];
        self.call(others, &add).await.map(drop)
    }

    /// Removes a master's member. None is fine.
    ///
    /// # Errors
    /// When it is the last one, or the others don't do it.
    pub(crate) async fn remove(&self, cluster: &ClusterSpec, node: &NodeSpec) -> Result<(), Error> {
        let address = node.address().ok_or(Error::NoOther)?;
        let mut servers = others(cluster, address)?;
        // Until a learner votes, who leaves is the only one to ask.
        servers.push(address);
        let tries = Tries::until(SETTLE);
        loop {
            let tried = self.try_remove(&servers, address).await;
            if let Some(ended) = tries.ended(tried).await {
                return ended;
            }
        }
    }

    async fn try_remove(&self, servers: &[IpAddr], address: IpAddr) -> Result<(), Error> {
        let members = self.members(servers).await?;
        match members.iter().find(|member| member.is_at(address)) {
            Some(member) => self.expel(servers, &members, member).await,
            None => Ok(()),
        }
    }

    /// Makes the members what the description says: learners vote once there are
    /// three masters, and who is no master is no member. `strangers` are the members
    /// that were none at the last look: they go at the second, as the first may
    /// have been at a description from before they joined.
    ///
    /// # Errors
    /// When no server answers or does it.
    pub(crate) async fn reconcile(
        &self,
        cluster: &ClusterSpec,
        strangers: &mut BTreeSet<u64>,
    ) -> Result<(), Error> {
        let servers: Vec<_> = cluster.masters().collect();
        let members = self.members(&servers).await?;
        let is_master =
            |member: &&Member| masters(cluster).any(|(_, address)| member.is_at(address));
        let before = std::mem::take(strangers);
        for stranger in members.iter().filter(|member| !is_master(member)) {
            if before.contains(&stranger.id) {
                tracing::info!(name = stranger.name, "removing a member that is no master");
                self.expel(&servers, &members, stranger).await?;
            } else {
                strangers.insert(stranger.id);
            }
        }
        // One that is dead or far behind doesn't keep the others from it.
        let mut wanted = wanted(&members);
        let mut failed = None;
        let stays = |learner: &&Member| servers.iter().any(|address| learner.is_at(*address));
        for learner in learners(&members).filter(stays) {
            if wanted == 0 {
                return Ok(());
            }
            match self.promote(&servers, learner).await {
                Ok(()) => {
                    tracing::info!(name = learner.name, "a master votes in etcd from now on");
                    wanted -= 1;
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// By what Kubernetes is reached.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.secrets.join("admin.kubeconfig")
    }

    async fn expel(
        &self,
        servers: &[IpAddr],
        members: &[Member],
        member: &Member,
    ) -> Result<(), Error> {
        let mut others = members.iter().filter(|other| other.id != member.id);
        if !member.is_learner && others.all(|other| other.is_learner) {
            self.promote_one(servers, members).await?;
        }
        let id = format!("{:x}", member.id);
        self.call(servers, &["member", "remove", &id])
            .await
            .map(drop)
    }

    /// Gives a vote to the first learner that can take it.
    async fn promote_one(&self, servers: &[IpAddr], members: &[Member]) -> Result<(), Error> {
        let tries = Tries::until(CATCH_UP);
        loop {
            let mut tried = Err(Error::NoOther);
            for heir in learners(members) {
                tried = self.promote(servers, heir).await;
                if tried.is_ok() {
                    break;
                }
            }
            if let Some(ended) = tries.ended(tried).await {
                return ended;
            }
        }
    }

    async fn promote(&self, servers: &[IpAddr], member: &Member) -> Result<(), Error> {
        let id = format!("{:x}", member.id);
        self.call(servers, &["member", "promote", &id])
            .await
            .map(drop)
    }

    /// Whether a member answers for itself.
    async fn works(&self, address: IpAddr, member: &Member) -> bool {
        let answer = self.call(&[address], &["endpoint", "status"]).await;
        answer.is_ok_and(|json| is_of(&json, member.id))
    }

    async fn members(&self, servers: &[IpAddr]) -> Result<Vec<Member>, Error> {
        let json = self.call(servers, &["member", "list"]).await?;
        Ok(serde_json::from_str::<Members>(&json)?.members)
    }

    /// Asks one server after the other: a learner refuses.
    async fn call(&self, servers: &[IpAddr], arguments: &[&str]) -> Result<String, Error> {
        let mut last = Error::NoOther;
        for server in servers {
            let member = self.member.clone().at(*server).within(TRY);
            let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            match tokio::task::spawn_blocking(move || member.ask(&arguments)).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }
}

/// Tries to change members, for a bounded time.
#[derive(Debug, Clone, Copy)]
struct Tries {
    end: Instant,
}

impl Tries {
    fn until(limit: Duration) -> Self {
        let end = Instant::now() + limit;
        Self { end }
    }

    /// How it ended; nothing, a moment later, where another try may do it.
    async fn ended(self, tried: Result<(), Error>) -> Option<Result<(), Error>> {
        match tried {
            Err(error) if !matches!(error, Error::NoOther) && Instant::now() < self.end => {
                tracing::info!(%error, "etcd does not change its members, asking again");
                sleep(PAUSE).await;
                None
            }
            ended => Some(ended),
        }
    }
}

/// Whether what `etcdctl endpoint status` prints is of this member.
fn is_of(json: &str, id: u64) -> bool {
    let answers: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let mut members = answers
        .iter()
        .map(|answer| &answer["Status"]["header"]["member_id"]);
    members.any(|member| member.as_u64() == Some(id))
}

/// Masters with their addresses.
fn masters(cluster: &ClusterSpec) -> impl Iterator<Item = (&NodeSpec, IpAddr)> {
    cluster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Master)
        .filter_map(|node| Some((node, node.address()?)))
}

fn others(cluster: &ClusterSpec, address: IpAddr) -> Result<Vec<IpAddr>, Error> {
    let others: Vec<_> = cluster
        .masters()
        .filter(|other| *other != address)
        .collect();
    match others.is_empty() {
        true => Err(Error::NoOther),
        false => Ok(others),
    }
}

/// Learners that have been started.
fn learners(members: &[Member]) -> impl Iterator<Item = &Member> {
    members
        .iter()
        .filter(|member| member.is_learner && member.is_started())
}

/// How many more are to vote now.
fn wanted(members: &[Member]) -> usize {
    let voters = members.iter().filter(|member| !member.is_learner).count();
    let started = members.iter().filter(|member| member.is_started()).count();
    match started >= VOTERS {
        true => VOTERS.saturating_sub(voters),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Vec<Member> {
        serde_json::from_str::<Members>(text).unwrap().members
    }

    #[tokio::test]
    async fn a_snapshot_that_fails_is_told_and_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path());
        let told = event::Memory::default();
        let etcd = Etcd::on_host(directory.path(), &layout);
        etcd.snapshot("the removal of two", &told).await;
        let [event::Event::Warning { message }] = &told.events()[..] else {
            panic!("{:?}", told.events())
        };
        assert!(message.contains("before the removal of two"), "{message}");
    }

    #[tokio::test]
    async fn changes_are_tried_again_until_their_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("usr/local/bin/etcdctl");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        // As etcd does it 5 s long after a member has come back.
        let script = format!(
            r#"#!/bin/sh
# All options come by the environment, and it refuses one that comes both ways.
test "$ETCDCTL_ENDPOINTS $ETCDCTL_WRITE_OUT" = "https://10.0.0.1:2379 json" || exit 1
case "$*" in
*--endpoints*|*--write-out*) exit 1 ;;
*"member list"*) echo '{{"members":[{{"ID":1,"name":"a","peerURLs":["https://10.0.0.1:2380"]}},
    {{"ID":2,"name":"b","peerURLs":["https://10.0.0.2:2380"]}}]}}' ;;
*"member remove 2"*)
    echo >>{0}/tries
    test $(wc -l <{0}/tries) -ge 2 || {{ echo unhealthy cluster >&2; exit 1; }} ;;
*) exit 1 ;;
esac
"#,
            directory.path().display()
        );
        host::atomic::write(&program, script.as_bytes(), 0o755).unwrap();
        let etcd = Etcd::on_host(directory.path(), &Layout::new(directory.path()));
        let servers = ["10.0.0.1".parse().unwrap()];
        let other = "10.0.0.2".parse().unwrap();
        let tries = Tries::until(SETTLE);
        let first = etcd.try_remove(&servers, other).await;
        assert!(matches!(first, Err(Error::Command(_))), "{first:?}");
        assert!(tries.ended(first).await.is_none());
        let second = etcd.try_remove(&servers, other).await;
        assert!(tries.ended(second).await.unwrap().is_ok());

        // Not where the time is over, nor where there is nobody to ask.
        let late = Tries::until(Duration::ZERO);
        let failed = etcd.call(&servers, &["member", "add"]).await.map(drop);
        assert!(late.ended(failed).await.unwrap().is_err());
        let nobody = tries.ended(Err(Error::NoOther)).await.unwrap();
        assert!(matches!(nobody, Err(Error::NoOther)), "{nobody:?}");
    }

    #[test]
    fn a_member_answers_for_itself_alone() {
        let status = r#"[{"Endpoint":"https://10.0.0.2:2379","Status":{"header":
            {"cluster_id":1,"member_id":9372538179322589801,"revision":7,"raft_term":2},
            "version":"3.6.5","isLearner":true}}]"#;
        assert!(is_of(status, 9_372_538_179_322_589_801));
        assert!(!is_of(status, 1));
        assert!(!is_of("", 1));
        assert!(!is_of("[{}]", 0));
    }

    #[test]
    fn learners_vote_once_there_are_three_that_run() {
        let list = |third: &str| {
            members(&format!(
                r#"{{"header":{{}},"members":[
                {{"ID":1,"name":"a","peerURLs":["https://10.0.0.1:2380"]}},
                {{"ID":9372538179322589801,"name":"b","peerURLs":["https://10.0.0.2:2380"],"isLearner":true}},
                {{"ID":3,"name":"{third}","peerURLs":["https://10.0.0.3:2380"],"isLearner":true}}]}}"#
            ))
        };
        assert_eq!(wanted(&list("")), 0);
        assert_eq!(wanted(&list("c")), 2);
        let all = list("c");
        let names: Vec<_> = learners(&all).map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(wanted(&list("c")[..2]), 0);
        let mut voting = list("c");
        voting.iter_mut().for_each(|one| one.is_learner = false);
        voting.push(list("d").remove(2));
        assert_eq!(wanted(&voting), 0);
    }
}
