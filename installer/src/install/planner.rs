//! Phases of an install, and those that a join shares with it.

use std::path::PathBuf;

use manifest::{HookName, Manifest};
use operation::Phase;
use planet::config::{Device, PlanetConfig};
use spec::Role;
use spec::layout::Layout;
use spec::phase::{self, PhaseSpec, Volume};

use super::choice::{node_labels, wanted_nodes};
use super::{
    CONFIG_FILE, Error, ImageContent, LICENSE_FILE, NODES_PHASE, Options, Rootfs, TOKEN_FILE,
    TOKEN_PHASE, VALUES_FILE,
};
use crate::services::Context;
use crate::{addons, hooks, planet_config, secrets};

/// Phases of one node that run side by side.
const PARALLEL: usize = 4;

/// A group whose phases run side by side.
pub(crate) fn group(id: &str, description: &str, phases: Vec<Phase>) -> Phase {
    Phase {
        limit_parallel: Some(PARALLEL),
        phases,
        ..Phase::new(id, description)
    }
}

/// A phase that a node executes.
pub(crate) fn leaf(
    node: &str,
    id: &str,
    description: &str,
    payload: PhaseSpec,
) -> Result<Phase, serde_json::Error> {
    Ok(Phase {
        node: Some(node.into()),
        payload: serde_json::to_value(payload)?,
        ..Phase::new(id, description)
    })
}

/// Makes phases.
pub(crate) struct Planner<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) manifest: &'a Manifest,
    pub(crate) image: &'a ImageContent,
    pub(crate) volumes: &'a [Volume],
    pub(crate) devices: Vec<Device>,
    pub(crate) operation: &'a str,
}

