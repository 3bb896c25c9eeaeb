//! The registry that serves the images of the cluster.

use planet::config::{Mount, Probe};

use super::{Context, Definition, config, program, secret};

const DATA: &str = "/var/lib/registry";

pub(crate) fn define(context: &Context<'_>) -> Definition {
    let listen = std::net::SocketAddr::new(context.address(), spec::REGISTRY_PORT);
    let command = vec![program("registry"), "serve".into(), config("registry.yaml")];
    let mut service = context.unprivileged("registry", command, Probe::Tcp { address: listen });
    // It would otherwise look for collectors of traces.
    service
        .env
        .insert("OTEL_TRACES_EXPORTER".into(), "none".into());
    let settings = serde_json::json!({
        "version": 0.1,
        "log": { "level": "warn", "accesslog": { "disabled": true } },
        "storage": {
            "filesystem": { "rootdirectory": DATA },
            // What it serves is decided by the plan, never by a client.
            "maintenance": { "readonly": { "enabled": true } },
        },
        "http": {
            "addr": listen.to_string(),
            "tls": {
                "certificate": secret("registry.crt"),
                "key": secret("registry.key"),
                "clientcas": [secret("registry-ca.crt")],
            },
        },
    });
    Definition {
        service,
        files: vec![context.file("registry.yaml", format!("{settings:#}\n"))],
        mounts: vec![Mount {
            read_only: true,
            ..context.data("registry", DATA)
        }],
    }
}
