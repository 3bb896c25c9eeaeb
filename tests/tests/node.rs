//! The harness itself: nodes come, are apart from the machine, and go without
//! a trace. Needs root, and fails without.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gravity_tests::node::{Node, STATE, Throwaway, usual};
use gravity_tests::process;
use gravity_tests::snapshot::{ALLOWED, Snapshot};
use throwaway::cgroup;

#[expect(clippy::unwrap_used, reason = "a test without its node fails")]
fn create(name: &str) -> Throwaway {
    Throwaway::create(name, &usual(&event::Discard).unwrap()).unwrap()
}

#[test]
fn commands_run_as_on_a_machine_of_their_own() {
    let node = create("harness-exec");
    assert_eq!(node.text(&["hostname"]).unwrap().trim(), "harness-exec");
    assert_eq!(node.text(&["cat", "/proc/1/comm"]).unwrap().trim(), "exe");
    let addresses = node.text(&["ip", "-brief", "address"]).unwrap();
    assert!(addresses.contains(node.address()), "{addresses}");
    assert!(
        node.text(&["ip", "route"])
            .unwrap()
            .lines()
            .all(|line| !line.starts_with("default"))
    );
    let mounts = node.text(&["cat", "/proc/self/mountinfo"]).unwrap();
    for hierarchy in cgroup::hierarchies().unwrap() {
        let path = hierarchy.path.display().to_string();
        assert!(
            mounts
                .lines()
                .any(|line| line.contains(&format!(" / {path} "))),
            "{mounts}"
        );
    }
    // What the node makes, the node can remove: nothing of it is a mount point.
    node.run(&[
        "sh",
        "-ec",
        "mkdir /var/lib/gravity; rmdir /var/lib/gravity",
    ])
    .unwrap();
    node.run(&["mount", "-t", "tmpfs", "none", "/mnt"]).unwrap();
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(" /mnt ")
    );
}

#[test]
fn exit_codes_and_output_come_out() {
    let node = create("harness-code");
    let output = node
        .command(&["sh", "-c", "echo out; echo err >&2; exit 7"])
        .unwrap()
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    let output = node
        .command(&["no-such-program"])
        .unwrap()
        .output()
        .unwrap();
    assert!(!output.status.success());
    let killed = node
        .command(&["sh", "-c", "kill -9 $$"])
        .unwrap()
        .status()
        .unwrap();
    assert_eq!(killed.code(), Some(137));
}

#[test]
fn files_and_directories_are_copied() {
    let node = create("harness-copy");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("inner")).unwrap();
    for name in ["one", "inner/two"] {
        Command::new("sh")
            .args(["-c", "printf text > \"$0\"; chmod 755 \"$0\""])
            .arg(dir.path().join(name))
            .status()
            .unwrap();
    }
    node.copy(&dir.path().join("one"), "/root/single").unwrap();
    node.copy(dir.path(), "/srv/all").unwrap();
    let modes = node
        .text(&["stat", "-c", "%a", "/root/single", "/srv/all/inner/two"])
        .unwrap();
    assert_eq!(modes, "755\n755\n");
    assert_eq!(node.text(&["cat", "/srv/all/one"]).unwrap(), "text");
    assert!(node.copy(Path::new("/no/such/file"), "/root/x").is_err());
}

#[test]
fn nodes_reach_each_other_and_nothing_else() {
    let (first, second) = (create("harness-net-a"), create("harness-net-b"));
    let url = format!("http://{}/", second.address());
    // Refused at once by the other node's kernel: it was reached.
    let other = first
        .command(&["curl", "-sS", "-m", "5", &url])
        .unwrap()
        .output()
        .unwrap();
    assert_eq!(
        other.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&other.stderr)
    );
    assert!(String::from_utf8_lossy(&other.stderr).contains(second.address()));
    let outside = first
        .command(&["ip", "route", "get", "192.0.2.1"])
        .unwrap()
        .output()
        .unwrap();
    assert!(!outside.status.success());
}

#[test]
fn an_untouched_node_has_no_differences_and_a_touched_one_has_each() {
    let node = create("harness-diff");
    let before = Snapshot::take(&node).unwrap();
    let again = Snapshot::take(&node).unwrap();
    assert_eq!(before.differences(&again, ALLOWED), Vec::<String>::new());
    node.run(&[
        "sh",
        "-ec",
        "useradd guest
         echo more >> /etc/hosts
         mkdir -p /var/lib/gravity
         mount -t tmpfs none /mnt
         ip link add extra type bridge
         nft add table ip extra
         iptables -w -t nat -N EXTRA
         sysctl -q -w net.ipv4.ip_forward=1
         mkdir /sys/fs/cgroup/pids/kubepods || mkdir /sys/fs/cgroup/kubepods
         sleep 100 >/dev/null 2>&1 &",
    ])
    .unwrap();
    let after = Snapshot::take(&node).unwrap();
    let found = before.differences(&after, ALLOWED).join("\n");
    for expected in [
        "users: new guest",
        "files: changed /etc/hosts",
        "files: new /var/lib/gravity directory",
        "mounts: new /mnt tmpfs",
        "interfaces: new extra",
        "nftables: new table ip extra",
        "iptables: new iptables-save nat: :EXTRA",
        "sysctls: changed net.ipv4.ip_forward: 0 -> 1",
        "processes: new sleep 100",
        "kubepods",
    ] {
        assert!(
            found.contains(expected),
            "{expected} is missing in:\n{found}"
        );
    }
}

#[test]
fn delete_leaves_nothing() {
    let node = create("harness-gone");
    let pid = node.pid().unwrap();
    node.run(&[
        "sh",
        "-ec",
        "mkdir -p /sys/fs/cgroup/pids/kubepods/pod1 || mkdir -p /sys/fs/cgroup/kubepods/pod1
         (trap '' TERM; sleep 1000) >/dev/null 2>&1 &",
    ])
    .unwrap();
    assert!(Node::create("harness-gone", &usual(&event::Discard).unwrap()).is_err());
    assert!(node.is_running());
    node.freeze(true).unwrap();
    drop(node);
    assert!(Node::open("harness-gone").is_err());
    assert!(!Path::new(STATE).join("harness-gone.json").exists());
    assert!(
        !gravity_tests::file::cache()
            .unwrap()
            .join("nodes/harness-gone")
            .exists()
    );
    for hierarchy in cgroup::hierarchies().unwrap() {
        assert!(!hierarchy.group("harness-gone").exists());
    }
    let loops = || {
        let all = fs::read_dir("/sys/block").unwrap().flatten();
        let backing =
            all.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
        backing
            .filter(|path| path.contains("nodes/harness-gone/"))
            .count()
    };
    assert!(process::wait_until(Duration::from_secs(10), || loops() == 0));
    let links = Command::new("ip")
        .args(["-n", "gravtest", "link"])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains(&format!("v{pid}@")));
}
