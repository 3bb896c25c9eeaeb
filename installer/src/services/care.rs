//! Care of the node while it runs: certificates, etcd, who the masters are.

use std::path::Path;

use planet::config::{Mount, Probe};
use spec::Role;
use spec::care::{self, Care};
use spec::layout::Layout;

use super::{Context, Definition, config};
use crate::secrets;

const NAME: &str = "care";
const FILE: &str = "care.json";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let arguments = ["care", "--config", &config(FILE)];
    // It writes keys, signs with those of the authorities, and tells the supervisor who
    // the masters are.
    let service = context.own(NAME, &arguments, Probe::Started);
    let json = serde_json::json!(care(context));
    let state = Layout::new(&context.node.state_dir);
    let directories = care::DIRECTORIES
        .iter()
        .filter(|name| context.node.role == Role::Master || **name != "etcd-snapshots");
    let mounts = directories.map(|name| Mount {
        source: state.service(name),
        target: Path::new(care::STATE).join(name),
        ..Mount::default()
    });
    Definition {
        service,
        files: vec![context.file(FILE, format!("{json:#}\n"))],
        mounts: mounts.collect(),
    }
}

fn care(context: &Context<'_>) -> Care {
    let master = context.node.role == Role::Master;
    let requested = secrets::requested(context.cluster, context.node);
    Care {
        version: spec::VERSION,
        node: context.node.hostname.clone(),
        user: context.cluster.service_user.clone(),
        leaf_seconds: context.cluster.leaf_seconds,
        certificates: requested.certificates,
        kubeconfigs: requested.kubeconfigs,
        identity: rpc::controller::member_name(context.node.id),
        controllers: match master {
            true => Vec::new(),
            false => context.cluster.controllers(),
        },
        etcd: master,
    }
}
