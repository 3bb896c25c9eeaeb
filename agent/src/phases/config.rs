//! Applies the resources that the user gave to the install.

use std::path::PathBuf;

use operation::PhaseError;
use spec::phase::Config;

use crate::Node;
use crate::node::{file, lasting, transient};

pub(crate) async fn execute(node: &Node, phase: Config) -> Result<(), PhaseError> {
    let path = path(node, &phase);
    let text = std::fs::read_to_string(&path).map_err(|error| file("read", &path, &error))?;
    let mut objects = cluster::documents(&text).map_err(|error| lasting(&error))?;
    // Gravity's own are in the plan since it was made.
    objects.retain(|object| !cluster::is_of_gravity(object));
    let client = node.kubernetes().await?;
    client
        .apply(&objects)
        .await
        .map_err(|error| transient(&error))
}

/// Where the resources are.
pub(super) fn path(node: &Node, phase: &Config) -> PathBuf {
    let operation = node.layout().operations().join(&phase.operation);
    operation.join(&phase.file)
}
