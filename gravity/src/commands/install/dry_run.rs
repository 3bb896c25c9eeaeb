//! `gravity install --dry-run`: what would change on the node.

use agent::preview::{self, Preview};
use anyhow::Result;
use console::{Console, render};
use installer::install::Prepared;
use operation::Plan;
use preflight::Requirements;
use serde::Serialize;
use spec::ClusterSpec;

use super::Config;

/// All that an install would change.
#[derive(Debug, Serialize)]
struct DryRun<'a> {
    cluster: &'a ClusterSpec,
    host: &'a Preview,
    /// Room that is taken below the state directory, in bytes.
    bytes: u64,
    ports: Vec<Port>,
    /// Resources of `--config`.
    resources: &'a [String],
    phases: Vec<Step>,
}

/// A port that a service listens on.
#[derive(Debug, Serialize)]
struct Port {
    ports: String,
    protocol: &'static str,
    /// Where; on all addresses where there is none.
    address: Option<String>,
    service: String,
}

#[derive(Debug, Serialize)]
struct Step {
    id: String,
    description: String,
}

pub(super) fn show(
    console: &Console,
    prepared: &Prepared,
    requirements: &Requirements,
    config: &Config,
) -> Result<()> {
    let host = preview::preview(&prepared.plan)?;
    let run = DryRun {
        cluster: &prepared.cluster,
        host: &host,
        bytes: requirements.state_bytes,
        ports: ports(requirements),
        resources: &config.objects,
        phases: steps(&prepared.plan),
    };
    match console.is_json() {
        true => console.print_json(&run)?,
        false => console.print(&text(&run)),
    }
    Ok(())
}

fn ports(requirements: &Requirements) -> Vec<Port> {
    let port = |wanted: preflight::NeededPorts<'_>| Port {
        ports: wanted.range.to_string(),
        protocol: match wanted.protocol {
            host::facts::Protocol::Tcp => "tcp",
            host::facts::Protocol::Udp => "udp",
        },
        address: wanted.address.map(|address| address.to_string()),
        service: wanted.user.to_owned(),
    };
    preflight::needed_ports(requirements)
        .into_iter()
        .map(port)
        .collect()
}

fn steps(plan: &Plan) -> Vec<Step> {
    let step = |phase: &operation::Phase| Step {
        id: phase.id.clone(),
        description: phase.description.clone(),
    };
    plan.leaves().into_iter().map(step).collect()
}

fn text(run: &DryRun<'_>) -> String {
    let DryRun { cluster, host, .. } = run;
    let node = cluster.nodes.first();
    let mut lines = vec![format!(
        "Cluster {} of {} {} would be installed; nothing is changed now",
        cluster.name, cluster.image.name, cluster.image.version
    )];
    let mut section = |title: &str, items: Vec<String>| {
        if !items.is_empty() {
            lines.push(format!("{title}:"));
            lines.extend(items.into_iter().map(|item| format!("  {item}")));
        }
    };
    if let Some(node) = node {
        let addresses = node.advertise_addresses.iter().map(ToString::to_string);
        let mut items = vec![format!(
            "{} at {}",
            node.hostname,
            addresses.collect::<Vec<_>>().join(", ")
        )];
        if !node.profile.is_empty() {
            items.push(format!("profile {}", node.profile));
        }
        let user = &cluster.service_user;
        items.push(format!(
            "services as {} ({}:{})",
            user.name, user.uid, user.gid
        ));
        section("Node", items);
        let room = render::bytes(run.bytes);
        section(
            "State",
            vec![format!("{}, up to {room}", node.state_dir.display())],
        );
    }
    section("Users", host.users.clone());
    section("Directories", host.directories.clone());
    let files = host.files.iter().map(|path| path.display().to_string());
    section("Files", files.collect());
    section("systemd units", host.units.clone());
    section("Kernel modules", host.modules.clone());
    let sysctls = host.sysctls.iter().map(|one| {
        let now = one.now.as_deref().unwrap_or("not there");
        format!("{}: {now} -> {}", one.name, one.then)
    });
    section("Kernel parameters", sysctls.collect());
    let ports = run.ports.iter().map(|port| {
        let at = port
            .address
            .as_ref()
            .map(|at| format!(" on {at}"))
            .unwrap_or_default();
        format!("{}/{}{at}: {}", port.ports, port.protocol, port.service)
    });
    section("Ports", ports.collect());
    section("Resources of --config", run.resources.to_vec());
    let steps = run
        .phases
        .iter()
        .map(|step| format!("{}: {}", step.id, step.description));
    section("Phases", steps.collect());
    lines.join("\n")
}
