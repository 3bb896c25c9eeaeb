//! How etcd is, here and on the other masters.
//!
//! In: the masters of the cluster. Out: what etcd says of itself, what is wrong with it, a
//! line each. Always holds: who does not answer in time holds nobody else up.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use agent::etcd::{Etcd, Status};
use agent::snapshots::{self, Snapshot};
use jiff::Timestamp;
use spec::ClusterSpec;

use super::probes::PATIENCE;
use crate::commands::Session;

/// The same for etcd, whose client takes a second more.
const ETCD: Duration = Duration::from_secs(3);

/// How etcd is, unless it doesn't say, and how old its last snapshot.
pub(super) async fn etcd(
    session: &Session,
    reasons: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Option<Status> {
    let layout = session.layout.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let status = Etcd::on_host(&layout).and_then(|etcd| etcd.within(ETCD).status());
        (status, snapshots::list(&layout.etcd_snapshots()))
    });
    let Ok(Ok((status, snapshots))) = tokio::time::timeout(PATIENCE, asked).await else {
        warnings.push("etcd does not say in time how it is".into());
        return None;
    };
    match &status {
        Ok(status) if status.is_full => reasons.push(format!(
            "etcd has used up its quota of {} and takes no writes",
            console::render::bytes(status.quota)
        )),
        Ok(status) if status.size > status.quota / 10 * 8 => warnings.push(format!(
            "etcd has used {} of its quota of {}",
            console::render::bytes(status.size),
            console::render::bytes(status.quota)
        )),
        Ok(_) => {}
        Err(error) => warnings.push(error.message.clone()),
    }
    match snapshots {
        Ok(all) => warnings.extend(old_snapshot(all.last(), Timestamp::now())),
        Err(error) => warnings.push(error.message),
    }
    status.ok()
}

/// What is wrong with etcd of the other masters, a reason a line; it may be silent on those
/// that are `joining`. `own` is how this node's is.
pub(super) async fn of_masters(
    session: &Session,
    cluster: &ClusterSpec,
    here: uuid::Uuid,
    own: Option<&Status>,
    joining: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut others = other_etcds(session, cluster, here, own).await;
    for node in cluster.nodes.iter().filter(|node| joining(&node.hostname)) {
        others
            .silent
            .retain(|address| !node.advertise_addresses.contains(address));
    }
    let has_quorum = own
        .is_none_or(|status| status.has_leader && !(status.is_learner && others.well.is_empty()));
    split(cluster, &others, has_quorum)
}

/// How etcd of the other masters is, those that stand by too.
#[derive(Debug, Default)]
struct OtherEtcds {
    /// It doesn't answer.
    silent: BTreeSet<IpAddr>,
    /// It answers, and is of this cluster.
    well: BTreeSet<IpAddr>,
    /// It is of another cluster: one of the two was recovered without the other.
    foreign: BTreeSet<IpAddr>,
}

async fn other_etcds(
    session: &Session,
    cluster: &ClusterSpec,
    here: uuid::Uuid,
    own: Option<&Status>,
) -> OtherEtcds {
    let mut found = OtherEtcds::default();
    // One that was removed still knows the masters of its time.
    let own_addresses = cluster
        .node(here)
        .map(|node| node.advertise_addresses.clone());
    let known = crate::commands::etcd::other_masters(
        &session.layout,
        cluster,
        own_addresses.as_deref().unwrap_or_default(),
    );
    let mut asked = tokio::task::JoinSet::new();
    for address in known {
        let layout = session.layout.clone();
        asked.spawn_blocking(move || {
            let etcd = Etcd::on_host(&layout).map(|etcd| etcd.at(address).within(ETCD));
            (address, etcd.and_then(|etcd| etcd.status()))
        });
    }
    for (address, status) in asked.join_all().await {
        match (status, own) {
            (Err(_), _) => drop(found.silent.insert(address)),
            (Ok(other), Some(own)) if other.cluster != own.cluster => {
                found.foreign.insert(address);
            }
            _ => drop(found.well.insert(address)),
        }
    }
    found
}

/// What the other masters' etcd comes to, a reason a line.
fn split(cluster: &ClusterSpec, others: &OtherEtcds, has_quorum: bool) -> Vec<String> {
    let named = |masters| crate::commands::etcd::named(cluster, masters);
    let mut reasons = Vec::new();
    if !others.foreign.is_empty() {
        reasons.push(format!(
            "etcd on {} is of another cluster: it was recovered without this node. Take this node \
             off by `gravity leave --force`; then it can join again",
            named(&others.foreign)
        ));
    }
    match (has_quorum, others.silent.is_empty()) {
        (true, true) => {}
        (true, false) => reasons.push(format!(
            "etcd of other masters does not answer: {}",
            named(&others.silent)
        )),
        (false, true) => reasons.push(
            "etcd has no quorum and takes no writes; the log of service etcd says why".into(),
        ),
        (false, false) => reasons.push(format!(
            "etcd has no quorum and takes no writes: it does not answer on {}. Start what is down; \
             where too many masters are lost for good, `gravity etcd recover` on one that is left \
             goes on without them",
            named(&others.silent)
        )),
    }
    reasons
}

/// Two in a row have failed.
fn old_snapshot(last: Option<&Snapshot>, now: Timestamp) -> Option<String> {
    // A new node has none yet.
    let last = last?;
    let age = now.duration_since(last.time);
    let limit = 2 * snapshots::EVERY;
    (!age.is_negative() && age.unsigned_abs() > limit).then(|| {
        format!(
            "the last snapshot of etcd is of {}; the log of service care says why",
            console::render::timestamp(last.time)
        )
    })
}

#[cfg(test)]
mod tests {
    use agent::snapshots::Kind;

    use super::super::report::tests::cluster;
    use super::*;

    #[test]
    fn a_master_that_is_silent_is_named_with_what_it_means() {
        let cluster = cluster();
        let none = BTreeSet::new();
        let two = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let two = BTreeSet::from(two);
        let told = |silent: &BTreeSet<_>, foreign: &BTreeSet<_>, quorum| {
            let others = OtherEtcds {
                silent: silent.clone(),
                foreign: foreign.clone(),
                ..OtherEtcds::default()
            };
            split(&cluster, &others, quorum).join("\n")
        };
        assert_eq!(told(&none, &none, true), "");
        assert!(told(&two, &none, true).ends_with("answer: one (10.0.0.1), 10.0.0.2"));
        assert!(told(&two, &none, false).contains("no quorum"));
        assert!(told(&two, &none, false).contains("on one (10.0.0.1), 10.0.0.2."));
        assert!(told(&none, &none, false).contains("the log"));
        assert!(told(&none, &two, true).contains("is of another cluster"));
    }

    #[test]
    fn a_snapshot_is_missed_after_two_times() {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        let snapshot = Snapshot {
            name: "x".into(),
            time,
            kind: Kind::Scheduled,
            size: 1,
            path: "/x".into(),
        };
        let after = |hours| {
            let now = time + jiff::SignedDuration::from_hours(hours);
            old_snapshot(Some(&snapshot), now).is_some()
        };
        assert!(!after(-1) && !after(7) && !after(12) && after(13));
        assert_eq!(old_snapshot(None, time), None);
    }
}
