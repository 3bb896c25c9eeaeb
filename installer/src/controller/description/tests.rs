use super::*;

fn node(hostname: &str, address: &str, role: Role, pod_cidr: &str) -> NodeSpec {
    NodeSpec {
        id: Uuid::new_v4(),
        ..spec::sample::node(hostname, address.parse().unwrap(), role, pod_cidr)
    }
}

fn cluster() -> ClusterSpec {
    ClusterSpec {
        pod_cidrs: vec!["10.244.0.0/22".into()],
        nodes: vec![node("one", "10.0.0.1", Role::Master, "10.244.0.0/24")],
        ..spec::sample::cluster()
    }
}

fn candidate(hostname: &str, address: &str) -> Candidate {
    Candidate {
        hostname: hostname.into(),
        advertise_addresses: vec![address.parse().unwrap()],
        profile: "web".into(),
        role: Some(Role::Worker),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        state_dir: "/var/lib/gravity".into(),
        image: "sha256:0".into(),
        machine: "a".into(),
        most: None,
    }
}

fn known(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Where only workers join.
fn take(
    cluster: &mut ClusterSpec,
    candidate: &Candidate,
    registered: &BTreeSet<String>,
) -> Result<Uuid, Refusal> {
    take_in(cluster, candidate, registered, &known(&[]), now())
}

#[test]
fn the_first_three_are_masters_one_after_the_other() {
    let mut cluster = cluster();
    cluster.pod_cidrs = vec!["10.244.0.0/16".into()];
    let open = |name: &str, address: &str| Candidate {
        role: None,
        ..candidate(name, address)
    };
    let (two, three) = (open("two", "10.0.0.2"), open("three", "10.0.0.3"));
    let nobody = known(&[]);
    take_in(&mut cluster, &two, &nobody, &known(&["one"]), now()).unwrap();
    // Until the second runs, a third could be told of the wrong members.
    let early = take_in(&mut cluster, &three, &nobody, &known(&["one"]), now()).unwrap_err();
    assert!(
        matches!(&early, Refusal::NotNow(text) if text.contains("master two is joining")),
        "{early}"
    );
    // But who tries again is not in its own way, and a worker in nobody's.
    take_in(&mut cluster, &two, &nobody, &known(&["one"]), now()).unwrap();
    take(&mut cluster, &candidate("worker", "10.0.0.9"), &nobody).unwrap();
    take_in(
        &mut cluster,
        &three,
        &nobody,
        &known(&["one", "two"]),
        now(),
    )
    .unwrap();
    take_in(
        &mut cluster,
        &open("four", "10.0.0.4"),
        &nobody,
        &nobody,
        now(),
    )
    .unwrap();
    let masters: Vec<_> = cluster
        .nodes
        .iter()
        .filter(|node| node.role == Role::Master)
        .map(|node| node.hostname.as_str())
        .collect();
    assert_eq!(masters, ["one", "two", "three"]);
}

#[test]
fn a_master_has_what_the_first_has_and_a_cluster_no_more_than_five() {
    let mut cluster = cluster();
    for index in 2..=5_u8 {
        let name = format!("n{index}");
        let master = Candidate {
            role: Some(Role::Master),
            ..candidate(&name, &format!("10.0.0.{index}"))
        };
        let voting: BTreeSet<_> = cluster
            .nodes
            .iter()
            .map(|one| one.hostname.clone())
            .collect();
        let taken = take_in(&mut cluster, &master, &known(&[]), &voting, now());
        match index {
            5 => assert!(taken.is_err_and(|no| no.to_string().contains("no part left"))),
            _ => drop(taken.unwrap()),
        }
    }
    let mut full = cluster.clone();
    full.nodes
        .push(node("n5", "10.0.0.5", Role::Master, "10.244.9.0/24"));
    let sixth = Candidate {
        role: Some(Role::Master),
        ..candidate("n6", "10.0.0.6")
    };
    let refused = take_in(&mut full, &sixth, &known(&[]), &known(&[]), now()).unwrap_err();
    assert!(refused.to_string().contains("5 masters"), "{refused}");

    let names = |node: &NodeSpec| -> Vec<_> { leaves(&cluster, node).into_keys().collect() };
    assert_eq!(names(&cluster.nodes[0]), names(&cluster.nodes[1]));
    assert!(names(&cluster.nodes[1]).contains(&"etcd-peer".to_owned()));
}

#[test]
fn nodes_get_parts_of_the_pod_network_until_it_ends() {
    let mut cluster = cluster();
    for index in 2..=4_u8 {
        let joined = candidate(&format!("n{index}"), &format!("10.0.0.{index}"));
        take(&mut cluster, &joined, &known(&[])).unwrap();
    }
    let parts: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| &node.pod_cidrs[0])
        .collect();
    let expected = [
        "10.244.0.0/24",
        "10.244.1.0/24",
        "10.244.2.0/24",
        "10.244.3.0/24",
    ];
    assert_eq!(parts, expected);
    let before = cluster.clone();
    let refused = take(&mut cluster, &candidate("n5", "10.0.0.5"), &known(&[])).unwrap_err();
    assert!(refused.to_string().contains("no part left"), "{refused}");
    assert_eq!(cluster.nodes, before.nodes);

    // A part that is free again is given again.
    cluster.nodes.remove(2);
    take(&mut cluster, &candidate("n6", "10.0.0.6"), &known(&[])).unwrap();
    assert_eq!(cluster.nodes[3].pod_cidrs, ["10.244.2.0/24"]);
}

