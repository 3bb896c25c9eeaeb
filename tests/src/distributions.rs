//! The sample on nodes with other releases of Linux than most tests have.
//!
//! In: the sample. Out: an error at the first release on which it is not installed,
//! does not work, or is not removed; the node then stays to be looked at.

use anyhow::{Context, Result};
use console::{Console, render};
use event::Sink;

use crate::node::{self, Node, Options};
use crate::rootfs;
use crate::scenario::{Setup, comes_and_goes};

/// Releases of Debian: 11, 12 and 13.
const SUITES: [&str; 3] = ["bullseye", "bookworm", "trixie"];

/// Installs and removes the sample on the new nodes `NAME-SUITE`, one at a time.
///
/// # Errors
/// At the first check that fails.
pub fn run(setup: &Setup, name: &str, console: &Console) -> Result<()> {
    node::require_root()?;
    let image = setup.image(console)?;
    for suite in SUITES {
        let name = format!("{name}-{suite}");
        node::delete(&name)?;
        let options = Options {
            root: rootfs::node_root(suite, console)?,
            ..node::usual(console)?
        };
        let node = Node::create(&name, &options)?;
        let release = node.text(&["sh", "-c", ". /etc/os-release; echo $PRETTY_NAME"])?;
        let release = render::sanitize(release.trim());
        console.step(&format!("A node with {release}"));
        comes_and_goes(&node, &image, console).with_context(|| release.clone())?;
        node.delete()?;
    }
    Ok(())
}
