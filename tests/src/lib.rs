//! End to end: throwaway nodes, the sample application, virtual machines.
//!
//! In: the programs that were built and Debian packages. Out: nodes to install
//! on, and what they are compared by. Always holds: nothing here touches the
//! network or the namespaces of the machine that it runs on, and what was made
//! is found and removed by name, also after a crash.

pub mod bench;
pub mod care;
pub mod checks;
pub mod crash;
pub mod distributions;
pub mod faults;
pub mod hooks;
pub mod hosts;
pub mod join;
mod load;
pub mod masters;
pub mod network;
pub mod node;
pub mod offline;
pub mod page;
pub mod peers;
pub mod profiles;
pub mod quorum;
pub mod registry;
pub mod rootfs;
mod said;
pub mod sample;
pub mod scenario;
pub mod snapshot;
pub mod vendor;
pub mod vm;

pub use throwaway::{file, process};
