//! The calls to the kernel that have no safe form elsewhere.
//!
//! In: plain values. Out: owned descriptors and results. Always holds: what
//! runs between `fork` and `exec` of a service is async-signal-safe, so it may
//! be used while other threads exist; [`fork`] itself is only for processes
//! with one thread.
#![expect(
    unsafe_code,
    reason = "fork, pidfd, bpf, capabilities and pre_exec have no safe form"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SigHandler, Signal};
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::devices::Found;

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the new one's id.
    Parent(Pid),
}

/// Proof that this process has one thread.
#[derive(Debug)]
pub(crate) struct SingleThread(());

impl SingleThread {
    /// Counts the threads.
    ///
    /// # Errors
    /// When other threads exist: a child could deadlock on a lock that they
    /// hold.
    pub(crate) fn check() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            threads => Err(io::Error::other(format!(
                "{threads} threads exist, it needs one"
            ))),
        }
    }
}

/// Makes a child that goes on with this program.
pub(crate) fn fork(_: &SingleThread) -> io::Result<Fork> {
    // SAFETY: this is the only thread, so the child has all locks in order.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(Pid::from_raw(pid))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Opens a process, so that it can't be mistaken for a later one with its id.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: plain call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the runtime wait for the end of an open process.
pub(crate) fn watch(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor; the `AsyncFd`
    // owns it from here on.
    unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) }.map_err(Into::into)
}

/// Sends a signal to an open process.
pub(crate) fn pidfd_signal(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    // SAFETY: the descriptor is open; null means ordinary signal information.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal as i32,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Ignores a signal, or lets it have its default effect.
pub(crate) fn handle(signal: Signal, handler: SigHandler) {
    debug_assert!(matches!(handler, SigHandler::SigIgn | SigHandler::SigDfl));
    // SAFETY: no handler of ours is installed, so none can do what a handler
    // may not. It only fails for signals that don't exist.
    let _ = unsafe { nix::sys::signal::signal(signal, handler) };
}

/// Closes all descriptors but the standard three at the next exec.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: only sets a flag on descriptors; none is closed now.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An instruction of the kernel's virtual machine.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Source in the upper half, destination in the lower.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A program that refuses what is denied and allows all else. The kernel gives
/// it, in this order, access (upper half) and type, major and minor number.
fn device_filter(rules: &[(&Found, String)]) -> Vec<Instruction> {
    let op = |code, destination: u8, source: u8, offset, immediate| Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    };
    // Codes of the instruction set: what they do is said on each line.
    let (load, copy, set, and, shift, differs, equal, end) =
        (0x61, 0xbf, 0xb7, 0x54, 0x74, 0x55, 0x15, 0x95);
    let mut program = vec![
        op(load, 2, 1, 0, 0),     // r2 = access and type
        op(copy, 3, 2, 0, 0),     // r3 = r2
        op(and, 2, 0, 0, 0xffff), // r2 = type
        op(shift, 3, 0, 0, 16),   // r3 = access
        op(load, 4, 1, 4, 0),     // r4 = major number
        op(load, 5, 1, 8, 0),     // r5 = minor number
    ];
    for (device, denied) in rules {
        // BPF_DEVCG_DEV_BLOCK and _CHAR, BPF_DEVCG_ACC_MKNOD, _READ and _WRITE.
        let kind = if device.block { 1 } else { 2 };
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let mask = bits.iter().filter(|(one, _)| denied.contains(*one));
        let mask = mask.map(|(_, bit)| bit).sum();
        let number = |number: u64| i32::try_from(number).unwrap_or(-1);
        let (major, minor) = (major(device.number), minor(device.number));
        program.extend([
            op(differs, 2, 0, 7, kind),          // another type: next device
            op(differs, 4, 0, 6, number(major)), // another number: next device
            op(differs, 5, 0, 5, number(minor)),
            op(copy, 0, 3, 0, 0),   // r0 = access
            op(and, 0, 0, 0, mask), // of what is denied
            op(equal, 0, 0, 2, 0),  // nothing: next device
            op(set, 0, 0, 0, 0),    // refuse
            op(end, 0, 0, 0, 0),
        ]);
    }
    program.extend([op(set, 0, 0, 0, 1), op(end, 0, 0, 0, 0)]); // allow
    program
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 10],
}

/// `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Keeps all in a v2 control group, and in those below, from what is denied.
pub(crate) fn restrict_devices(group: &File, rules: &[(&Found, String)]) -> io::Result<()> {
    const PROG_LOAD: libc::c_int = 5;
    const PROG_ATTACH: libc::c_int = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let program = device_filter(rules);
    let load = LoadAttributes {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 10],
    };
    // SAFETY: the attributes have the layout of the kernel's interface; they,
    // the program and the license outlive the call, which only reads them.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const load,
            size_of_val(&load),
        )
    };
    check(loaded)?;
    let loaded = i32::try_from(loaded).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded) };
    let attach = AttachAttributes {
        target: group.as_raw_fd().cast_unsigned(),
        program: loaded.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        // Programs of containers, in the groups below, apply too.
        flags: ALLOW_MULTI,
    };
    // SAFETY: as above; both descriptors are open.
    let attached = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            size_of_val(&attach),
        )
    };
    check(attached)
}

