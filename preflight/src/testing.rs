//! A host on which everything is fine, and a node that needs nothing.

use host::facts::{
    Address, Cgroup, Clock, HostFacts, Interface, Introduction, Kernel, Kind, Network, Offset, Os,
    Packet, Peer, Place, Port, Protocol, Rates, Reach, ResolvConf, Route, Seen, Space, Way,
};
use host::modules::Presence;

use super::*;

pub(crate) fn facts() -> HostFacts {
    let address = |interface: &str, address: [u8; 4], prefix| Address {
        interface: interface.into(),
        address: address.into(),
        prefix,
    };
    let set = |names: &str| names.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    let reads = checks::ALL.iter().map(|check| &check.reads);
    let options = reads.clone().flat_map(|reads| reads.kernel_options);
    let modules = reads.clone().flat_map(|reads| reads.modules);
    let programs = reads.flat_map(|reads| reads.programs);
    HostFacts {
        hostname: "node-1".into(),
        cpus: 4,
        ram_bytes: 8_000_000_000,
        os: Os {
            id: "debian".into(),
            version_id: "12".into(),
            pretty_name: "Debian 12".into(),
        },
        kernel_release: "6.1.0-18-amd64".into(),
        architecture: "x86_64".into(),
        addresses: vec![
            address("lo", [127, 0, 0, 1], 8),
            address("eth0", [192, 168, 1, 5], 24),
        ],
        routes: vec![Route {
            destination: "0.0.0.0/0".into(),
            interface: "eth0".into(),
        }],
        cgroup: Cgroup::V2,
        can_lower_oom_score: true,
        systemd: true,
        cpu_features: set("cx16 lahf_lm popcnt ssse3 sse4_1 sse4_2"),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        kernel: Kernel {
            options: Some(options.map(|name| ((*name).into(), "y".into())).collect()),
            modules: modules
                .map(|name| ((*name).into(), Presence::Loaded))
                .collect(),
            forbidden: BTreeMap::new(),
            blacklisted: BTreeMap::new(),
            has_module_files: true,
            sysctls: good_sysctls(),
            filesystems: set("ext4 overlay proc"),
            controllers: set("cpuset cpu io memory hugetlb pids"),
            capabilities: Some(u64::MAX),
            max_open_files: Some(1 << 20),
            selinux: None,
            apparmor: true,
            clock: Some(Clock {
                synchronised: true,
                max_error_us: 1000,
            }),
        },
        network: Network {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: 1500,
            }],
            resolv_conf: Some(ResolvConf {
                nameservers: vec![[192, 168, 1, 1].into()],
                search: vec!["example.org".into()],
            }),
            localhost: Some(vec![[127, 0, 0, 1].into()]),
            proxies: BTreeMap::new(),
            filters: Some(set("OUTPUT")),
            rules: vec!["32766:\tfrom all lookup main".into()],
            ufw: false,
            firewalld: None,
        },
        processes: BTreeMap::from([("systemd".into(), 1)]),
        programs: programs.map(|name| (*name).to_owned()).collect(),
        logins: BTreeMap::from([(0, "root".into())]),
        ..HostFacts::default()
    }
}

