//! The Kubernetes scheduler.

use super::{Context, Definition};

pub(crate) fn define(context: &Context<'_>) -> Definition {
    context.elected("kube-scheduler", "scheduler.kubeconfig", 10259, &[])
}
