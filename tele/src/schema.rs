//! `tele schema`: the JSON Schema of the Image Manifest, for editors.
//!
//! Out: a JSON document, draft 2020-12.

use anyhow::Result;
use console::Console;

pub(crate) fn run(console: &Console) -> Result<()> {
    Ok(console.print_json(&manifest::schema())?)
}
