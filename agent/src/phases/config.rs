//! Applies the resources that the user gave to the install.

use operation::PhaseError;
use spec::phase::Config;

use crate::Node;
use crate::node::{file, lasting, transient};

pub(crate) async fn execute(node: &Node, phase: Config) -> Result<(), PhaseError> {
    let objects = objects(node, &phase)?;
    let client = node.kubernetes().await?;
    client
        .apply(&objects)
        .await
        .map_err(|error| transient(&error))
}

/// What the file holds.
pub(super) fn objects(node: &Node, phase: &Config) -> Result<Vec<serde_json::Value>, PhaseError> {
    let operation = node.layout().operations().join(&phase.operation);
    let path = operation.join(&phase.file);
    let text = std::fs::read_to_string(&path).map_err(|error| file("read", &path, &error))?;
    cluster::documents(&text).map_err(|error| lasting(&error))
}
