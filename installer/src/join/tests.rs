use std::collections::BTreeMap;

use spec::Role;

use super::*;
use crate::install::tests::{facts, image, user};

const MANIFEST: &str = "\
apiVersion: cluster.gravitational.io/v2
kind: Cluster
metadata: {name: app, resourceVersion: 1.2.3}
nodeProfiles:
  - {name: boss, serviceRole: master}
  - name: web
    labels: {tier: front}
    requirements: {volumes: [{name: data, path: '/data-*', targetPath: /data}]}
";

fn cluster() -> ClusterSpec {
    let node = |hostname: &str, address: &str, role, pods: &str| NodeSpec {
        id: Uuid::from_u128(u128::from(hostname == "node-1")),
        ..spec::sample::node(hostname, address.parse().unwrap(), role, pods)
    };
    ClusterSpec {
        name: "app".into(),
        image: image().reference,
        nodes: vec![
            node("first", "192.168.7.8", Role::Master, "10.244.0.0/24"),
            node("node-1", "192.168.7.9", Role::Worker, "10.244.1.0/24"),
        ],
        ..spec::sample::cluster()
    }
}

fn options() -> Options {
    Options {
        mounts: BTreeMap::new(),
        advertise_address: None,
        role: None,
        state_dir: "/var/lib/gravity".into(),
    }
}

fn manifest() -> Manifest {
    manifest::parse(MANIFEST, "app.yaml").unwrap()
}

fn asked(cluster: &ClusterSpec, users: &KnownUsers) -> Result<Candidate, Error> {
    candidate(&options(), &manifest(), &image(), cluster, &facts(), users)
}

