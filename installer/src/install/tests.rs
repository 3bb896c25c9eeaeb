use std::collections::BTreeSet;

use host::facts::{Address, Cgroup, HostFacts, Interface, Os};
use planet::config::PlanetConfig;
use spec::phase::PhaseSpec;
use spec::{PodNetwork, ServiceUser};

use super::*;

const MANIFEST: &str = "\
apiVersion: cluster.gravitational.io/v2
kind: Cluster
metadata: {name: My_App, resourceVersion: 1.2.3}
installer:
  flavors:
    default: one
    items:
      - {name: one, nodes: [{profile: db, count: 0}, {profile: web, count: 1}]}
      - {name: three, nodes: [{profile: web, count: 2}, {profile: db, count: 1}]}
nodeProfiles:
  - {name: db}
  - name: web
    labels: {tier: front}
    requirements:
      volumes:
        - {path: /var/data, targetPath: /data, mode: \"0750\", uid: 7}
hooks:
  install:
    job: |
      apiVersion: batch/v1
      kind: Job
      metadata: {name: install}
";

pub(crate) fn facts() -> HostFacts {
    let address = |interface: &str, address: &str, prefix| Address {
        interface: interface.into(),
        address: address.parse().unwrap(),
        prefix,
    };
    HostFacts {
        hostname: "Node-1".into(),
        cpus: 2,
        ram_bytes: 4 << 30,
        os: Os {
            id: "debian".into(),
            version_id: "12".into(),
            pretty_name: "Debian 12".into(),
        },
        kernel_release: "6.1.0".into(),
        architecture: "x86_64".into(),
        addresses: vec![
            address("lo", "127.0.0.1", 8),
            address("eth0", "192.168.7.9", 24),
        ],
        routes: Vec::new(),
        listening: Vec::new(),
        cgroup: Cgroup::V2,
        uid: 0,
        can_lower_oom_score: true,
        systemd: true,
        ..HostFacts::default()
    }
}

pub(crate) fn image() -> ImageContent {
    ImageContent {
        path: "/root/gravity".into(),
        reference: ImageRef {
            name: "my".into(),
            version: "1.2.3".into(),
            digest: "sha256:aa".into(),
            resources: "sha256:cc".into(),
        },
        manifest_text: MANIFEST.into(),
        planets: planets(&[("db", &["sha256:bb"]), ("web", &["sha256:bb", "sha256:dd"])]),
        images: Vec::new(),
    }
}

fn planets(of: &[(&str, &[&str])]) -> BTreeMap<String, Rootfs> {
    let layer = |digest: &&str| phase::Layer {
        digest: (*digest).to_owned(),
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
    };
    of.iter()
        .map(|(profile, layers)| {
            let digest = layers.last().unwrap_or(&"").to_string();
            let layers = layers.iter().map(layer).collect();
            ((*profile).to_owned(), Rootfs { digest, layers })
        })
        .collect()
}

fn options() -> Options {
    Options {
        flavor: Some("one".into()),
        ..Options::of_defaults("/var/lib/gravity".as_ref())
    }
}

fn plan_with(change: impl FnOnce(&mut Options), users: &KnownUsers) -> Result<Prepared, Error> {
    let mut options = options();
    change(&mut options);
    let manifest = manifest::parse(MANIFEST, "app.yaml").unwrap();
    prepare(&options, &manifest, &image(), &facts(), users)
}

fn refused(change: impl FnOnce(&mut Options)) -> String {
    plan_with(change, &KnownUsers::default())
        .unwrap_err()
        .to_string()
}

pub(crate) fn user(name: &str, uid: u32, gid: u32) -> User {
    User {
        name: name.into(),
        uid,
        gid,
        home: "/".into(),
        shell: "/bin/sh".into(),
    }
}

/// The sample's cluster and the planet of its master.
pub(crate) fn planned(change: impl FnOnce(&mut Options)) -> (ClusterSpec, PlanetConfig) {
    let prepared = plan_with(change, &KnownUsers::default()).unwrap();
    let payload = prepared
        .plan
        .phase("/start/planet")
        .unwrap()
        .payload
        .clone();
    let PhaseSpec::Planet(planet) = serde_json::from_value(payload).unwrap() else {
        panic!()
    };
    (
        prepared.cluster,
        serde_json::from_value(planet.config).unwrap(),
    )
}

#[test]
fn a_node_knows_what_it_has_to_care_for() {
    let (_, planet) = planned(|options| options.leaf_seconds = 240);
    let mut files = planet.files.iter();
    let file = files.find(|file| file.path == std::path::Path::new(spec::care::CONFIG));
    let care: spec::care::Care = serde_json::from_str(&file.unwrap().content).unwrap();
    assert!(care.etcd && care.controllers.is_empty());
    assert_eq!(care.leaf_seconds, 240);
    let has = |name: &str| care.certificates.iter().any(|one| one.name == name);
    assert!(has("etcd") && has("apiserver") && has("kubelet"));
    assert_eq!(care.kubeconfigs.len(), 6);
    let state = spec::care::Care::layout();
    for path in [state.secrets(), state.etcd_snapshots()] {
        let mount = planet.mounts.iter().find(|mount| mount.target == path);
        assert!(!mount.unwrap().read_only, "{}", path.display());
    }
}

#[test]
fn a_node_looks_for_all_that_it_may_be_short_of() {
    let (_, planet) = planned(|_| ());
    let mut files = planet.files.iter();
    let file = files.find(|file| file.path.ends_with("kubelet.yaml"));
    let settings: serde_json::Value = serde_json::from_str(&file.unwrap().content).unwrap();
    let limits = settings["evictionHard"].as_object().unwrap();
    // Each signal of these three makes a condition of the node, and only if it is here.
    for (what, signals) in [
        ("MemoryPressure", &["memory.available"][..]),
        (
            "DiskPressure",
            &[
                "nodefs.available",
                "nodefs.inodesFree",
                "imagefs.available",
                "imagefs.inodesFree",
            ],
        ),
        ("PIDPressure", &["pid.available"]),
    ] {
        let missing = signals.iter().find(|signal| !limits.contains_key(**signal));
        assert_eq!(missing, None, "{what} can't be seen");
    }
    // Other data fill a disk, too: images are removed where room is short, and not before.
    assert_eq!(settings["imageGCHighThresholdPercent"], 100);
}

#[test]
fn services_are_as_the_user_has_chosen() {
    let (cluster, planet) = planned(|options| {
        let services = &mut options.services;
        services.environment = [("HTTP_PROXY", "proxy:8001"), ("no_proxy", ".example")]
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        services.feature_gates = BTreeMap::from([("AllAlpha".into(), false)]);
        services.node_ports = Some("31000-31999".into());
        services.kubelet = serde_json::from_str(r#"{"maxPods": 50}"#).unwrap();
    });
    assert_eq!(cluster.settings.kubelet["maxPods"], 50);
    for service in &planet.services {
        let is_own = service.command[0] == "/opt/gravity/bin/gravity";
        let proxy = service.env.get("HTTP_PROXY");
        assert_eq!(proxy.is_none(), is_own, "{}", service.name);
        let direct = service.env.get("NO_PROXY").map(String::as_str);
        let direct_of_all = ".example,0.0.0.0/0,::/0,.local,.svc";
        assert_eq!(direct, (!is_own).then_some(direct_of_all));
        assert!(!service.env.contains_key("no_proxy"));
        let has = |flag: &str| service.command.iter().any(|argument| argument == flag);
        let gates = [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        ];
        let is_gated = gates.contains(&service.name.as_str());
        assert_eq!(has("--feature-gates=AllAlpha=false"), is_gated);
        let is_api = service.name == "kube-apiserver";
        assert_eq!(has("--service-node-port-range=31000-31999"), is_api);
    }
    let settings = |name: &str| -> serde_json::Value {
        let mut files = planet.files.iter();
        let file = files.find(|file| file.path.ends_with(name)).unwrap();
        serde_json::from_str(&file.content).unwrap()
    };
    let kubelet = settings("kubelet.yaml");
    assert_eq!(
        (&kubelet["maxPods"], &kubelet["failSwapOn"]),
        (&50.into(), &false.into())
    );
    for settings in [kubelet, settings("kube-proxy.yaml")] {
        assert_eq!(settings["featureGates"]["AllAlpha"], false);
    }
}

#[test]
fn a_plan_is_whole_and_runs_hooks_last() {
    let prepared = plan_with(|_| (), &KnownUsers::default()).unwrap();
    prepared.plan.validate().unwrap();
    let leaves: Vec<_> = prepared
        .plan
        .leaves()
        .iter()
        .map(|phase| phase.id.clone())
        .collect();
    assert_eq!(leaves.first().unwrap(), "/bootstrap");
    assert_eq!(
        leaves[leaves.len() - 4..],
        ["/health", "/image", "/install", "/complete"]
    );
    for phase in prepared.plan.leaves() {
        serde_json::from_value::<PhaseSpec>(phase.payload.clone()).unwrap();
    }
    let cluster = prepared.cluster;
    assert_eq!(cluster.name, "my-app");
    assert_eq!(cluster.nodes[0].profile, "web");
    assert_eq!(cluster.nodes[0].hostname, "node-1");
    assert_eq!(cluster.nodes[0].pod_cidrs, ["10.244.0.0/24"]);
    assert_eq!(
        cluster.service_user,
        ServiceUser {
            name: "planet".into(),
            uid: 1000,
            gid: 1000
        }
    );
}

#[test]
fn only_a_manifest_with_a_status_hook_has_a_service_that_runs_it() {
    let services = |manifest: &str| {
        let manifest = manifest::parse(manifest, "app.yaml").unwrap();
        let users = KnownUsers::default();
        let prepared = prepare(&options(), &manifest, &image(), &facts(), &users).unwrap();
        serde_json::to_string(&prepared.plan).unwrap()
    };
    assert!(!services(MANIFEST).contains("status-hook"));
    let status = "  status:\n    job: '{kind: Job, metadata: {name: ask}}'\n";
    let plan = services(&format!("{MANIFEST}{status}"));
    // Its Job is a file of the planet; no phase of the install runs it.
    assert!(plan.contains("/etc/planet/status-hook.json") && plan.contains("name: ask"));
    assert!(!plan.contains("\"hook\":\"status\""), "{plan}");
}

#[test]
fn volumes_reach_the_planet_with_their_owner() {
    let prepared = plan_with(|_| (), &KnownUsers::default()).unwrap();
    let payload = |id: &str| {
        let phase = prepared.plan.phase(id).unwrap().payload.clone();
        serde_json::from_value::<PhaseSpec>(phase).unwrap()
    };
    let PhaseSpec::Volumes(volumes) = payload("/prepare/volumes") else {
        panic!()
    };
    let volume = &volumes.volumes[0];
    assert_eq!(
        (volume.uid, volume.gid, volume.mode),
        (Some(7), None, Some(0o750))
    );
    assert_eq!(volumes.user.uid, 1000);
    let PhaseSpec::Planet(planet) = payload("/start/planet") else {
        panic!()
    };
    let config: planet::config::PlanetConfig = serde_json::from_value(planet.config).unwrap();
    config.check().unwrap();
    assert!(
        config
            .mounts
            .iter()
            .any(|mount| mount.target == std::path::Path::new("/data"))
    );
    let rooted: BTreeSet<_> = config
        .services
        .iter()
        .filter(|service| service.uid == 0)
        .map(|service| service.name.as_str())
        .collect();
    // All others run as the service user (page, "Service User").
    assert_eq!(
        rooted,
        BTreeSet::from([
            "care",
            "containerd",
            "controller",
            "flannel",
            "kube-proxy",
            "kubelet",
            "rbac"
        ])
    );
    assert!(!serde_json::to_string(&config).unwrap().contains("PRIVATE"));
}

#[test]
fn a_license_is_there_before_hooks_and_its_terms_are_known() {
    let license = spec::License {
        holder: "Acme".into(),
        max_nodes: Some(3),
        ends: 1,
    };
    let without = plan_with(|_| (), &KnownUsers::default()).unwrap();
    assert!(without.plan.phase("/license").is_none());
    let prepared = plan_with(
        |options| options.license = Some(license.clone()),
        &KnownUsers::default(),
    )
    .unwrap();
    assert_eq!(prepared.cluster.license, Some(license));
    let phases: Vec<_> = prepared
        .plan
        .leaves()
        .iter()
        .map(|p| p.id.clone())
        .collect();
    let at = |id: &str| phases.iter().position(|phase| phase == id).unwrap();
    assert!(at("/start/planet") < at("/license") && at("/license") < at("/install"));
    let secret = license_secret("text");
    assert_eq!(secret["data"]["license"], "dGV4dA==");
    assert_eq!(secret["metadata"]["namespace"], "kube-system");
}

#[test]
fn resources_of_the_user_are_there_before_hooks() {
    let planned = |config| plan_with(|options| options.config = config, &KnownUsers::default());
    assert!(planned(false).unwrap().plan.phase("/config").is_none());
    let plan = planned(true).unwrap().plan;
    let phases: Vec<_> = plan.leaves().iter().map(|phase| phase.id.clone()).collect();
    let at = |id: &str| phases.iter().position(|phase| phase == id).unwrap();
    assert!(at("/health") < at("/config") && at("/config") < at("/install"));
}

#[test]
fn values_are_there_before_hooks_and_not_in_the_plan() {
    let planned = |values| plan_with(|options| options.values = values, &KnownUsers::default());
    assert!(planned(false).unwrap().plan.phase("/values").is_none());
    let plan = planned(true).unwrap().plan;
    let phases: Vec<_> = plan.leaves().iter().map(|phase| phase.id.clone()).collect();
    let at = |id: &str| phases.iter().position(|phase| phase == id).unwrap();
    assert!(at("/start/planet") < at("/values") && at("/values") < at("/install"));
    let payload = plan.phase("/values").unwrap().payload.clone();
    let PhaseSpec::Config(phase) = serde_json::from_value(payload).unwrap() else {
        panic!()
    };
    assert_eq!(
        (phase.operation, &*phase.file),
        (plan.operation_id.clone(), VALUES_FILE)
    );
}

#[test]
fn a_node_runs_the_planet_of_its_profile() {
    let prepared = plan_with(|_| (), &KnownUsers::default()).unwrap();
    let payload = |id: &str| {
        let phase = prepared.plan.phase(id).unwrap().payload.clone();
        serde_json::from_value::<PhaseSpec>(phase).unwrap()
    };
    let (PhaseSpec::Rootfs(rootfs), PhaseSpec::Planet(planet)) =
        (payload("/prepare/rootfs"), payload("/start/planet"))
    else {
        panic!()
    };
    let digests: Vec<_> = rootfs.layers.iter().map(|layer| &*layer.digest).collect();
    assert_eq!(digests, ["sha256:bb", "sha256:dd"]);
    let config: planet::config::PlanetConfig = serde_json::from_value(planet.config).unwrap();
    assert_eq!(config.rootfs, rootfs.target);
}

#[test]
fn what_does_not_fit_the_host_is_refused_with_what_would() {
    assert_eq!(
        refused(|options| options.advertise_address = "10.0.0.1".parse().ok()),
        "10.0.0.1 is not an address of this node; it has 192.168.7.9"
    );
    assert!(refused(|options| options.pod_cidr = "192.168.0.0/16".into()).contains("overlap"));
    assert!(refused(|options| options.service_cidr = "10.244.128.0/20".into()).contains("overlap"));
    assert!(
        refused(|options| options.pod_cidr = "10.244.0.0/28".into()).contains("at least a /24")
    );
    assert_eq!(
        refused(|options| options.flavor = Some("two".into())),
        "there is no flavor \"two\"; the image has one, three"
    );
    assert_eq!(
        refused(|options| options.role = Some("x".into())),
        "there is no profile \"x\"; the image has db, web"
    );
    assert!(
        refused(|options| options.cluster = Some("-a".into()))
            .contains("can't be a cluster's name")
    );
}

#[test]
fn the_service_user_is_one_that_exists_or_conflicts_early() {
    let named = |with_id, named| KnownUsers { with_id, named };
    let theirs = named(Some(user("cloud", 1000, 1001)), None);
    let prepared = plan_with(|_| (), &theirs).unwrap();
    assert_eq!(prepared.cluster.service_user.name, "cloud");
    assert_eq!(prepared.cluster.service_user.gid, 1001);
    let group = plan_with(|options| options.service_gid = Some(5), &theirs);
    assert!(group.unwrap_err().to_string().contains("has group 1001"));
    let taken = plan_with(|_| (), &named(None, Some(user("planet", 980, 980))));
    assert!(
        taken
            .unwrap_err()
            .to_string()
            .contains("use --service-uid=980")
    );
}

#[test]
fn an_address_is_chosen_only_where_there_is_no_doubt() {
    let mut facts = facts();
    assert_eq!(
        choose_address(None, &facts).unwrap().to_string(),
        "192.168.7.9"
    );
    let second = Address {
        interface: "eth1".into(),
        address: "10.1.1.1".parse().unwrap(),
        prefix: 8,
    };
    facts.addresses.push(second);
    assert!(matches!(
        choose_address(None, &facts),
        Err(Error::SeveralAddresses(_))
    ));
    facts.addresses.truncate(1);
    assert!(matches!(
        choose_address(None, &facts),
        Err(Error::NoAddress)
    ));
}

#[test]
fn a_cluster_begins_with_a_master() {
    let text = "metadata: {name: a, resourceVersion: 1.0.0}\n\
                nodeProfiles: [{name: hand, serviceRole: node}, {name: head}]";
    let manifest = manifest::parse(text, "app.yaml").unwrap();
    let chosen = choose_first_profile(&manifest, None, None)
        .unwrap()
        .unwrap();
    assert_eq!(chosen.name, "head");
    let error = choose_first_profile(&manifest, None, Some("hand")).unwrap_err();
    assert!(error.to_string().contains("is of workers"), "{error}");
    let only = "metadata: {name: a, resourceVersion: 1.0.0}\nnodeProfiles: [{name: hand, serviceRole: node}]";
    let manifest = manifest::parse(only, "app.yaml").unwrap();
    assert!(choose_first_profile(&manifest, None, None).is_err());
}

#[test]
fn an_image_without_profiles_takes_the_names_that_the_original_gave() {
    let text = "metadata: {name: a, resourceVersion: 1.0.0}";
    let manifest = manifest::parse(text, "app.yaml").unwrap();
    for role in [None, Some("node"), Some("")] {
        for flavor in [None, Some("default")] {
            let chosen = choose_first_profile(&manifest, flavor, role).unwrap();
            assert!(chosen.is_none(), "{role:?} {flavor:?}");
        }
    }
    let role = choose_first_profile(&manifest, None, Some("db"));
    assert!(matches!(role, Err(Error::Profile { .. })));
    let flavor = choose_first_profile(&manifest, Some("one"), Some("node"));
    assert!(matches!(flavor, Err(Error::Flavor { .. })));
}

#[test]
fn a_volume_at_the_usual_state_directory_is_at_the_nodes_own() {
    let text = MANIFEST.replace("/var/data", "/var/lib/gravity");
    let manifest = manifest::parse(&text, "app.yaml").unwrap();
    let web = manifest.profile("web");
    let web = with_mounts(web, &BTreeMap::new(), "/data/gravity".as_ref());
    let volumes = web.unwrap().unwrap().requirements.volumes;
    assert_eq!(volumes[0].path, "/data/gravity");
}

#[test]
fn the_nodes_of_a_flavor_are_waited_for_before_the_hooks() {
    let phases = |flavor: &str| -> Vec<_> {
        let options = |options: &mut Options| {
            options.flavor = Some(flavor.into());
            options.token = true;
        };
        let prepared = plan_with(options, &KnownUsers::default()).unwrap();
        prepared.plan.phases
    };
    assert!(phases("one").iter().all(|phase| phase.id != NODES_PHASE));
    let three = phases("three");
    let index = |id: &str| three.iter().position(|phase| phase.id == id).unwrap();
    // Those that are waited for may need the image.
    assert!(index("/image") < index(NODES_PHASE) && index(NODES_PHASE) < index("/install"));
    // Others join with it.
    assert_eq!(index(TOKEN_PHASE) + 1, index(NODES_PHASE));
    let nodes: phase::Nodes =
        serde_json::from_value(three[index(NODES_PHASE)].payload.clone()).unwrap();
    assert_eq!(
        nodes.wanted,
        BTreeMap::from([("db".into(), 1), ("web".into(), 2)])
    );
}

/// What is planned with more in the manifest.
fn planned_with(more: &str, vxlan_port: Option<u16>) -> Result<Prepared, Error> {
    planned_on(&facts(), more, vxlan_port)
}

/// The same on a host that is otherwise.
fn planned_on(facts: &HostFacts, more: &str, vxlan_port: Option<u16>) -> Result<Prepared, Error> {
    let text = format!("{MANIFEST}{more}");
    let manifest = manifest::parse(&text, "app.yaml").unwrap();
    let options = Options {
        vxlan_port,
        ..options()
    };
    let users = KnownUsers::default();
    prepare(&options, &manifest, &image(), facts, &users)
}

fn planet_of(prepared: &Prepared) -> PlanetConfig {
    let phase = prepared.plan.phase("/start/planet").unwrap();
    let PhaseSpec::Planet(planet) = serde_json::from_value(phase.payload.clone()).unwrap() else {
        panic!()
    };
    let config: PlanetConfig = serde_json::from_value(planet.config).unwrap();
    config.check().unwrap();
    config
}

const WIREGUARD: &str = "providers: {generic: {network: {type: wireguard}}}\n";
const NETWORK_HOOK: &str = "  networkInstall: {job: '{kind: Job}'}\n";

#[test]
fn a_first_start_of_etcd_that_was_cut_off_is_forgotten_before_the_next() {
    let config = planet_of(&planned_with("", None).unwrap());
    let mut services = config.services.iter();
    let etcd = services.find(|service| service.name == "etcd").unwrap();
    let command = [
        "/opt/gravity/bin/gravity",
        "etcd",
        "prepare",
        "/var/lib/etcd",
    ];
    assert_eq!(etcd.pre_start, [command]);
}

#[test]
fn names_outside_the_cluster_are_asked_of_the_name_servers_that_a_start_has_found() {
    let config = planet_of(&planned_with("", None).unwrap());
    let mut services = config.services.iter();
    let dns = services.find(|one| one.name == "coredns").unwrap();
    let corefile = |command: &[String]| {
        let path = std::path::Path::new(command.last().unwrap());
        let mut files = config.files.iter();
        let file = files.find(|file| file.path == path);
        file.unwrap().content.clone()
    };
    let alone = corefile(&dns.command);
    assert!(!alone.contains("forward"), "{alone}");
    let forwarding = dns.alternative.as_ref().unwrap();
    assert_eq!(forwarding.when, PathBuf::from(planet::names::UPSTREAM));
    let text = corefile(&forwarding.command);
    let forward = format!("    forward . {}\n", planet::names::UPSTREAM);
    // On the node and for the Service.
    assert_eq!(text.matches(&forward).count(), 2, "{text}");
    assert_eq!(text.replace(&forward, ""), alone);
}

#[test]
fn wireguard_keeps_its_key_from_all_but_root() {
    let backend = |prepared: &Prepared| {
        let config = planet_of(prepared);
        let mut files = config.files.iter();
        let file = files.find(|file| file.path.ends_with("flannel.json"));
        let settings: serde_json::Value = serde_json::from_str(&file.unwrap().content).unwrap();
        let mut services = config.services.into_iter();
        let flannel = services.find(|service| service.name == "flannel").unwrap();
        (settings["Backend"].clone(), flannel)
    };
    let plain = planned_with("", Some(8473)).unwrap();
    let (settings, flannel) = backend(&plain);
    assert_eq!(
        settings,
        serde_json::json!({ "Type": "vxlan", "Port": 8473 })
    );
    assert!(flannel.directories.is_empty());
    assert!(!flannel.env.contains_key("WIREGUARD_KEY_FILE"));

    let encrypted = planned_with(WIREGUARD, None).unwrap();
    assert_eq!(encrypted.cluster.pod_network, PodNetwork::Wireguard);
    let (settings, flannel) = backend(&encrypted);
    let expected = serde_json::json!({ "Type": "wireguard", "ListenPort": 51820 });
    assert_eq!(settings, expected);
    // Below /run of the planet, which is in memory.
    assert_eq!(flannel.env["WIREGUARD_KEY_FILE"], "/run/wireguard/key");
    assert_eq!(flannel.directories, [PathBuf::from("/run/wireguard")]);
    assert_eq!((flannel.uid, flannel.gid), (0, 0));
    let error = planned_with(WIREGUARD, Some(8472)).unwrap_err();
    assert!(error.is_usage());
    assert_eq!(
        error.to_string(),
        "--vxlan-port 8472: the pods of this image have no VXLAN, they have WireGuard at UDP port \
         51820; leave it out"
    );
}

#[test]
fn flannel_asks_as_its_node() {
    let config = planet_of(&planned_with("", None).unwrap());
    let kubeconfig = |service: &str, flag: &str| -> String {
        let mut services = config.services.iter();
        let service = services.find(|one| one.name == service).unwrap();
        let mut values = service.command.iter();
        let value = values.find_map(|argument| argument.strip_prefix(flag));
        value.unwrap().to_owned()
    };
    assert_eq!(
        kubeconfig("flannel", "--kubeconfig-file="),
        kubeconfig("kubelet", "--kubeconfig=")
    );
}

#[test]
fn packets_of_pods_fit_into_those_of_the_host() {
    let mtu = |interface: &str, mtu, more: &str| {
        let mut facts = facts();
        facts.network.interfaces = vec![Interface {
            name: interface.into(),
            mtu,
            ..Interface::default()
        }];
        let config = planet_of(&planned_on(&facts, more, None).unwrap());
        let mut files = config.files.iter();
        let file = files.find(|file| file.path.ends_with("10-planet.conflist"));
        let network: serde_json::Value = serde_json::from_str(&file.unwrap().content).unwrap();
        network["plugins"][0]["mtu"].as_u64()
    };
    assert_eq!(mtu("eth0", 9000, ""), Some(8950));
    assert_eq!(mtu("eth0", 1500, WIREGUARD), Some(1420));
    // Not told, or of another interface.
    assert_eq!(mtu("eth0", 0, ""), None);
    assert_eq!(mtu("eth1", 9000, ""), None);
}

#[test]
fn strangers_have_the_cluster_resolve_no_names_of_others() {
    let mut facts = facts();
    facts.addresses[1].address = "198.51.100.9".parse().unwrap();
    let config = planet_of(&planned_on(&facts, "", None).unwrap());
    let mut files = config.files.iter();
    let file = files.find(|file| file.path.ends_with("Corefile.forwarding"));
    let text = &file.unwrap().content;
    let (before, open) = text
        .split_once(".:1053 {\n    bind 198.51.100.9\n")
        .unwrap();
    assert!(
        before.contains("cache") && !before.contains("acl"),
        "{text}"
    );
    let list = "    acl {\n        allow net 10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16 \
                fc00::/7 198.51.100.0/24 10.244.0.0/16\n        block\n    }\n";
    assert!(open.contains(list), "{open}");
    assert!(open.contains("    acl cluster.local leader.telekube.local {\n        allow\n    }\n"));
    // It would answer from what others have asked for.
    assert!(!open.contains("cache"), "{open}");
}

#[test]
fn a_network_of_the_vendor_takes_the_place_of_the_overlay() {
    let at = |prepared: &Prepared, id: &str| {
        let leaves = prepared.plan.leaves();
        leaves.iter().position(|phase| phase.id == id)
    };
    let has_bridge = |config: &PlanetConfig| {
        let mut files = config.files.iter();
        files.any(|file| file.path.starts_with("/etc/cni"))
    };
    let names = |config: &PlanetConfig| -> BTreeSet<String> {
        let services = config.services.iter();
        services.map(|service| service.name.clone()).collect()
    };
    let built_in = planned_with("", None).unwrap();
    assert_eq!(at(&built_in, "/overlay"), None);
    let with_flannel = planet_of(&built_in);
    assert!(has_bridge(&with_flannel));

    let own = planned_with(NETWORK_HOOK, None).unwrap();
    let config = planet_of(&own);
    assert!(!has_bridge(&config));
    let gone = &names(&with_flannel) - &names(&config);
    assert_eq!(Vec::from_iter(gone), ["flannel"]);
    assert!(at(&own, "/start/images") < at(&own, "/overlay"));
    assert!(at(&own, "/overlay") < at(&own, "/health"));
    let phase = own.plan.phase("/overlay").unwrap();
    let PhaseSpec::Hook(hook) = serde_json::from_value(phase.payload.clone()).unwrap() else {
        panic!()
    };
    assert_eq!(hook.hook, "networkInstall");
    assert_eq!(hook.env["KUBERNETES_SERVICE_HOST"], "169.254.20.10");
    assert_eq!(hook.env["KUBERNETES_SERVICE_PORT"], "6443");
    assert_eq!(hook.env["GRAVITY_POD_CIDR"], DEFAULT_POD_CIDR);
    assert_eq!(hook.env["GRAVITY_SERVICE_CIDR"], DEFAULT_SERVICE_CIDR);
    let error = planned_with(NETWORK_HOOK, Some(8472)).unwrap_err();
    assert!(error.to_string().contains("the vendor's own"));
}
