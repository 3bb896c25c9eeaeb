//! Hooks: a vendor's Jobs that run at points of a cluster's life.
//!
//! In: a [`HookRun`], which is a Job as the vendor wrote it and what the
//! operation knows. Out: the Job has run to its end in the cluster, or an error
//! says why not, with the last lines of its pods. The Job's name is determined
//! by operation and hook, so a resumed operation finds its Job again.

mod access;
mod job;
mod logs;
mod observe;
mod run;
mod values;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use job::{JobError, parse};
pub(crate) use run::end;
pub use run::{Begun, HookError, begin, follow, remove, run};
pub use values::values_secret;
pub use watch::{LastCheck, watch};

/// Namespace of hooks that don't say one, as in Gravity from its beginning.
pub(crate) const DEFAULT_NAMESPACE: &str = "kube-system";

/// First part of the name of the service account that hooks run as, unless
/// their Job names another. It may do everything, and lives as long as its
/// operation.
pub(crate) const SERVICE_ACCOUNT: &str = "gravity-hook";

/// The service account of an operation: operations that overlap don't end each
/// other's.
fn service_account(operation_id: &str) -> String {
    format!("{SERVICE_ACCOUNT}-{}", short_hash(operation_id))
}

/// Six hex digits that depend on all of `input`.
fn short_hash(input: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, input.as_bytes());
    let bytes = digest.as_ref().iter().take(3);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// Name of the hook that is run every minute.
const STATUS: &str = "status";
/// The hook that brings the network of pods.
const NETWORK_INSTALL: &str = "networkInstall";

/// Label with the identity of the operation that made an object.
pub(crate) const OPERATION_LABEL: &str = "gravitational.io/operation";

/// Label with the name of the hook that a Job is.
pub(crate) const HOOK_LABEL: &str = "gravitational.io/hook";

/// First part of the identity of an operation that is nothing but a hook, which
/// somebody may run again and again.
pub const BY_HAND: &str = "by-hand-";

/// One run of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRun {
    /// Name of the hook, such as `postInstall`.
    pub name: String,
    /// The vendor's Job, YAML or JSON.
    pub job_yaml: String,
    /// Environment that every container gets, unless the Job sets it.
    pub env: BTreeMap<String, String>,
    /// Directory with the cluster resources, as the kubelet sees it.
    pub resources_host_path: PathBuf,
    /// User id of the services: `GRAVITY_SERVICE_USER`, and what `-1` means.
    pub service_user_uid: u32,
    /// Identity of the operation: letters, digits and dashes.
    pub operation_id: String,
    /// Node that its pods keep away from.
    pub avoid: Option<String>,
}