#[test]
fn a_license_limits_the_nodes_and_their_time() {
    let mut cluster = cluster();
    let ends = now() + Duration::from_secs(60);
    let ends = ends.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    cluster.license = Some(spec::License {
        holder: "Acme".into(),
        max_nodes: Some(2),
        ends: i64::try_from(ends.as_secs()).unwrap(),
    });
    let two = candidate("two", "10.0.0.2");
    let later = now() + Duration::from_secs(120);
    let over = take_in(&mut cluster, &two, &known(&[]), &known(&[]), later).unwrap_err();
    assert!(over.to_string().contains("is over"), "{over}");
    take_in(&mut cluster, &two, &known(&[]), &known(&[]), now()).unwrap();
    // A lost try again is no further node.
    take_in(&mut cluster, &two, &known(&[]), &known(&[]), now()).unwrap();
    let three = candidate("three", "10.0.0.3");
    let full = take_in(&mut cluster, &three, &known(&["two"]), &known(&[]), now()).unwrap_err();
    assert!(full.to_string().contains("allows 2 node"), "{full}");
    cluster.license = cluster.license.map(|license| spec::License {
        max_nodes: None,
        ..license
    });
    take_in(&mut cluster, &three, &known(&["two"]), &known(&[]), now()).unwrap();
}

#[test]
fn a_profile_whose_number_is_fixed_gets_the_flavors_nodes_and_no_more() {
    let mut cluster = cluster();
    let fixed = |name: &str, address: &str| Candidate {
        most: Some(2),
        ..candidate(name, address)
    };
    let two = fixed("two", "10.0.0.2");
    take(&mut cluster, &two, &known(&[])).unwrap();
    // A lost try again is no further node, and other profiles are free.
    take(&mut cluster, &two, &known(&[])).unwrap();
    let other = Candidate {
        profile: "other".into(),
        ..fixed("other", "10.0.0.9")
    };
    take(&mut cluster, &other, &known(&[])).unwrap();
    let three = fixed("three", "10.0.0.3");
    let refused = take(&mut cluster, &three, &known(&[])).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("profile web can't be added"), "{text}");
    // One that takes the place of another.
    cluster.nodes.retain(|node| node.hostname != "two");
    take(&mut cluster, &three, &known(&[])).unwrap();
}

fn now() -> SystemTime {
    SystemTime::now()
}

#[test]
fn a_node_is_joining_until_it_says_that_it_works() {
    let mut cluster = cluster();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    let two = candidate("two", "10.0.0.2");
    let id = take_in(&mut cluster, &two, &known(&[]), &known(&[]), time).unwrap();
    assert_eq!(cluster.node(id).unwrap().taken_in, Some(7));
    has_joined(&mut cluster, Uuid::from_u128(99));
    assert_eq!(cluster.node(id).unwrap().taken_in, Some(7));
    has_joined(&mut cluster, id);
    assert_eq!(cluster.node(id).unwrap().taken_in, None);
}

