//! YAML and JSON of resources and charts.
//!
//! In: text. Out: one tree a document, within limits for what others wrote:
//! larger than those of a manifest.

use manifest::yaml::{Limits, Node, SyntaxError};

const LIMITS: Limits = Limits {
    size: 64 << 20,
    nodes: 2_000_000,
    depth: 128,
};

/// Reads all documents of a text; an error says where it is.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    manifest::yaml::documents(text, &LIMITS)
}