/// What a process becomes before it executes its program.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Open `cgroup.procs` files of the cgroups that it joins.
    pub(crate) cgroups: Vec<File>,
    /// User id.
    pub(crate) uid: u32,
    /// Group id; supplementary groups are dropped.
    pub(crate) gid: u32,
    /// Numbers of the capabilities that a user other than root keeps.
    pub(crate) capabilities: Vec<u8>,
}

/// Makes `command` start as `identity`, in a session of its own.
pub(crate) fn become_on_exec(command: &mut Command, identity: Identity) {
    let become_it = move || {
        for cgroup in &identity.cgroups {
            // SAFETY: the file is open, the buffer is one byte of a constant.
            check(unsafe { libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) as i64 })?;
        }
        drop_rights(&identity)
    };
    // SAFETY: the closure only makes system calls on memory that exists before
    // the fork: no allocation, no lock. `check` builds errors from errno alone.
    unsafe { command.pre_exec(become_it) };
}

fn drop_rights(identity: &Identity) -> io::Result<()> {
    // SAFETY: plain calls; the pointers are to locals that outlive them or null
    // with length 0. The raw calls change this thread alone, the only one
    // after a fork.
    unsafe {
        check(libc::setsid().into())?;
        check(libc::syscall(
            libc::SYS_setgroups,
            0,
            std::ptr::null::<libc::gid_t>(),
        ))?;
        let keep = identity.uid != 0 && !identity.capabilities.is_empty();
        if keep {
            check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        }
        let (uid, gid) = (identity.uid, identity.gid);
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        if uid == 0 {
            return Ok(());
        }
        if keep {
            set_capabilities(&identity.capabilities)?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
    }
    Ok(())
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 capabilities.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

fn set_capabilities(capabilities: &[u8]) -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut data = [CapabilityData {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    for &capability in capabilities {
        let word = &mut data[usize::from(capability / 32) & 1];
        let bit = 1 << (capability % 32);
        word.effective |= bit;
        word.permitted |= bit;
        word.inheritable |= bit;
    }
    // SAFETY: header and data have the layout of the kernel's interface,
    // version 3, and outlive the calls.
    unsafe {
        check(libc::syscall(
            libc::SYS_capset,
            &raw const header,
            data.as_ptr(),
        ))?;
        for &capability in capabilities {
            let capability = libc::c_ulong::from(capability);
            check(
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE,
                    capability,
                    0,
                    0,
                )
                .into(),
            )?;
        }
    }
    Ok(())
}

fn check(result: i64) -> io::Result<()> {
    if result >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Number of a capability by name, of those that services use.
pub(crate) fn capability(name: &str) -> Option<u8> {
    Some(match name {
        "CAP_CHOWN" => 0,
        "CAP_DAC_OVERRIDE" => 1,
        "CAP_DAC_READ_SEARCH" => 2,
        "CAP_KILL" => 5,
        "CAP_NET_BIND_SERVICE" => 10,
        "CAP_NET_ADMIN" => 12,
        "CAP_NET_RAW" => 13,
        "CAP_SYS_NICE" => 23,
        "CAP_SYS_RESOURCE" => 24,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Device;

    /// Runs a program as the kernel does. The answer is `r0`.
    fn run(program: &[Instruction], context: [u32; 3]) -> u64 {
        let mut registers = [0_u64; 11];
        let mut next = 0;
        for _ in 0..program.len() {
            let Instruction {
                code,
                registers: both,
                offset,
                immediate,
            } = program[next];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let value = immediate.cast_unsigned().into();
            let mut skip = 0;
            match code {
                0x61 => registers[to] = context[usize::try_from(offset / 4).unwrap()].into(),
                0xbf => registers[to] = registers[from],
                0xb7 => registers[to] = value,
                0x54 => registers[to] &= value,
                0x74 => registers[to] >>= value,
                0x55 if registers[to] != value => skip = offset,
                0x15 if registers[to] == value => skip = offset,
                0x55 | 0x15 => {}
                0x95 => return registers[0],
                other => panic!("{other:#x}"),
            }
            next += 1 + usize::try_from(skip).unwrap();
        }
        panic!("the program does not end")
    }

    #[test]
    fn a_filter_refuses_what_is_denied_and_nothing_else() {
        let found = |permissions: &str, block, major, minor| Found {
            path: "/dev/x".into(),
            block,
            number: nix::sys::stat::makedev(major, minor),
            wanted: Device {
                path: "/dev/x".into(),
                permissions: permissions.into(),
                mode: 0o600,
                uid: 0,
                gid: 0,
            },
        };
        let devices = [found("rw", false, 1, 5), found("r", true, 259, 1 << 18)];
        let rules: Vec<_> = devices.iter().map(|one| (one, one.denied())).collect();
        let program = device_filter(&rules);
        let (make, read, write) = (1, 2, 4);
        let allowed = |access: u32, kind: u32, major, minor| {
            run(&program, [access << 16 | kind, major, minor]) == 1
        };
        assert!(allowed(read | write, 2, 1, 5));
        assert!(!allowed(make, 2, 1, 5));
        assert!(!allowed(read | make, 2, 1, 5));
        // The same numbers of another type, other numbers.
        assert!(allowed(make, 1, 1, 5) && allowed(make, 2, 1, 3) && allowed(make, 2, 2, 5));
        assert!(allowed(read, 1, 259, 1 << 18));
        assert!(!allowed(write, 1, 259, 1 << 18) && !allowed(read | write, 1, 259, 1 << 18));
    }
}
