//! Ends a join: from then on the node has a cluster.

use operation::PhaseError;
use spec::phase::CompleteJoin;

use super::complete::store;
use crate::Node;

pub(crate) fn execute(node: &Node, phase: &CompleteJoin) -> Result<(), PhaseError> {
    store(node, &phase.cluster, &phase.manifest)
}
