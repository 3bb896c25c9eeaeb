//! The planet of a node.
//!
//! In: cluster, node and host. Out: a [`PlanetConfig`]. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use planet::config::{Balancer, File, Mount, PlanetConfig, SCHEMA_VERSION};
use spec::layout::{Layout, PLANET_RESOURCES, PLANET_SECRETS};
use spec::phase::Volume;

use crate::services::{self, Context};

/// What the services need of the kernel. Kubelet sets those from `vm.overcommit_memory` on by
/// itself where they differ (its `setupKernelTunables`), which no journal would know of.
pub const SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("vm.overcommit_memory", "1"),
    ("vm.panic_on_oom", "0"),
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("kernel.keys.root_maxkeys", "1000000"),
    ("kernel.keys.root_maxbytes", "25000000"),
];

/// Makes the planet's configuration. `rootfs` is the unpacked base image;
/// `volumes` are mounted where they have a target.
pub(crate) fn planet_config(
    context: &Context<'_>,
    rootfs: PathBuf,
    volumes: &[Volume],
) -> PlanetConfig {
    let layout = Layout::new(&context.node.state_dir);
    let definitions = services::definitions(context);
    let leader = spec::LEADER_ADDRESS;
    let mut mounts = vec![
        mount(layout.programs(), "/opt/gravity/bin", true),
        mount(layout.planet_run(), "/run/planet/host", false),
        mount(layout.logs(), "/var/log/planet", false),
        mount(layout.planet_secrets(), PLANET_SECRETS, true),
        mount(layout.service("resources"), PLANET_RESOURCES, true),
    ];
    let mut files = base_files(context);
    let mut services = Vec::new();
    for definition in definitions {
        mounts.extend(definition.mounts);
        files.extend(definition.files);
        services.push(definition.service);
    }
    mounts.extend(volumes.iter().filter_map(|volume| {
        Some(Mount {
            source: volume.path.clone(),
            target: volume.target.clone()?,
            read_only: false,
            recursive: volume.recursive,
            pattern: volume.pattern,
            optional: volume.skip_if_missing,
        })
    }));
    let balancer = |port, backends: &[IpAddr], backends_file: Option<PathBuf>| Balancer {
        tls: backends_file.is_some(),
        listen: SocketAddr::new(leader, port),
        backends: backends
            .iter()
            .map(|backend| SocketAddr::new(*backend, port))
            .collect(),
        backends_file,
    };
    let masters: Vec<_> = context.cluster.masters().collect();
    PlanetConfig {
        version: SCHEMA_VERSION,
        hostname: context.node.hostname.clone(),
        rootfs,
        overlay: layout.overlay(),
        mounts,
        devices: Vec::new(),
        files,
        link_local_addresses: vec![format!("{leader}/32")],
        balancers: vec![
            // Masters come and go.
            balancer(
                spec::API_PORT,
                &masters,
                Some(crate::masters::MASTERS.into()),
            ),
            // Every node has all images in a registry of its own.
            balancer(spec::REGISTRY_PORT, &[context.address()], None),
        ],
        sysctls: SYSCTLS
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        services,
    }
}

fn mount(source: PathBuf, target: impl AsRef<Path>, read_only: bool) -> Mount {
    Mount {
        source,
        target: target.as_ref().to_owned(),
        read_only,
        ..Mount::default()
    }
}

/// Files that make the container a system of its own: names, users.
fn base_files(context: &Context<'_>) -> Vec<File> {
    let user = &context.cluster.service_user;
    let file = |path: &str, content: String| File {
        path: path.into(),
        content,
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
    let hosts = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost\n{} {}\n{} {}\n",
        context.address(),
        context.node.hostname,
        spec::LEADER_ADDRESS,
        spec::LEADER_NAME,
    );
    let resolver = format!(
        "nameserver {}\nsearch default.svc.{domain} svc.{domain} {domain}\noptions ndots:2 timeout:1\n",
        spec::LEADER_ADDRESS,
        domain = context.cluster.domain,
    );
    // Inside, the service user is always called planet (page, "Service User").
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/bash\nplanet:x:{}:{}::/home/planet:/usr/sbin/nologin\n_apt:x:100:65534::/nonexistent:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        user.uid, user.gid
    );
    let group = format!(
        "root:x:0:\ntty:x:5:\nplanet:x:{}:\nnogroup:x:65534:\n",
        user.gid
    );
    vec![
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", resolver),
        file("/etc/hostname", format!("{}\n", context.node.hostname)),
        file("/etc/passwd", passwd),
        file("/etc/group", group),
        file(
            "/etc/profile.d/planet.sh",
            format!(
                "export KUBECONFIG={}\n",
                crate::services::secret("admin.kubeconfig")
            ),
        ),
    ]
}
