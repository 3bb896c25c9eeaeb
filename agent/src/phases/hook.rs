//! Runs a hook as a Job.

use std::sync::Arc;

use event::Sink;
use operation::PhaseError;
use spec::phase::Hook;

use crate::Node;
use crate::node::lasting;

pub(crate) async fn execute(
    node: &Node,
    phase: Hook,
    sink: Arc<dyn Sink>,
) -> Result<(), PhaseError> {
    let client = node.kubernetes().await?;
    cluster::hooks::run(&client, &hook_run(phase), sink)
        .await
        .map_err(lasting)
}

/// A hook as [`cluster::hooks`] takes it.
pub fn hook_run(phase: Hook) -> cluster::hooks::HookRun {
    cluster::hooks::HookRun {
        name: phase.hook,
        job_yaml: phase.job,
        env: phase.env,
        resources_host_path: phase.resources,
        service_user_uid: phase.service_uid,
        operation_id: phase.operation,
        avoid: phase.avoid,
    }
}
