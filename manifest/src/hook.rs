//! Names of lifecycle hooks.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::ValueError;

macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
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
        }
    };
}

hooks! {
    /// Machines are made for a new cluster.
    ClusterProvision = "clusterProvision",
    /// The machines of a cluster are removed.
    ClusterDeprovision = "clusterDeprovision",
    /// Machines are added to a cluster.
    NodesProvision = "nodesProvision",
    /// Machines are removed from a cluster.
    NodesDeprovision = "nodesDeprovision",
    /// The application is installed for the first time.
    Install = "install",
    /// The application has been installed.
    PostInstall = "postInstall",
    /// The application is uninstalled.
    Uninstall = "uninstall",
    /// Before the uninstall is launched.
    PreUninstall = "preUninstall",
    /// Before a node is added.
    PreNodeAdd = "preNodeAdd",
    /// After a node has been added.
    PostNodeAdd = "postNodeAdd",
    /// Before a node is removed.
    PreNodeRemove = "preNodeRemove",
    /// After a node has been removed.
    PostNodeRemove = "postNodeRemove",
    /// Before the application is updated.
    PreUpdate = "preUpdate",
    /// The application is updated.
    Update = "update",
    /// After a successful update.
    PostUpdate = "postUpdate",
    /// An update failed and is rolled back.
    Rollback = "rollback",
    /// After a successful rollback.
    PostRollback = "postRollback",
    /// Every minute, to check the application.
    Status = "status",
    /// Information on the application is asked for.
    Info = "info",
    /// The license has been updated.
    LicenseUpdated = "licenseUpdated",
    /// The application is started.
    Start = "start",
    /// The application is stopped.
    Stop = "stop",
    /// Data for a debug report is collected.
    Dump = "dump",
    /// The application's data is backed up.
    Backup = "backup",
    /// The application's data is restored.
    Restore = "restore",
    /// A custom network plugin is installed.
    NetworkInstall = "networkInstall",
    /// A custom network plugin is updated.
    NetworkUpdate = "networkUpdate",
    /// A custom network plugin is rolled back.
    NetworkRollback = "networkRollback",
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
