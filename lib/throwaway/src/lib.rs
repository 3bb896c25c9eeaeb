//! Throwaway nodes: namespaces of this machine that look like small servers.
//!
//! In: a root filesystem and a place for what the nodes write. Out: nodes to
//! install on, in tests and in `tele verify --offline-boot`. Always holds: nothing
//! here touches the network or the namespaces of the machine that it runs on, and
//! what was made is found and removed by name, also after a crash.
//!
//! Errors are `anyhow`'s: both users are programs that only print them.

pub mod cgroup;
pub mod file;
pub mod helper;
mod inside;
pub mod node;
pub mod process;
