//! The machine: facts, commands, users, mounts, atomic files, the journal of
//! host changes.
//!
//! In: paths and names. Out: what the kernel and the host's files say, and
//! changes to them. Parsers take `&str` and are pure; loaders read the file.
//! Nothing here resolves names through libc: the program is static.

pub mod atomic;
pub mod background;
pub mod bounded;
pub mod causes;
pub mod changes;
pub mod command;
pub mod facts;
pub mod limited;
pub mod lock;
pub mod log;
pub mod modules;
pub mod mounts;
pub mod sysctl;
pub mod users;
