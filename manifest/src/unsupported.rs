//! Fields that this release understands but doesn't act on.
//!
//! In: a manifest. Out: an error for each such field, so that build and install
//! refuse rather than ignore. A field leaves this list when it is implemented.

use crate::types::{Extension, Manifest, NetworkType, NodeProfile, ServiceRole};
use crate::{Diagnostic, HookName, Severity};

/// Hooks that run.
const HOOKS: [HookName; 2] = [HookName::Install, HookName::PostInstall];

impl Manifest {
    /// Everything that the manifest asks for and this release doesn't do yet.
    pub fn unsupported(&self) -> Vec<Diagnostic> {
        let mut asked = Vec::new();
        self.of_cluster(&mut asked);
        for (index, profile) in self.node_profiles.iter().enumerate() {
            of_profile(profile, &format!("nodeProfiles[{index}]"), &mut asked);
        }
        for hook in self.hooks.keys().filter(|hook| !HOOKS.contains(hook)) {
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
        // An extension that is there without a word would have to be installed.
        let wanted =
            |extension: &Option<Extension>| extension.as_ref().is_some_and(|one| !one.disabled);
        let aws = &providers.aws;
        let fields = [
            ("logo", self.logo.is_some()),
            (
                "providers.default",
                providers
                    .default
                    .as_deref()
                    .is_some_and(|name| name != "generic"),
            ),
            ("providers.aws.network", aws.network.is_some()),
            ("providers.aws.regions", !aws.regions.is_empty()),
            (
                "providers.generic.network.type",
                providers.generic.network.kind == Some(NetworkType::Wireguard),
            ),
            ("providers.generic.disabled", providers.generic.disabled),
            (
                "installer.setupEndpoints",
                !self.installer.setup_endpoints.is_empty(),
            ),
            ("license.enabled", self.license.enabled),
            ("extensions.logs.disabled", wanted(&self.extensions.logs)),
            (
                "extensions.monitoring.disabled",
                wanted(&self.extensions.monitoring),
            ),
            (
                "extensions.catalog.disabled",
                self.extensions
                    .catalog
                    .as_ref()
                    .is_some_and(|one| one.disabled),
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
    let fields = [
        (
            "serviceRole",
            profile.service_role == Some(ServiceRole::Node),
        ),
        ("expandPolicy", profile.expand_policy.is_some()),
        (
            "requirements.customChecks",
            !needed.custom_checks.is_empty(),
        ),
        (
            "requirements.network.minTransferRate",
            needed.network.min_transfer_rate.is_some(),
        ),
    ];
    asked.extend(
        fields
            .iter()
            .filter(|(_, asked)| *asked)
            .map(|(field, _)| format!("{path}.{field}")),
    );
    for (index, volume) in needed.volumes.iter().enumerate() {
        let fields = [
            ("minTransferRate", volume.min_transfer_rate.is_some()),
            ("hidden", volume.hidden),
        ];
        let asked_for = fields.iter().filter(|(_, asked)| *asked);
        asked.extend(
            asked_for.map(|(field, _)| format!("{path}.requirements.volumes[{index}].{field}")),
        );
    }
}
