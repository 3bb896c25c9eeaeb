//! The registry of lifecycle hooks.
//!
//! In: nothing. Out: every hook by name, what runs it, and what its failure
//! does. `docs/hooks.md` says the same, which a test compares.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::ValueError;

/// What runs a hook, and what its failure does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger {
    /// When it is run.
    pub when: &'static str,
    /// What happens when its Job fails.
    pub failure: Failure,
}

/// What the failure of a hook does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The operation stops; resumed, it runs the hook again.
    Stops,
    /// The operation stops unless it is forced.
    StopsUnlessForced,
    /// The cluster is degraded until the hook succeeds.
    Degrades,
    /// Only the command that ran it fails.
    Fails,
    /// What it belongs to has happened; it is told.
    Warns,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stops => "the operation stops, `gravity resume` runs it again",
            Self::StopsUnlessForced => "the operation stops, unless `--force`",
            Self::Degrades => "the cluster is degraded until it succeeds",
            Self::Fails => "the command fails",
            Self::Warns => "it is told",
        })
    }
}

const fn by(when: &'static str, failure: Failure) -> Option<Trigger> {
    Some(Trigger { when, failure })
}

/// Its operation doesn't exist in this release.
const NEVER: Option<Trigger> = None;

macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $trigger:expr;)*) => {
        /// A point in the life of a cluster at which a Job of the image runs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum HookName { $($(#[$doc])* $name,)* }

        impl HookName {
            /// All hooks, in the order of a cluster's life.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Name as in the manifest.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What runs it; `None` while its operation doesn't exist, and
            /// images that have it are refused.
            pub fn trigger(self) -> Option<Trigger> {
                match self { $(Self::$name => $trigger,)* }
            }
        }
    };
}

hooks! {
    /// Machines are made for a new cluster.
    ClusterProvision = "clusterProvision", NEVER;
    /// The machines of a cluster are removed.
    ClusterDeprovision = "clusterDeprovision", NEVER;
    /// Machines are added to a cluster.
    NodesProvision = "nodesProvision", NEVER;
    /// Machines are removed from a cluster.
    NodesDeprovision = "nodesDeprovision", NEVER;
    /// The application is installed for the first time.
    Install = "install", by("`gravity install`, when the node is ready", Failure::Stops);
    /// The application has been installed.
    PostInstall = "postInstall", by("`gravity install`, after `install`", Failure::Stops);
    /// The application is uninstalled.
    Uninstall = "uninstall",
        by("`gravity leave` of the last node", Failure::StopsUnlessForced);
    /// Before the uninstall is launched.
    PreUninstall = "preUninstall",
        by("`gravity leave` of the last node, before `uninstall`", Failure::StopsUnlessForced);
    /// Before a node is added.
    PreNodeAdd = "preNodeAdd",
        by("`gravity join`, before Kubernetes gets to know the node", Failure::Stops);
    /// After a node has been added.
    PostNodeAdd = "postNodeAdd", by("`gravity join`, when the node is ready", Failure::Stops);
    /// Before a node is removed.
    PreNodeRemove = "preNodeRemove",
        by("`gravity leave` and `gravity remove`, before pods are moved", Failure::StopsUnlessForced);
    /// After a node has been removed.
    PostNodeRemove = "postNodeRemove",
        by("`gravity leave` and `gravity remove`, when the node is gone; `gravity etcd recover`, for each master that is lost", Failure::Warns);
    /// Before the application is updated.
    PreUpdate = "preUpdate", NEVER;
    /// The application is updated.
    Update = "update", NEVER;
    /// After a successful update.
    PostUpdate = "postUpdate", NEVER;
    /// An update failed and is rolled back.
    Rollback = "rollback", NEVER;
    /// After a successful rollback.
    PostRollback = "postRollback", NEVER;
    /// Every minute, to check the application.
    Status = "status", by("every minute, once the install is complete", Failure::Degrades);
    /// Information about the application is asked for.
    Info = "info", by("`gravity hook run info`", Failure::Fails);
    /// The license has been updated.
    LicenseUpdated = "licenseUpdated", NEVER;
    /// The application is started.
    Start = "start", by("`gravity start`, when the node is ready", Failure::Fails);
    /// The application is stopped.
    Stop = "stop",
        by("`gravity stop`, before the node's services end", Failure::StopsUnlessForced);
    /// Data for a debug report is collected.
    Dump = "dump",
        by("`gravity hook run dump`, and `gravity report` on a master, which tells of a failure in its `dump.txt` and goes on", Failure::Fails);
    /// The application's data is backed up.
    Backup = "backup", NEVER;
    /// The application's data is restored.
    Restore = "restore", NEVER;
    /// A custom network plugin is installed.
    NetworkInstall = "networkInstall",
        by("`gravity install`, before the node is ready and any pod has a network", Failure::Stops);
    /// A custom network plugin is updated.
    NetworkUpdate = "networkUpdate", NEVER;
    /// A custom network plugin is rolled back.
    NetworkRollback = "networkRollback", NEVER;
}

impl fmt::Display for HookName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HookName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::ALL
            .iter()
            .copied()
            .find(|hook| hook.as_str() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|hook| hook.as_str()).collect();
                ValueError::new(
                    format!("\"{text}\" is not a hook"),
                    format!("hooks are {}", names.join(", ")),
                )
            })
    }
}

impl Serialize for HookName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_says_what_the_registry_says() {
        let text = include_str!("../../docs/hooks.md");
        for hook in HookName::ALL {
            let row = match hook.trigger() {
                Some(Trigger { when, failure }) => format!("| `{hook}` | {when} | {failure} |"),
                None => format!("| `{hook}` | not yet: images with it are refused | |"),
            };
            assert!(
                text.lines().any(|line| line.starts_with(&row)),
                "no line {row}"
            );
            assert_eq!(hook.as_str().parse::<HookName>(), Ok(*hook));
        }
        assert_eq!(HookName::ALL.len(), 28);
    }
}
