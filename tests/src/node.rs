//! Test nodes: those of [`throwaway::node`] over the Debian of these tests, with
//! their disks in the cache.

use anyhow::Result;
use event::Sink;
pub use throwaway::node::{BRIDGE, Node, Options, STATE, Throwaway, delete, require_root};

use crate::{file, rootfs};

/// What test nodes have in common; its Debian is made when the cache does not
/// have it.
///
/// # Errors
/// See [`rootfs::node_root`].
pub fn usual(sink: &dyn Sink) -> Result<Options> {
    Ok(Options {
        root: rootfs::node_root(rootfs::SUITE, sink)?,
        data: file::cache()?.join("nodes"),
        ..Options::default()
    })
}
