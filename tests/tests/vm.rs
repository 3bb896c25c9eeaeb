//! The virtual machine itself: it boots, runs commands, and is alone. Needs
//! root; takes a minute, two more when its disk is not in the cache.

use std::time::Duration;

use gravity_tests::vm::{ADDRESS, Disk, Machine, Options, PLUGGED_DISK, SECOND_DISK};

const SHORT: Duration = Duration::from_secs(60);

#[test]
fn commands_run_under_systemd_and_reach_nobody() {
    let disk = Disk::make(&event::Discard).unwrap();
    let second = tempfile::NamedTempFile::new().unwrap();
    second.as_file().set_len(1 << 20).unwrap();
    let second_disk = second.path().to_owned();
    let options = Options {
        memory: 1024,
        ..Options::of_node(second_disk, Duration::from_secs(600))
    };
    let mut machine = Machine::boot(&disk, &options, &event::Discard).unwrap();
    assert_eq!(
        machine.must("cat /proc/1/comm", SHORT).unwrap(),
        "systemd\n"
    );
    assert_eq!(
        machine.must("stat -f -c %T /sys/fs/cgroup", SHORT).unwrap(),
        "cgroup2fs\n"
    );
    let addresses = machine.must("ip -brief -4 address", SHORT).unwrap();
    assert!(addresses.contains(ADDRESS), "{addresses}");
    let size = machine
        .must(&format!("blockdev --getsize64 {SECOND_DISK}"), SHORT)
        .unwrap();
    assert_eq!(size.trim(), "1048576");
    let (code, output) = machine
        .run("echo out; echo err >&2; exit 7", SHORT, &mut |_| {})
        .unwrap();
    assert_eq!((code, output.as_str()), (7, "out\nerr\n"));
    let (code, _) = machine
        .run("curl -sS -m 5 http://10.0.2.2/", SHORT, &mut |_| {})
        .unwrap();
    assert_ne!(code, 0);
    machine.plug_disk(SHORT).unwrap();
    let size = machine
        .must(&format!("blockdev --getsize64 {PLUGGED_DISK}"), SHORT)
        .unwrap();
    assert_eq!(size.trim(), (1u64 << 30).to_string());
}