fn good_sysctls() -> BTreeMap<String, String> {
    let values = [
        ("net.ipv4.ip_forward", "1"),
        ("net.bridge.bridge-nf-call-iptables", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "2"),
        ("net.ipv4.conf.all.arp_ignore", "0"),
        ("net.ipv4.conf.all.arp_filter", "0"),
        ("fs.inotify.max_user_instances", "8192"),
        ("fs.inotify.max_user_watches", "1048576"),
        ("vm.overcommit_memory", "0"),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    values.into_iter().map(owned).collect()
}

pub(crate) fn requirements() -> Requirements {
    Requirements {
        profile: manifest::Requirements::default(),
        state_dir: "/var/lib/gravity".into(),
        state_bytes: 1_000_000_000,
        state_inodes: 1000,
        advertise_address: [192, 168, 1, 5].into(),
        pod_cidrs: vec!["10.244.0.0/16".into()],
        service_cidrs: vec!["10.100.0.0/16".into()],
        pod_network: PodNetwork::Vxlan,
        vxlan_port: 8472,
        service_uid: 1000,
        joined: false,
        sets: BTreeSet::new(),
    }
}

/// The requirements of a profile that is written as in a manifest.
pub(crate) fn with_profile(yaml: &str) -> Requirements {
    let text = format!(
        "metadata: {{name: a, resourceVersion: 1.0.0}}\n\
         nodeProfiles: [{{name: n, requirements: {yaml}}}]"
    );
    Requirements {
        profile: manifest::parse(&text, "a").unwrap().node_profiles[0]
            .requirements
            .clone(),
        ..requirements()
    }
}

/// A directory on a filesystem with room.
pub(crate) fn room(available_bytes: u64, device: u64) -> Place {
    let space = Space {
        available_bytes,
        total_bytes: available_bytes,
        inodes_available: 1_000_000,
        inodes_total: 2_000_000,
        filesystem: "ext4".into(),
        measured_at: "/var".into(),
    };
    Place {
        kind: Some(Kind::Directory),
        device: Some(device),
        space: Some(space),
        mount_options: vec!["rw".into()],
        has_entry_types: Some(true),
        ..Place::default()
    }
}

pub(crate) fn places() -> Places {
    let free = checks::links::paths().map(|path| (path, Place::default()));
    let rooms = [
        (requirements().state_dir, room(10_000_000_000, 1)),
        ("/tmp".into(), room(10_000_000_000, 1)),
    ];
    Places {
        paths: free.chain(rooms).collect(),
        temp_dir: "/tmp".into(),
        ..Places::default()
    }
}

pub(crate) fn report(requirements: &Requirements, facts: &HostFacts) -> Report {
    report_at(requirements, facts, places())
}

pub(crate) fn report_at(requirements: &Requirements, facts: &HostFacts, places: Places) -> Report {
    let facts = Facts {
        host: facts.clone(),
        places,
        measured: Measured::default(),
    };
    evaluate(requirements, &facts)
}

/// A good host of which this was measured.
pub(crate) fn measured(requirements: &Requirements, measured: Measured) -> Report {
    let mut places = places();
    for volume in &requirements.profile.volumes {
        places
            .paths
            .insert(volume.path.as_str().into(), room(10_000_000_000, 2));
    }
    let facts = Facts {
        host: facts(),
        places,
        measured,
    };
    evaluate(requirements, &facts)
}

/// Severities and ids of failures and warnings.
///
/// # Panics
/// If one is worse than its check says.
#[track_caller]
pub(crate) fn troubles(report: &Report) -> Vec<(Severity, &str)> {
    for finding in &report.findings {
        let check = checks().find(|check| check.id == finding.id).unwrap();
        let unknown = finding.severity == Severity::Warning;
        let said = check.severities.contains(&finding.severity);
        assert!(
            said || unknown || finding.severity == Severity::Info,
            "{} should tell of {}",
            check.id,
            finding.severity
        );
    }
    let trouble = report
        .findings
        .iter()
        .filter(|finding| finding.severity != Severity::Info);
    trouble
        .map(|finding| (finding.severity, finding.id.as_str()))
        .collect()
}

/// Troubles of a good host that was changed.
pub(crate) fn spoiled(spoil: impl FnOnce(&mut HostFacts)) -> Report {
    let mut facts = facts();
    spoil(&mut facts);
    report(&requirements(), &facts)
}

/// A good host that was changed has exactly this one trouble.
#[track_caller]
pub(crate) fn only(severity: Severity, id: &str, spoil: impl FnOnce(&mut HostFacts)) -> Finding {
    let report = spoiled(spoil);
    assert_eq!(troubles(&report), [(severity, id)]);
    let trouble = report
        .findings
        .into_iter()
        .find(|finding| finding.severity == severity);
    let trouble = trouble.unwrap();
    assert!(!trouble.remedy.is_empty(), "{trouble:?}");
    trouble
}

/// A good host on which the state directory was changed has exactly this one
/// trouble.
#[track_caller]
pub(crate) fn only_at(severity: Severity, id: &str, spoil: impl FnOnce(&mut Place)) {
    let mut places = places();
    spoil(places.paths.get_mut(&requirements().state_dir).unwrap());
    let report = report_at(&requirements(), &facts(), places);
    assert_eq!(troubles(&report), [(severity, id)]);
}

/// Another node that is as it should be.
pub(crate) fn peer() -> Peer {
    let vxlan = Port {
        protocol: Protocol::Udp,
        number: 8472,
    };
    let way = Way {
        ports: vec![(vxlan, Reach::Reached)],
        packet: Some(Packet {
            size: 1500,
            arrived: true,
        }),
        rates: Some(Rates {
            there: 1 << 30,
            back: 1 << 30,
        }),
    };
    Peer {
        address: ([192, 168, 1, 6], spec::CONTROLLER_PORT).into(),
        seen: Ok(Seen {
            who: Introduction {
                hostname: "node-2".into(),
                machine_id: "fedcba9876543210fedcba9876543210".into(),
                macs: vec!["02:00:00:00:00:02".into()],
            },
            clock: Ok(Offset {
                ahead_us: 900,
                round_trip_us: 400,
            }),
            there: way.clone(),
            back: way,
        }),
    }
}

/// A good host beside a good one that was changed.
pub(crate) fn with_peers(spoil: impl FnOnce(&mut Peer)) -> Report {
    let mut peer = peer();
    spoil(&mut peer);
    let peers = vec![peer];
    measured(
        &requirements(),
        Measured {
            peers,
            ..Measured::default()
        },
    )
}

/// A good host beside a good one that was changed has exactly this one trouble.
#[track_caller]
pub(crate) fn only_between(severity: Severity, id: &str, spoil: impl FnOnce(&mut Peer)) -> Finding {
    let report = with_peers(spoil);
    assert_eq!(troubles(&report), [(severity, id)]);
    let mut findings = report.findings.into_iter();
    let trouble = findings.find(|finding| finding.severity == severity);
    let trouble = trouble.unwrap();
    assert!(!trouble.remedy.is_empty(), "{trouble:?}");
    trouble
}

#[test]
fn a_good_host_has_no_troubles() {
    let report = report(&requirements(), &facts());
    assert_eq!(troubles(&report), []);
    assert!(report.passed().count() >= 30, "{report:?}");
}

#[test]
fn nothing_known_is_no_failure_but_for_root_and_machine() {
    let report = report_at(&requirements(), &HostFacts::default(), Places::default());
    let failed: BTreeSet<_> = report
        .failures()
        .map(|finding| finding.id.as_str())
        .collect();
    assert_eq!(Vec::from_iter(failed), Vec::<&str>::new());
}

#[test]
fn this_host_can_be_checked_and_its_facts_travel() {
    let effort = Effort {
        disks: false,
        scripts: false,
        network: false,
        script_timeout: std::time::Duration::from_secs(1),
        directory: "/".into(),
    };
    let facts = Facts::collect(&requirements(), host_facts(), &effort, Vec::new);
    let stored = serde_json::to_string(&facts).unwrap();
    let facts: Facts = serde_json::from_str(&stored).unwrap();
    let report = evaluate(&requirements(), &facts);
    assert!(!report.findings.is_empty());
    let json = serde_json::to_value(&report).unwrap();
    assert!(json["findings"][0]["id"].is_string());
}

#[test]
fn every_check_is_described_once() {
    let ids: BTreeSet<_> = checks().map(|check| check.id).collect();
    assert_eq!(ids.len(), checks().count());
    for check in checks() {
        for text in [check.id, check.about, check.limit, check.remedy] {
            assert!(!text.is_empty() && !text.ends_with('.'), "{check:?}");
        }
    }
}

/// Lines of the documentation's table of all checks, without their last column,
/// which says where a trouble is made on a real node.
fn table() -> Vec<String> {
    let yes = |yes| if yes { "yes" } else { "no" };
    checks()
        .map(|check| {
            format!(
                "| `{}` | {} | {} | {} | {} | {} | {} |",
                check.id,
                check.about,
                check.limit,
                check.severity(),
                check.remedy,
                yes(!check.strict),
                yes(check.fixable)
            )
        })
        .collect()
}

#[test]
fn the_documentation_has_every_check() {
    let text = include_str!("../../docs/preflight.md");
    let table = table();
    let rows: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let rows = &rows[rows.len() - table.len()..];
    for (row, expected) in rows.iter().zip(&table) {
        assert!(
            row.starts_with(expected.as_str()),
            "docs/preflight.md should have:\n{}",
            table.join("\n")
        );
    }
}

/// Profiles of the manifest's documentation, on what hosts are like; the reports
/// as they are in `testdata/reports.txt`.
#[test]
fn profiles_fit_some_distributions_and_not_others() {
    let db = "{cpu: {min: 8}, ram: {min: 32GB}, os: [{name: centos, versions: ['7']}, \
              {name: rhel, versions: ['7.2', '7.3']}], volumes: [{path: /var/lib/data, \
              capacity: 512GB, filesystems: [ext4, xfs]}]}";
    let worker = "{cpu: {min: 4}, ram: {min: 4GB}}";
    let hosts = [
        ("centos", "7", "3.10.0-1160.el7.x86_64"),
        ("rhel", "7.2", "3.10.0-327.el7.x86_64"),
        ("rhel", "7.9", "3.10.0-1160.el7.x86_64"),
        ("debian", "12", "6.1.0-18-amd64"),
        ("ubuntu", "24.04", "6.8.0-31-generic"),
    ];
    let mut reports = String::new();
    let mut judge = |name: &str, on: &str, profile: &str, facts: &Facts| {
        let report = evaluate(&with_profile(profile), facts);
        let passed = report.passed().count();
        reports += &format!("{name} on {on}: {passed} passed\n");
        for finding in report.warnings().chain(report.failures()) {
            reports += &format!("  {:?} {}: {finding}\n", finding.severity, finding.id);
        }
    };
    for (id, version, kernel) in hosts {
        let mut host = facts();
        (host.cpus, host.ram_bytes) = (8, 64_000_000_000);
        host.os.id = id.into();
        host.os.version_id = version.into();
        host.os.pretty_name = format!("{id} {version}");
        host.kernel_release = kernel.into();
        let mut places = places();
        let data = room(600_000_000_000, 2);
        places.paths.insert("/var/lib/data".into(), data);
        let facts = Facts {
            host,
            places,
            measured: Measured::default(),
        };
        for (name, profile) in [("db", db), ("worker", worker)] {
            judge(name, &format!("{id} {version}"), profile, &facts);
        }
    }
    // What `--facts-out` wrote on a node of namespaces.
    let node = serde_json::from_str(include_str!("../testdata/node.json")).unwrap();
    for (name, profile) in [("db", db), ("worker", worker)] {
        judge(name, "a small node", profile, &node);
    }
    let expected = include_str!("../testdata/reports.txt");
    assert!(
        reports == expected,
        "testdata/reports.txt should be\n{reports}"
    );
}

#[test]
fn a_small_host_is_told_all_that_it_lacks() {
    let db = "{cpu: {min: 8}, ram: {min: 32GB}, os: [{name: centos, versions: ['7']}], \
              volumes: [{path: /var/lib/data, capacity: 512GB, filesystems: [ext4, xfs]}]}";
    let mut small = facts();
    small.os.id = "centos".into();
    small.os.version_id = "7".into();
    let mut places = places();
    places.paths.insert("/var/lib/data".into(), {
        let mut place = room(1, 2);
        place.space.as_mut().unwrap().filesystem = "btrfs".into();
        place
    });
    let report = report_at(&with_profile(db), &small, places);
    let failed: Vec<_> = report
        .failures()
        .map(|finding| finding.id.as_str())
        .collect();
    assert_eq!(failed, ["cpu", "ram", "space", "volume"]);
}
