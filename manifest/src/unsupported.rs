//! Fields that this release understands but doesn't act on.
//!
//! In: a manifest. Out: an error for each such field, so that build and install
//! refuse rather than ignore. A field leaves this list when it is implemented.
//! Extensions that can be disabled are not among them: there is nothing that
//! their fields would switch. Nor is an `expandPolicy` of `fixed-instance`: machines
//! without a provider have no type.

use crate::types::{Manifest, NetworkType, NodeProfile, SystemOptions};
use crate::{Diagnostic, Severity};

impl Manifest {
    /// Everything that the manifest asks for and this release doesn't do yet.
    pub fn unsupported(&self) -> Vec<Diagnostic> {
        let mut asked = Vec::new();
        self.of_cluster(&mut asked);
        for (index, profile) in self.node_profiles.iter().enumerate() {
            of_profile(profile, &format!("nodeProfiles[{index}]"), &mut asked);
        }
        of_system(&self.system_options, "systemOptions", &mut asked);
        for hook in self.hooks.keys().filter(|hook| hook.trigger().is_none()) {
            asked.push(format!("hooks.{hook}"));
        }
        let report = |path: String| {
            let message = format!("`{path}` is not supported by this release yet");
            let help = "remove it, or use a release that supports it".to_owned();
            self.source
                .at_key(&path, "not-supported", message, Some(help))
        };
        let mut found: Vec<_> = asked.into_iter().map(report).collect();
        let arguments = self.arguments().into_iter();
        found.extend(arguments.filter(|one| one.severity == Severity::Error));
        found.sort_by_key(|one| (one.line, one.column));
        found
    }

    fn of_cluster(&self, asked: &mut Vec<String>) {
        let providers = &self.providers;
        let aws = &providers.aws;
        let fields = [
            (
                "providers.default",
                providers
                    .default
                    .as_deref()
                    .is_some_and(|name| name != "generic"),
            ),
            ("providers.aws.network", aws.network.is_some()),
            ("providers.aws.regions", !aws.regions.is_empty()),
            ("providers.aws.iamPolicy", aws.iam_policy.is_some()),
            (
                "providers.aws.terraform.script",
                aws.terraform.script.is_some(),
            ),
            (
                "providers.aws.terraform.instanceScript",
                aws.terraform.instance_script.is_some(),
            ),
            (
                "providers.generic.network.type",
                providers
                    .generic
                    .network
                    .kind
                    .is_some_and(|kind| kind == NetworkType::Calico),
            ),
            ("providers.generic.disabled", providers.generic.disabled),
            (
                "metadata.namespace",
                self.metadata
                    .namespace
                    .as_deref()
                    .is_some_and(|name| name != "default"),
            ),
            ("metadata.hidden", self.metadata.hidden),
            ("webConfig", self.web_config.is_some()),
            (
                "dependencies.packages",
                !self.dependencies.packages.is_empty(),
            ),
            ("dependencies.apps", !self.dependencies.apps.is_empty()),
            ("ingress.nginx.enabled", self.ingress.nginx.enabled),
            ("storage.openebs.enabled", self.storage.openebs.enabled),
            (
                "extensions.encryption",
                self.extensions.encryption.is_some(),
            ),
        ];
        asked.extend(
            fields
                .iter()
                .filter(|(_, asked)| *asked)
                .map(|(path, _)| (*path).to_owned()),
        );
    }
}

fn of_profile(profile: &NodeProfile, path: &str, asked: &mut Vec<String>) {
    let needed = &profile.requirements;
    if !profile.providers.aws.instance_types.is_empty() {
        asked.push(format!("{path}.providers.aws.instanceTypes"));
    }
    of_system(
        &profile.system_options,
        &format!("{path}.systemOptions"),
        asked,
    );
    for (index, volume) in needed.volumes.iter().enumerate() {
        let fields = [
            ("hidden", volume.hidden),
            ("seLinuxLabel", volume.selinux_label.is_some()),
        ];
        let asked_for = fields.iter().filter(|(_, asked)| *asked);
        asked.extend(
            asked_for.map(|(field, _)| format!("{path}.requirements.volumes[{index}].{field}")),
        );
    }
}

/// The storage drivers all mean containerd's overlay: nothing to do.
fn of_system(options: &SystemOptions, path: &str, asked: &mut Vec<String>) {
    let runtime = options
        .runtime
        .as_ref()
        .and_then(|runtime| runtime.version.as_ref());
    let fields = [
        ("docker.capacity", options.docker.capacity.is_some()),
        ("allowPrivileged", options.allow_privileged == Some(false)),
        ("args", !options.args.is_empty()),
        (
            "runtime.version",
            runtime.is_some_and(|version| version.to_string() != "0.0.0+latest"),
        ),
        (
            "dependencies.runtimePackage",
            options.dependencies.runtime_package.is_some(),
        ),
    ];
    asked.extend(
        fields
            .iter()
            .filter(|(_, asked)| *asked)
            .map(|(field, _)| format!("{path}.{field}")),
    );
}
