//! The machine: facts, commands, users, mounts, atomic files, the host-change journal
