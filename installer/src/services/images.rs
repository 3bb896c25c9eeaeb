//! Gives nodes that join the cluster image, on workers.

use std::net::SocketAddr;

use planet::config::{Mount, Probe, Service};
use spec::layout::{Layout, PLANET_SECRETS, PLANET_STATE};

use super::{Context, Definition};

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let listen = SocketAddr::new(context.address(), spec::CONTROLLER_PORT);
    let listen_text = listen.to_string();
    let arguments = [
        "images",
        "--listen",
        &listen_text,
        "--secrets",
        PLANET_SECRETS,
    ];
    let user = &context.cluster.service_user;
    let ready = Probe::Tcp { address: listen };
    let service = Service {
        uid: user.uid,
        gid: user.gid,
        ..context.own("images", &arguments, ready)
    };
    Definition {
        mounts: mounts(context).into(),
        ..service.into()
    }
}

/// What is read to give the image away.
pub(super) fn mounts(context: &Context<'_>) -> [Mount; 2] {
    let (here, inside) = (
        Layout::new(&context.node.state_dir),
        Layout::new(PLANET_STATE),
    );
    [
        (here.image(), inside.image()),
        (here.blobs(), inside.blobs()),
    ]
    .map(|(source, target)| Mount {
        source,
        target,
        read_only: true,
        ..Mount::default()
    })
}