#[test]
fn names_and_addresses_are_one_nodes_and_a_lost_try_is_replaced() {
    let mut cluster = cluster();
    take(&mut cluster, &candidate("two", "10.0.0.2"), &known(&[])).unwrap();
    // Kubernetes never saw it.
    take(&mut cluster, &candidate("two", "10.0.0.2"), &known(&[])).unwrap();
    assert_eq!(cluster.nodes.len(), 2);
    for (hostname, address, word) in [
        ("two", "10.0.0.3", "remove two"),
        ("three", "10.0.0.2", "same address"),
        ("one", "10.0.0.4", "has a node one"),
        ("four", "10.0.0.1", "same address"),
        ("No", "10.0.0.5", "can't be a node's name"),
        ("a..b", "10.0.0.5", "can't be a node's name"),
    ] {
        let candidate = candidate(hostname, address);
        let refused = take(&mut cluster, &candidate, &known(&["two"])).unwrap_err();
        assert!(refused.to_string().contains(word), "{hostname}: {refused}");
    }
    let other = Candidate {
        image: "sha256:1".into(),
        ..candidate("five", "10.0.0.5")
    };
    let refused = take(&mut cluster, &other, &known(&[])).unwrap_err();
    assert!(refused.to_string().contains("another image"), "{refused}");
    assert_eq!(cluster.nodes.len(), 2);
}

#[test]
fn of_two_machines_that_join_at_once_with_one_name_the_second_is_refused() {
    let mut cluster = cluster();
    let two = candidate("two", "10.0.0.2");
    let first = take(&mut cluster, &two, &known(&[])).unwrap();
    let before = cluster.clone();
    let later = now() + LOST + Duration::from_secs(60);
    let clone = Candidate {
        machine: "b".into(),
        ..two.clone()
    };
    for other in [
        clone.clone(),
        candidate("two", "10.0.0.3"),
        candidate("three", "10.0.0.2"),
    ] {
        let refused = take(&mut cluster, &other, &known(&[])).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.contains("two (10.0.0.2) is joining") && text.contains("remove two"),
            "{text}"
        );
        assert_eq!(cluster, before);
    }
    // The first goes on after a long hook: it stays the one.
    let mut went_on = cluster.clone();
    hear(&mut went_on, first, now() + LOST).unwrap();
    take_in(&mut went_on, &clone, &known(&[]), &known(&[]), later).unwrap_err();
    // It is lost: another one gets its place, and it gets none any more.
    let second = take_in(&mut cluster, &clone, &known(&[]), &known(&[]), later).unwrap();
    assert_eq!(cluster.nodes.len(), 2);
    let gone = hear(&mut cluster, first, later).unwrap_err();
    assert!(gone.to_string().contains("no member"), "{gone}");
    let node = hear(&mut cluster, second, later).unwrap();
    assert_eq!(node.pod_cidrs, ["10.244.1.0/24"]);
}

#[test]
fn a_node_that_is_heard_of_again_soon_changes_no_description() {
    let mut cluster = cluster();
    let two = take(&mut cluster, &candidate("two", "10.0.0.2"), &known(&[])).unwrap();
    let before = cluster.clone();
    hear(&mut cluster, two, now() + LOST / 3).unwrap();
    assert_eq!(cluster, before);
}

#[test]
fn a_master_that_leaves_is_no_lost_try() {
    let mut cluster = cluster();
    cluster.nodes.push(NodeSpec {
        leaving: true,
        ..node("two", "10.0.0.2", Role::Master, "10.244.1.0/24")
    });
    let two = candidate("two", "10.0.0.2");
    let refused = take(&mut cluster, &two, &known(&[])).unwrap_err();
    assert!(refused.to_string().contains("remove two"), "{refused}");
}

#[test]
fn a_worker_gets_its_own_names_and_none_of_the_masters() {
    let worker = node("two", "10.0.0.2", Role::Worker, "10.244.1.0/24");
    let leaves = leaves(&cluster(), &worker);
    let names: Vec<_> = leaves.keys().map(String::as_str).collect();
    let expected = [
        "coredns.kubeconfig",
        "images",
        "kube-proxy.kubeconfig",
        "kubelet",
        "kubelet.kubeconfig",
        "node",
        "registry",
        "registry-client",
    ];
    assert_eq!(names, expected);
    let (authority, kubelet) = &leaves["kubelet.kubeconfig"];
    assert_eq!(authority, "kubernetes-ca");
    assert_eq!(kubelet.common_name, "system:node:two");
    assert_eq!(kubelet.organizations, ["system:nodes"]);
    assert!(kubelet.client && !kubelet.server);
    // Nodes that join know it as a server at its own address, and no more.
    let (authority, images) = &leaves["images"];
    assert_eq!(authority, "rpc-ca");
    assert!(images.server && !images.client);
    assert_eq!(images.ip_addresses, worker.advertise_addresses);
    let (authority, identity) = &leaves["node"];
    assert_eq!(authority, "rpc-ca");
    assert_eq!(identity.common_name, member_name(worker.id));
    let admin = |leaf: &Leaf| {
        leaf.organizations
            .iter()
            .any(|group| group == "system:masters")
    };
    assert!(leaves.values().all(|(authority, leaf)| {
        !admin(leaf) && authority != "etcd-ca" && authority != "front-proxy-ca"
    }));
}