#[test]
fn a_node_tells_what_it_is() {
    let candidate = asked(&cluster(), &KnownUsers::default()).unwrap();
    assert_eq!(candidate.hostname, "node-1");
    assert_eq!(candidate.profile, "web");
    assert_eq!(candidate.labels["tier"], "front");
    assert_eq!(
        candidate.advertise_addresses,
        ["192.168.7.9".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn a_fixed_profile_has_the_nodes_of_the_flavor_and_others_any_number() {
    let text = "\
metadata: {name: app, resourceVersion: 1.2.3}
installer: {flavors: {items: [{name: two, nodes: [{profile: db, count: 2}, {profile: web, count: 1}]}]}}
nodeProfiles:
  - {name: db, expandPolicy: fixed}
  - {name: web, expandPolicy: fixed-instance}
";
    let manifest = manifest::parse(text, "app.yaml").unwrap();
    for (role, flavor, most) in [
        ("db", Some("two"), Some(2)),
        ("db", None, Some(0)),
        ("web", Some("two"), None),
    ] {
        let cluster = ClusterSpec {
            flavor: flavor.map(Into::into),
            ..cluster()
        };
        let options = Options {
            role: Some(role.into()),
            ..options()
        };
        let users = KnownUsers::default();
        let node = candidate(&options, &manifest, &image(), &cluster, &facts(), &users);
        assert_eq!(node.unwrap().most, most, "{role} {flavor:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_before_the_cluster_hears_of_it() {
    let mut other = cluster();
    other.image.digest = "sha256:ff".into();
    let error = asked(&other, &KnownUsers::default()).unwrap_err();
    assert!(error.to_string().contains("a copy of that file"), "{error}");

    let with_id = KnownUsers {
        with_id: Some(user("alice", 1000, 50)),
        named: None,
    };
    let error = asked(&cluster(), &with_id).unwrap_err();
    assert!(error.to_string().contains("alice"), "{error}");
    let named = KnownUsers {
        with_id: None,
        named: Some(user("planet", 1005, 1005)),
    };
    let error = asked(&cluster(), &named).unwrap_err();
    assert!(error.to_string().contains("1005"), "{error}");

    let manifest = manifest();
    let masters = choose_profile(&manifest, Some("boss")).unwrap();
    assert_eq!(masters.unwrap().role(), Some(ServiceRole::Master));
    let error = choose_profile(&manifest, Some("none")).unwrap_err();
    assert!(error.to_string().contains("no profile"), "{error}");
}

#[test]
fn a_mount_takes_the_place_of_the_profiles_path() {
    let membership = Membership {
        cluster: cluster(),
        node: Uuid::from_u128(1),
        certificate: String::new(),
        authorities: BTreeMap::new(),
    };
    let users = KnownUsers::default();
    let plan = |name: &str| {
        let mounts = BTreeMap::from([(name.to_owned(), "/mnt/disk".into())]);
        plan(
            &membership,
            &manifest(),
            &image(),
            &users,
            &facts(),
            &mounts,
        )
    };
    let planned = plan("data").unwrap();
    let leaves = planned.leaves();
    let volumes = leaves.iter().find(|phase| phase.id == "/prepare/volumes");
    let payload = volumes.unwrap().payload.clone();
    let PhaseSpec::Volumes(volumes) = serde_json::from_value(payload).unwrap() else {
        panic!("/prepare/volumes is something else")
    };
    let volume = &volumes.volumes[0];
    assert_eq!(
        (volume.path.as_path(), volume.pattern),
        ("/mnt/disk".as_ref(), false)
    );
    let error = plan("none").unwrap_err();
    assert!(error.to_string().contains("data"), "{error}");
}

#[test]
fn a_workers_plan_has_no_part_of_the_control_plane() {
    let membership = Membership {
        cluster: cluster(),
        node: Uuid::from_u128(1),
        certificate: String::new(),
        authorities: BTreeMap::new(),
    };
    let plan = plan(
        &membership,
        &manifest(),
        &image(),
        &KnownUsers::default(),
        &facts(),
        &BTreeMap::new(),
    )
    .unwrap();
    plan.validate().unwrap();
    let planet = plan
        .leaves()
        .into_iter()
        .find(|phase| phase.id == "/start/planet")
        .unwrap();
    let config: planet::config::PlanetConfig =
        serde_json::from_value(planet.payload["config"].clone()).unwrap();
    config.check().unwrap();
    let mut services: Vec<_> = config
        .services
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    services.sort_unstable();
    let expected = [
        "care",
        "containerd",
        "coredns",
        "flannel",
        "images",
        "kube-proxy",
        "kubelet",
        "registry",
    ];
    assert_eq!(services, expected);
    let mut services = config.services.iter();
    let images = services.find(|one| one.name == "images").unwrap();
    assert_eq!(images.uid, 1000, "it reads what all may read");
    let backends: Vec<_> = config
        .balancers
        .iter()
        .map(|balancer| balancer.backends[0].to_string())
        .collect();
    assert_eq!(backends, ["192.168.7.8:6443", "192.168.7.9:5000"]);

    let mut files = config.files.iter();
    let care = files.find(|file| file.path == std::path::Path::new(spec::care::CONFIG));
    let care: spec::care::Care = serde_json::from_str(&care.unwrap().content).unwrap();
    assert!(!care.etcd);
    assert_eq!(care.controllers, ["192.168.7.8:3009".parse().unwrap()]);
    let snapshots = spec::care::Care::layout().etcd_snapshots();
    assert!(config.mounts.iter().all(|mount| mount.target != snapshots));

    let stranger = Membership {
        node: Uuid::from_u128(9),
        ..membership
    };
    let error = super::plan(
        &stranger,
        &manifest(),
        &image(),
        &KnownUsers::default(),
        &facts(),
        &BTreeMap::new(),
    );
    assert!(matches!(error, Err(Error::NotTaken)));
}

/// What a node that joins as one of so many masters has in its plan: its planet,
/// the services that it waits for, what its planet waits for.
fn joined(masters: usize) -> (planet::config::PlanetConfig, Vec<String>) {
    let mut cluster = cluster();
    cluster.nodes[1].role = Role::Master;
    if masters == 3 {
        cluster.nodes.insert(
            1,
            NodeSpec {
                hostname: "second".into(),
                advertise_addresses: vec!["192.168.7.7".parse().unwrap()],
                id: Uuid::from_u128(2),
                ..cluster.nodes[0].clone()
            },
        );
    }
    let membership = Membership {
        cluster,
        node: Uuid::from_u128(1),
        certificate: String::new(),
        authorities: BTreeMap::new(),
    };
    let users = KnownUsers::default();
    let plan = plan(
        &membership,
        &manifest(),
        &image(),
        &users,
        &facts(),
        &BTreeMap::new(),
    )
    .unwrap();
    plan.validate().unwrap();
    let leaves = plan.leaves();
    let find = |id: &str| *leaves.iter().find(|phase| phase.id == id).unwrap();
    let planet = find("/start/planet");
    let config: planet::config::PlanetConfig =
        serde_json::from_value(planet.payload["config"].clone()).unwrap();
    config.check().unwrap();
    let PhaseSpec::Health(health) =
        serde_json::from_value(find("/health").payload.clone()).unwrap()
    else {
        panic!("/health is something else")
    };
    // Its etcd must be a member before it starts, and hooks see no kubelet before.
    let groups: Vec<_> = plan.phases.iter().map(|phase| phase.id.as_str()).collect();
    assert_eq!(find("/prepare/node").requires, ["/prepare/secrets"]);
    let position = |id: &str| groups.iter().position(|group| *group == id);
    assert!(position("/prepare") < position("/start"), "{groups:?}");
    (config, health.services)
}

#[test]
fn a_second_master_stands_by_and_a_third_is_waited_for() {
    let (config, waited_for) = joined(2);
    assert!(waited_for.contains(&"kubelet".to_owned()));
    assert!(!waited_for.contains(&"kube-apiserver".to_owned()));
    let service = |name: &str| config.services.iter().find(|one| one.name == name).unwrap();
    // It has no API server of its own yet.
    assert_eq!(service("kubelet").requires, ["containerd"]);
    for name in &waited_for {
        let requires = &service(name).requires;
        assert!(
            requires.iter().all(|one| waited_for.contains(one)),
            "{name}: {requires:?}"
        );
    }
    let etcd = service("etcd");
    for argument in [
        "--initial-cluster=first=https://192.168.7.8:2380,node-1=https://192.168.7.9:2380",
        "--initial-cluster-state=existing",
        "--election-timeout=1000",
    ] {
        assert!(
            etcd.command.iter().any(|one| one == argument),
            "{argument}: {etcd:?}"
        );
    }
    assert_eq!(etcd.alternative, None);
    // What it stores was others' before: it is never thrown away.
    assert!(etcd.pre_start.is_empty());
    let of_masters: Vec<_> = config
        .services
        .iter()
        .map(|one| one.name.as_str())
        .filter(|name| !waited_for.iter().any(|waited| waited == name))
        .collect();
    let [expected @ .., "status-hook"] = services::OF_MASTERS else {
        panic!("{:?}", services::OF_MASTERS)
    };
    assert_eq!(of_masters, expected);
    let scheduler = service("kube-scheduler");
    assert!(
        scheduler
            .command
            .contains(&"--leader-elect=true".to_owned())
    );

    let (_, waited_for) = joined(3);
    assert!(waited_for.is_empty());
}
