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
    let run = cluster::hooks::HookRun {
        name: phase.hook,
        job_yaml: phase.job,
        env: phase.env,
        resources_host_path: phase.resources,
        service_user_uid: phase.service_uid,
        operation_id: phase.operation,
    };
    cluster::hooks::run(&client, &run, sink)
        .await
        .map_err(|error| lasting(&error))
}