#[test]
fn a_master_leaves_only_where_another_has_run_and_one_at_a_time() {
    let mut cluster = cluster();
    cluster.pod_cidrs = vec!["10.244.0.0/16".into()];
    let one = cluster.nodes[0].clone();
    let alone = let_go(&cluster, &one, &known(&["one"])).unwrap_err();
    assert!(alone.to_string().contains("only master"), "{alone}");

    cluster
        .nodes
        .push(node("two", "10.0.0.2", Role::Master, "10.244.1.0/24"));
    // The second has been taken in and is nowhere near running.
    let early = let_go(&cluster, &one, &known(&["one"])).unwrap_err();
    assert!(
        matches!(&early, Refusal::NotNow(text) if text.contains("two is joining")),
        "{early}"
    );
    let both = known(&["one", "two"]);
    let_go(&cluster, &one, &both).unwrap();

    // Two at once would leave none.
    cluster.nodes[0].leaving = true;
    let two = cluster.nodes[1].clone();
    let last = let_go(&cluster, &two, &both).unwrap_err();
    assert!(last.to_string().contains("only master"), "{last}");
    // One that was cut off goes on.
    let_go(&cluster, &one, &both).unwrap();
    assert_eq!(cluster.masters().count(), 1);

    let three = Candidate {
        role: Some(Role::Master),
        ..candidate("three", "10.0.0.3")
    };
    let meanwhile = take_in(&mut cluster, &three, &known(&[]), &both, now()).unwrap_err();
    assert!(
        meanwhile.to_string().contains("one is leaving"),
        "{meanwhile}"
    );

    // Another one stays, and still they go one after the other.
    let three = node("three", "10.0.0.3", Role::Master, "10.244.2.0/24");
    cluster.nodes.push(three.clone());
    let all = known(&["one", "two", "three"]);
    let second = let_go(&cluster, &three, &all).unwrap_err();
    assert!(
        matches!(&second, Refusal::NotNow(text) if text.contains("one is leaving")),
        "{second}"
    );
    let_go(&cluster, &cluster.nodes[0], &all).unwrap();
    cluster.nodes[0].leaving = false;
    let_go(&cluster, &three, &all).unwrap();
}

#[test]
fn nobody_gets_a_certificate_for_an_address_or_name_of_the_cluster() {
    for (name, address, word) in [
        ("two", "169.254.20.10", "can't be a node's address"),
        ("two", "127.0.0.1", "can't be a node's address"),
        ("two", "10.100.0.1", "can't be a node's address"),
        ("two", "10.244.0.7", "can't be a node's address"),
        ("kubernetes.default.svc", "10.0.0.2", "cluster's own"),
        ("localhost", "10.0.0.2", "cluster's own"),
        (spec::LEADER_NAME, "10.0.0.2", "cluster's own"),
    ] {
        let refused = take(&mut cluster(), &candidate(name, address), &known(&[])).unwrap_err();
        assert!(
            refused.to_string().contains(word),
            "{name} {address}: {refused}"
        );
    }
    let mut nowhere = candidate("two", "10.0.0.2");
    nowhere.advertise_addresses.clear();
    assert!(take(&mut cluster(), &nowhere, &known(&[])).is_err());
    let mut wordy = candidate("two", "10.0.0.2");
    wordy.labels.insert("a".into(), "b".repeat(400));
    assert!(take(&mut cluster(), &wordy, &known(&[])).is_err());
    wordy.labels.clear();
    take(&mut cluster(), &wordy, &known(&[])).unwrap();
}

#[test]
fn a_cluster_of_two_thousand_nodes_has_room_and_too_many_are_refused_by_their_number() {
    let described = |nodes: usize| {
        let mut cluster = cluster();
        cluster.nodes = (0..nodes)
            .map(|number| {
                let name = format!("a-node-with-a-name-{number:04}");
                NodeSpec {
                    machine: "0123456789abcdef".repeat(2),
                    taken_in: seconds(now()),
                    ..node(&name, "10.120.130.140", Role::Worker, "172.16.100.0/24")
                }
            })
            .collect();
        has_room(&serde_json::to_string(&cluster).unwrap(), nodes)
    };
    assert_eq!(described(2000), Ok(()));
    let refused = described(10_000).unwrap_err().to_string();
    assert!(refused.contains("no room for 10000 nodes"), "{refused}");
}