impl Planner<'_> {
    /// All phases: the ones of a group overlap where they can, so that images
    /// are copied while Kubernetes starts.
    pub(super) fn phases(&self, options: &Options) -> Result<Vec<Phase>, Error> {
        let mut phases = vec![
            self.bootstrap()?,
            group(
                "/prepare",
                "Put programs, files and keys in place",
                self.prepare(PhaseSpec::Secrets(secrets::secrets(self.context)))?,
            ),
            group(
                "/start",
                "Start Kubernetes, fill the registry",
                self.start()?,
            ),
        ];
        phases.extend(self.of_hooks(options)?);
        if let Some(job) = self.manifest.hooks.get(&HookName::NetworkInstall) {
            let name = HookName::NetworkInstall;
            let hook = hooks::hook(self.context.cluster, name, job, self.operation);
            let hook = PhaseSpec::Hook(hook);
            phases.push(self.leaf("/overlay", "Run the hook of the pods' network", hook)?);
        }
        let node = self.context.node.hostname.clone();
        let health = PhaseSpec::Health(phase::Health {
            node,
            kubeconfig: "admin".into(),
            services: Vec::new(),
        });
        phases.push(self.leaf("/health", "Wait until the node is ready", health)?);
        // The application's hooks use them, those of nodes that join too.
        if options.config {
            let description = "Create the resources of --config";
            phases.push(self.given("/config", description, CONFIG_FILE)?);
        }
        phases.push(self.keep()?);
        if options.token {
            let description = "Keep the token that nodes join with";
            phases.push(self.given(TOKEN_PHASE, description, TOKEN_FILE)?);
        }
        let wanted = wanted_nodes(self.manifest, self.context.cluster.flavor.as_deref());
        if !wanted.is_empty() {
            let nodes = PhaseSpec::Nodes(phase::Nodes { wanted });
            phases.push(self.leaf(
                NODES_PHASE,
                "Wait until all nodes of the flavor have joined",
                nodes,
            )?);
        }
        for (hook, id, description) in [
            (HookName::Install, "/install", "Run the install hook"),
            (
                HookName::PostInstall,
                "/post-install",
                "Run the post-install hook",
            ),
        ] {
            if let Some(job) = self.manifest.hooks.get(&hook) {
                let hook = hooks::hook(self.context.cluster, hook, job, self.operation);
                let hook = PhaseSpec::Hook(hook);
                phases.push(self.leaf(id, description, hook)?);
            }
        }
        let complete = PhaseSpec::Complete(phase::Complete {
            operation: self.operation.into(),
            cluster: self.context.cluster.clone(),
            manifest: self.image.manifest_text.clone(),
        });
        phases.push(self.leaf("/complete", "Store the cluster's state", complete)?);
        Ok(phases)
    }

    /// What hooks may read; those of nodes that join run while this install waits
    /// for them.
    fn of_hooks(&self, options: &Options) -> Result<Vec<Phase>, Error> {
        let mut phases = Vec::new();
        if options.license.is_some() {
            let description = "Keep the license in the cluster";
            phases.push(self.given("/license", description, LICENSE_FILE)?);
        }
        if options.values {
            let description = "Keep the values for hooks in the cluster";
            phases.push(self.given("/values", description, VALUES_FILE)?);
        }
        Ok(phases)
    }

    /// Applies a file that the user has given, in the operation's directory.
    fn given(&self, id: &str, description: &str, file: &str) -> Result<Phase, Error> {
        let given = phase::Config {
            operation: self.operation.into(),
            file: file.into(),
        };
        self.leaf(id, description, PhaseSpec::Config(given))
    }

    pub(crate) fn bootstrap(&self) -> Result<Phase, Error> {
        let user = self.context.cluster.service_user.clone();
        let spec = PhaseSpec::Bootstrap(phase::Bootstrap { user });
        self.leaf(
            "/bootstrap",
            "Create the service user and directories",
            spec,
        )
    }

    pub(crate) fn prepare(&self, secrets: PhaseSpec) -> Result<Vec<Phase>, Error> {
        let image = self.image.path.clone();
        let volumes = phase::Volumes {
            volumes: self.volumes.to_vec(),
            user: self.context.cluster.service_user.clone(),
        };
        let program = phase::Program {
            image: image.clone(),
            links: spec::LINKED.map(String::from).into(),
        };
        let rootfs = phase::Rootfs {
            image,
            layers: self.filesystem()?.layers.clone(),
            target: self.rootfs()?,
        };
        Ok(vec![
            self.leaf(
                "/prepare/rootfs",
                "Unpack the planet",
                PhaseSpec::Rootfs(rootfs),
            )?,
            self.leaf("/prepare/secrets", "Make certificates and keys", secrets)?,
            self.leaf(
                "/prepare/program",
                "Install gravity, kubectl and helm",
                PhaseSpec::Program(program),
            )?,
            self.leaf(
                "/prepare/volumes",
                "Create volumes",
                PhaseSpec::Volumes(volumes),
            )?,
        ])
    }

    fn start(&self) -> Result<Vec<Phase>, Error> {
        let node = self.context.node;
        let registered = phase::Node {
            name: node.hostname.clone(),
            labels: node_labels(node),
            taints: node.taints.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
        };
        let mut objects = addons::dns(self.context.cluster);
        objects.extend(addons::cluster_info(self.context)?);
        let planet = self.planet("kube-apiserver")?;
        let after_planet = |phase| Phase {
            requires: vec![planet.id.clone()],
            ..phase
        };
        let node = self.leaf(
            "/start/node",
            "Register the node",
            PhaseSpec::Node(registered),
        )?;
        let objects = PhaseSpec::Apply(phase::Apply { objects });
        let objects = self.leaf(
            "/start/resources",
            "Create the cluster's DNS service and description",
            objects,
        )?;
        let (node, objects) = (after_planet(node), after_planet(objects));
        let mut phases = vec![planet, node, objects];
        phases.extend(self.contents()?);
        Ok(phases)
    }

    /// Whether the node becomes one more master.
    fn is_joining_master(&self) -> bool {
        self.context.node.role == Role::Master && self.context.cluster.has_several_masters()
    }

    /// Starts the planet and waits for one of its services.
    pub(crate) fn planet(&self, wait_for: &str) -> Result<Phase, Error> {
        let config = PlanetConfig {
            devices: self.devices.clone(),
            ..planet_config::planet_config(self.context, self.rootfs()?, self.volumes)
        };
        let planet = phase::Planet {
            config: serde_json::to_value(&config)?,
            wait_for: vec![wait_for.into()],
            member_of: match self.is_joining_master() {
                true => self.context.cluster.controllers(),
                false => Vec::new(),
            },
        };
        self.leaf(
            "/start/planet",
            "Start the planet",
            PhaseSpec::Planet(planet),
        )
    }

    /// What every node keeps of the image.
    pub(crate) fn contents(&self) -> Result<[Phase; 2], Error> {
        let images = phase::Images {
            image: self.image.path.clone(),
            images: self.image.images.clone(),
        };
        let resources = phase::Resources {
            image: self.image.path.clone(),
            digest: self.image.reference.resources.clone(),
            service_uid: self.context.cluster.service_user.uid,
            service_gid: self.context.cluster.service_user.gid,
        };
        Ok([
            self.leaf(
                "/start/images",
                "Fill the registry with container images",
                PhaseSpec::Images(images),
            )?,
            self.leaf(
                "/start/hook-resources",
                "Unpack the resources of hooks",
                PhaseSpec::Resources(resources),
            )?,
        ])
    }

    /// What nodes that join get of the image.
    pub(crate) fn keep(&self) -> Result<Phase, Error> {
        let image = self.image.path.clone();
        self.leaf(
            "/image",
            "Keep the image for nodes that join",
            PhaseSpec::Keep(phase::Keep { image }),
        )
    }

    fn filesystem(&self) -> Result<&Rootfs, Error> {
        let profile = &self.context.node.profile;
        let planet = self.image.planets.get(profile);
        planet.ok_or_else(|| Error::Planet(profile.clone()))
    }

    fn rootfs(&self) -> Result<PathBuf, Error> {
        let layout = Layout::new(&self.context.node.state_dir);
        Ok(layout.rootfs(&self.filesystem()?.digest))
    }

    pub(crate) fn leaf(
        &self,
        id: &str,
        description: &str,
        payload: PhaseSpec,
    ) -> Result<Phase, Error> {
        let node = &self.context.node.hostname;
        Ok(leaf(node, id, description, payload)?)
    }
}
