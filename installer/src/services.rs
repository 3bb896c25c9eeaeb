//! The planet's services, one file each.
//!
//! In: a [`Context`], what is known of the cluster, the node and its host. Out:
//! a [`Definition`] a service: how it is started and which files it reads.
//! Pure: the same context gives the same definitions.

mod care;
mod containerd;
mod controller;
mod coredns;
pub(crate) mod etcd;
mod flannel;
mod images;
mod kube_apiserver;
mod kube_controller_manager;
mod kube_proxy;
mod kube_scheduler;
mod kubelet;
mod rbac;
mod registry;
mod status_hook;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use host::facts::{Address, HostFacts};
use manifest::{HookName, ServiceOptions};
use planet::config::{Alternative, File, Mount, Probe, Service};
use spec::layout::{Layout, PLANET_SECRETS};
use spec::{ClusterSpec, NodeSpec, Role};

use crate::masters::SEVERAL_MASTERS;

/// Directory of the services' configuration files.
pub(crate) const CONFIG: &str = "/etc/planet";

/// Our own program inside.
const PROGRAM: &str = "/opt/gravity/bin/gravity";

/// Variables that tell what is reached without a proxy; Go takes the first that is set.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// What is always reached without one: addresses, and names of the cluster.
const DIRECT: &str = "0.0.0.0/0,::/0,.local,.svc";

/// Makes one service.
type Define = fn(&Context<'_>) -> Definition;

/// Services of every node, beside the overlay network.
const EVERYWHERE: &[Define] = &[
    containerd::define,
    kubelet::define,
    kube_proxy::define,
    coredns::define,
    registry::define,
    care::define,
];

/// What workers have beside them. On masters the controller does it.
const OF_WORKERS: &[Define] = &[images::define];

/// What masters have beside them.
const CONTROL_PLANE: &[Define] = &[
    etcd::define,
    kube_apiserver::define,
    kube_controller_manager::define,
    kube_scheduler::define,
    rbac::define,
    controller::define,
];

/// Names of services that masters have beside those of every node. They wait
/// while the master stands by.
pub const OF_MASTERS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    rbac::NAME,
    "controller",
    "status-hook",
];

/// The services of the context's node. What requires a service that runs on
/// masters alone finds it through the balancer; so it does on one of several
/// masters, whose own may be waiting for others.
pub(crate) fn definitions(context: &Context<'_>) -> Vec<Definition> {
    let mut all = everywhere(context);
    if context.cluster.has_several_masters() {
        for definition in &mut all {
            let requires = &mut definition.service.requires;
            requires.retain(|name| !OF_MASTERS.contains(&name.as_str()));
        }
    }
    match context.node.role {
        Role::Master => {
            all.extend(CONTROL_PLANE.iter().map(|define| define(context)));
            all.extend(status_hook::define(context));
        }
        Role::Worker => all.extend(OF_WORKERS.iter().map(|define| define(context))),
    }
    let names: Vec<_> = all.iter().map(|made| made.service.name.clone()).collect();
    for definition in &mut all {
        let requires = &mut definition.service.requires;
        requires.retain(|name| names.contains(name));
    }
    all
}

/// The user's variables. Where there is a proxy among them, the cluster itself is not
/// reached by it.
fn environment(chosen: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut environment = chosen.clone();
    let is_proxy =
        |name: &String| ["HTTP_PROXY", "HTTPS_PROXY"].contains(&name.to_uppercase().as_str());
    if environment.keys().any(is_proxy) {
        let without = NO_PROXY.map(|name| environment.remove(name));
        let mut without: Vec<_> = without.into_iter().flatten().take(1).collect();
        without.push(DIRECT.into());
        environment.insert(NO_PROXY[0].into(), without.join(","));
    }
    environment
}

/// Services that every node has.
fn everywhere(context: &Context<'_>) -> Vec<Definition> {
    let all = EVERYWHERE.iter().map(|define| define(context));
    all.chain(flannel::define(context)).collect()
}

/// Their names.
pub(crate) fn names_everywhere(context: &Context<'_>) -> Vec<String> {
    let definitions = everywhere(context).into_iter();
    definitions.map(|made| made.service.name).collect()
}

/// What definitions are made from.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) cluster: &'a ClusterSpec,
    pub(crate) node: &'a NodeSpec,
    /// What the node's host is like.
    pub(crate) facts: &'a HostFacts,
    /// What the image's author chose for the services.
    pub(crate) options: &'a ServiceOptions,
    /// The manifest's hooks: their Jobs.
    pub(crate) hooks: &'a BTreeMap<HookName, String>,
}

/// A service with all that belongs to it.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) service: Service,
    pub(crate) files: Vec<File>,
    pub(crate) mounts: Vec<Mount>,
}

impl From<Service> for Definition {
    fn from(service: Service) -> Self {
        Self {
            service,
            files: Vec::new(),
            mounts: Vec::new(),
        }
    }
}

