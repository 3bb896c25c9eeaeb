//! The JSON Schema of the manifest.
//!
//! Out: a schema, draft 2020-12, of what the decoders of [`crate::parse`] take:
//! it is made by running them. What fields mean together (references, limits,
//! jobs) no schema can say; `tele lint` does.

use serde_json::{Map, Value, json};

use crate::decode::schema_of;
use crate::fields;

/// The JSON Schema of a manifest.
pub fn schema() -> Value {
    let mut schema = Map::new();
    schema.insert(
        "$schema".into(),
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    schema.insert("title".into(), json!("Image Manifest"));
    if let Value::Object(root) = schema_of(|d, node, _| fields::manifest(d, node)) {
        schema.extend(root);
    }
    Value::Object(schema)
}