impl Context<'_> {
    /// The address that other nodes reach this one by.
    pub(crate) fn address(&self) -> IpAddr {
        self.node
            .advertise_addresses
            .first()
            .copied()
            .unwrap_or(spec::LEADER_ADDRESS)
    }

    /// The same as the host has it.
    pub(crate) fn host_address(&self) -> Option<&Address> {
        self.facts.address(self.address())
    }

    /// First CIDR of the pod network.
    pub(crate) fn pod_cidr(&self) -> &str {
        self.cluster.pod_cidrs.first().map_or("", String::as_str)
    }

    /// First CIDR of services.
    pub(crate) fn service_cidr(&self) -> &str {
        self.cluster
            .service_cidrs
            .first()
            .map_or("", String::as_str)
    }

    /// A service that runs as the service user.
    pub(crate) fn unprivileged(&self, name: &str, command: Vec<String>, ready: Probe) -> Service {
        let user = &self.cluster.service_user;
        Service {
            uid: user.uid,
            gid: user.gid,
            ..self.privileged(name, command, ready)
        }
    }

    /// A service that runs as root.
    pub(crate) fn privileged(&self, name: &str, command: Vec<String>, ready: Probe) -> Service {
        Service {
            name: name.into(),
            command,
            alternative: None,
            env: environment(&self.cluster.settings.environment),
            uid: 0,
            gid: 0,
            capabilities: Vec::new(),
            requires: Vec::new(),
            readiness: ready,
            directories: Vec::new(),
            cpu_weight: None,
            pre_start: Vec::new(),
            post_start: Vec::new(),
            oneshot: false,
            stop_timeout_seconds: 10,
            keep_children: false,
            tables: Vec::new(),
        }
    }

    /// A service that is our own program, with these arguments, as root.
    pub(crate) fn own(&self, name: &str, arguments: &[&str], ready: Probe) -> Service {
        let command = std::iter::once(&PROGRAM).chain(arguments);
        let command = command.map(|word| (*word).to_owned()).collect();
        // glibc would keep memory for every thread, which ours seldom need again.
        let arenas = ("MALLOC_ARENA_MAX".into(), "1".into());
        Service {
            // Not the user's: it goes through no proxy.
            env: BTreeMap::from([arenas]),
            ..self.privileged(name, command, ready)
        }
    }

    /// The service with the command that fits the number of masters. Where there
    /// is one, another may join it.
    pub(crate) fn by_masters(
        &self,
        command: impl Fn(bool) -> Vec<String>,
        define: impl FnOnce(Vec<String>) -> Service,
    ) -> Service {
        let several = self.cluster.has_several_masters();
        Service {
            alternative: (!several).then(|| Alternative {
                when: SEVERAL_MASTERS.into(),
                command: command(true),
            }),
            ..define(command(several))
        }
    }

    /// A part of Kubernetes' control plane of which one works for all masters: it asks
    /// the API by this kubeconfig, and tells on a port of loopback how it is. `further`
    /// are its own flags.
    pub(crate) fn elected(
        &self,
        name: &str,
        kubeconfig: &str,
        port: u16,
        further: &[(&str, String)],
    ) -> Definition {
        let kubeconfig = secret(kubeconfig);
        let command = |several: bool| {
            let mut arguments = vec![
                ("bind-address", "127.0.0.1".into()),
                ("kubeconfig", kubeconfig.clone()),
                ("authentication-kubeconfig", kubeconfig.clone()),
                ("authorization-kubeconfig", kubeconfig.clone()),
                // One master has nobody to wait for.
                ("leader-elect", several.to_string()),
                ("profiling", "false".into()),
                ("v", "1".into()),
            ];
            arguments.extend_from_slice(further);
            control_plane_command(self, name, &arguments)
        };
        let ready = Probe::Http {
            url: format!("https://127.0.0.1:{port}/healthz"),
        };
        let mut service =
            self.by_masters(command, |command| self.unprivileged(name, command, ready));
        service.requires = vec!["kube-apiserver".into()];
        service.into()
    }

    /// A configuration file that everyone may read: secrets are elsewhere.
    pub(crate) fn file(&self, name: &str, content: String) -> File {
        File {
            path: PathBuf::from(CONFIG).join(name),
            content,
            mode: 0o644,
            uid: 0,
            gid: 0,
        }
    }

    /// Data of a service, kept on the host, seen at `target`.
    pub(crate) fn data(&self, name: &str, target: &str) -> Mount {
        Mount {
            source: Layout::new(&self.node.state_dir).service(name),
            target: target.into(),
            ..Mount::default()
        }
    }
}

/// Path of a secret inside.
pub(crate) fn secret(file: &str) -> String {
    format!("{PLANET_SECRETS}/{file}")
}

/// Path of a configuration file inside.
pub(crate) fn config(file: &str) -> String {
    format!("{CONFIG}/{file}")
}

/// A program of the base image.
pub(crate) fn program(name: &str) -> String {
    format!("/usr/local/bin/{name}")
}

/// `--key=value` arguments after the program.
pub(crate) fn command(name: &str, arguments: &[(&str, String)]) -> Vec<String> {
    let mut command = vec![program(name)];
    command.extend(
        arguments
            .iter()
            .map(|(key, value)| format!("--{key}={value}")),
    );
    command
}

/// A program of Kubernetes' control plane, with the user's feature gates.
pub(crate) fn control_plane_command(
    context: &Context<'_>,
    name: &str,
    arguments: &[(&str, String)],
) -> Vec<String> {
    let mut command = command(name, arguments);
    let gates = context.cluster.settings.feature_gates.iter();
    let gates: Vec<_> = gates
        .map(|(gate, is_on)| format!("{gate}={is_on}"))
        .collect();
    if !gates.is_empty() {
        command.push(format!("--feature-gates={}", gates.join(",")));
    }
    command
}

/// Puts chosen flags in place of ours.
pub(crate) fn choose(
    command: &mut Vec<String>,
    chosen: &std::collections::BTreeMap<String, String>,
) {
    for (name, value) in chosen {
        let flag = format!("--{name}=");
        command.retain(|argument| !argument.starts_with(&flag));
        command.push(flag + value);
    }
}
