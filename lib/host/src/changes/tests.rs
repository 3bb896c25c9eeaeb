use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::mounts::Mount;
use crate::users::Missing;

/// A machine in memory.
#[derive(Debug, Default, Clone)]
struct Fake(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    sysctls: BTreeMap<String, String>,
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
    systemctl: Vec<String>,
    /// Whether the file of configuration was there, each time that it was read.
    reloads: Vec<bool>,
    configuration: PathBuf,
    mounts: Vec<Mount>,
    /// Directories that were made durable, each with how many changes the journal had
    /// undone then.
    synced: Vec<(PathBuf, usize)>,
    journal: PathBuf,
}

impl System for Fake {
    fn sysctl(&self, name: &str) -> Result<String, SysctlError> {
        match self.0.lock().unwrap().sysctls.get(name) {
            Some(value) => Ok(value.clone()),
            // A real error of a parameter that no kernel has.
            None => sysctl::get("no.such.parameter"),
        }
    }

    fn set_sysctl(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        self.0
            .lock()
            .unwrap()
            .sysctls
            .insert(name.into(), value.into());
        Ok(())
    }

    fn missing_user(&self, name: &str, _: u32, _: u32) -> Result<Missing, UserError> {
        let state = self.0.lock().unwrap();
        Ok(Missing {
            user: !state.users.contains_key(name),
            group: !state.groups.contains_key(name),
        })
    }

    fn create_group(&self, name: &str, gid: u32) -> Result<(), UserError> {
        self.0.lock().unwrap().groups.insert(name.into(), gid);
        Ok(())
    }

    fn create_user(&self, name: &str, uid: u32, _: u32) -> Result<(), UserError> {
        self.0.lock().unwrap().users.insert(name.into(), uid);
        Ok(())
    }

    fn uid(&self, name: &str) -> Result<Option<u32>, UserError> {
        Ok(self.0.lock().unwrap().users.get(name).copied())
    }

    fn gid(&self, name: &str) -> Result<Option<u32>, UserError> {
        Ok(self.0.lock().unwrap().groups.get(name).copied())
    }

    fn delete_user(&self, name: &str) -> Result<(), UserError> {
        self.0.lock().unwrap().users.remove(name);
        Ok(())
    }

    fn delete_group(&self, name: &str) -> Result<(), UserError> {
        self.0.lock().unwrap().groups.remove(name);
        Ok(())
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<(), CommandError> {
        self.0.lock().unwrap().systemctl.push(arguments.join(" "));
        Ok(())
    }

    fn reload(&self, _: Daemon) -> Result<(), CommandError> {
        let mut state = self.0.lock().unwrap();
        let there = state.configuration.exists();
        state.reloads.push(there);
        Ok(())
    }

    fn delete_interface(&self, _: &str) -> Result<bool, CommandError> {
        Ok(true)
    }

    fn delete_address(&self, _: &str, _: &str) -> Result<bool, CommandError> {
        Ok(false)
    }

    fn mounts(&self) -> std::io::Result<Vec<Mount>> {
        Ok(self.0.lock().unwrap().mounts.clone())
    }

    fn unmount(&self, path: &Path, keep: bool) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state
            .mounts
            .retain(|m| !m.target.starts_with(path) || (keep && m.target == path));
        Ok(())
    }

    fn sync(&self, directory: &Path) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let journal = std::fs::read_to_string(&state.journal).unwrap_or_default();
        let undone = journal.matches("\"undone\"").count();
        state.synced.push((directory.to_owned(), undone));
        Ok(())
    }
}

struct Bench {
    directory: tempfile::TempDir,
    fake: Fake,
}

impl Bench {
    fn new() -> Self {
        let fake = Fake::default();
        fake.0
            .lock()
            .unwrap()
            .sysctls
            .insert("a.b".into(), "0".into());
        Self {
            directory: tempfile::tempdir().unwrap(),
            fake,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn journal(&self) -> Journal {
        Journal::open_on(
            &self.path("state/host-changes"),
            Box::new(self.fake.clone()),
        )
        .unwrap()
    }

    fn put(&self, name: &str, text: &str) {
        atomic::write(&self.path(name), text.as_bytes(), 0o640).unwrap();
    }

    fn get(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

/// All changes of an installation.
fn install(bench: &Bench) -> Result<(), ChangeError> {
    let mut journal = bench.journal();
    journal.own_tree(&bench.path("state"))?;
    journal.create_service_user("planet", 980, 980)?;
    journal.create_dir(&bench.path("data/app"), 0o700)?;
    journal.write_file(&bench.path("config"), b"ours", 0o600)?;
    journal.write_file(&bench.path("fresh"), b"new", 0o644)?;
    journal.symlink(Path::new("/ours"), &bench.path("link"))?;
    journal.set_sysctl("a.b", "1")?;
    journal.install_unit(&bench.path("gravity.service"), b"[Unit]")
}

#[test]
fn a_host_is_as_before_after_undo() {
    let bench = Bench::new();
    bench.put("config", "theirs");
    install(&bench).unwrap();
    install(&bench).unwrap();
    std::fs::create_dir_all(bench.path("state/etcd/member")).unwrap();
    bench.put("state/etcd/member/wal", "data");
    assert_eq!(bench.get("config"), "ours");
    assert_eq!(bench.fake.sysctl("a.b").unwrap(), "1");
    // The second run has found everything and recorded nothing.
    assert_eq!(bench.journal().changes().count(), 12);

    let report = bench.journal().undo(false);
    assert_eq!(report.left, [], "{report}");
    assert_eq!(bench.get("config"), "theirs");
    assert_eq!(
        bench.path("config").metadata().unwrap().mode() & 0o7777,
        0o640
    );
    let names: Vec<_> = std::fs::read_dir(bench.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["config"]);
    let state = bench.fake.0.lock().unwrap();
    assert_eq!(state.sysctls["a.b"], "0");
    assert!(state.users.is_empty() && state.groups.is_empty());
    assert_eq!(
        state.systemctl,
        ["disable --now gravity.service", "daemon-reload"]
    );
}

#[test]
fn what_a_killed_writer_left_is_removed() {
    let bench = Bench::new();
    install(&bench).unwrap();
    let names = [".config.new", ".fresh.new", ".gravity.service.new"];
    for name in names {
        bench.put(name, "half");
    }
    std::os::unix::fs::symlink("/ours", bench.path(".link.new")).unwrap();
    bench.put(".other.new", "theirs");
    // Killed before it was renamed, too.
    for name in ["fresh", "link"] {
        std::fs::remove_file(bench.path(name)).unwrap();
    }
    let report = bench.journal().undo(false);
    assert_eq!(report.left, [], "{report}");
    let names: Vec<_> = std::fs::read_dir(bench.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, [".other.new"]);
}

#[test]
fn what_others_changed_or_filled_is_left_and_told() {
    let bench = Bench::new();
    bench.put("config", "theirs");
    install(&bench).unwrap();
    bench.put("config", "edited");
    bench.put("data/app/precious", "data");
    bench.fake.set_sysctl("a.b", "2").unwrap();
    std::fs::remove_file(bench.path("link")).unwrap();
    std::os::unix::fs::symlink("/elsewhere", bench.path("link")).unwrap();

    let report = bench.journal().undo(false);
    let left: Vec<&str> = report.left.iter().map(|l| l.why.as_str()).collect();
    assert_eq!(
        left,
        [
            "it is `2` now, we had set `1`; it was `0`",
            "it leads to /elsewhere now",
            "it was changed since",
            "it holds data; `--purge` removes it",
            "it holds data; `--purge` removes it",
        ]
    );
    assert_eq!(bench.get("config"), "edited");
    assert_eq!(bench.get("data/app/precious"), "data");
    assert!(!bench.path("state").exists() && !bench.path("fresh").exists());
}

#[test]
fn purge_removes_data_but_not_that_of_parents() {
    let bench = Bench::new();
    install(&bench).unwrap();
    bench.put("data/app/precious", "data");
    bench.put("data/other", "data");
    let report = bench.journal().undo(true);
    assert!(!bench.path("data/app").exists());
    assert_eq!(bench.get("data/other"), "data");
    assert_eq!(report.left.len(), 1, "{report}");
}

#[test]
fn what_existed_stays() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("data")).unwrap();
    bench.put("fresh", "new");
    std::fs::set_permissions(bench.path("fresh"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink("/ours", bench.path("link")).unwrap();
    bench
        .fake
        .0
        .lock()
        .unwrap()
        .users
        .insert("planet".into(), 980);
    bench
        .fake
        .0
        .lock()
        .unwrap()
        .groups
        .insert("planet".into(), 980);
    install(&bench).unwrap();
    bench.journal().undo(true);
    assert!(bench.path("data").exists() && bench.path("link").is_symlink());
    assert_eq!(bench.get("fresh"), "new");
    assert_eq!(bench.fake.uid("planet").unwrap(), Some(980));

    std::fs::create_dir(bench.path("dir")).unwrap();
    let mut journal = bench.journal();
    let error = journal
        .symlink(Path::new("/x"), &bench.path("dir"))
        .unwrap_err();
    assert!(matches!(error, ChangeError::InTheWay { .. }));
    assert!(journal.write_file(&bench.path("dir"), b"", 0o644).is_err());
    assert!(journal.create_dir(&bench.path("fresh"), 0o755).is_err());
}

#[test]
fn a_link_that_leads_into_our_tree_is_ours() {
    let bench = Bench::new();
    let (target, link) = (bench.path("state/bin/gravity"), bench.path("gravity"));
    symlink(&target, &link).unwrap();
    let mut journal = bench.journal();
    journal.own_tree(&bench.path("state")).unwrap();
    for _ in 0..2 {
        journal.symlink(&target, &link).unwrap();
    }
    assert_eq!(journal.changes().count(), 2);
    let report = journal.undo(false);
    assert_eq!(report.left, [], "{report}");
    assert!(!link.is_symlink());

    // One that we made in place of another is recorded already.
    symlink("/opt/kubectl", &link).unwrap();
    let mut journal = bench.journal();
    journal.own_tree(&bench.path("state")).unwrap();
    for _ in 0..2 {
        journal.symlink(&target, &link).unwrap();
    }
    journal.undo(false);
    assert_eq!(
        std::fs::read_link(&link).unwrap(),
        Path::new("/opt/kubectl")
    );
}

#[test]
fn what_was_made_or_removed_is_on_disk_before_a_journal_says_so() {
    let bench = Bench::new();
    bench.fake.0.lock().unwrap().journal = bench.path("state/host-changes");
    let synced = || std::mem::take(&mut bench.fake.0.lock().unwrap().synced);
    let at = |name: &str, undone: usize| (bench.path(name), undone);
    let mut journal = bench.journal();
    journal.create_dir(&bench.path("data/app"), 0o700).unwrap();
    assert_eq!(
        synced(),
        [at("data", 0), at("", 0), at("data/app", 0), at("data", 0)]
    );
    let file = bench.path("data/app/file");
    journal.write_file(&file, b"ours", 0o644).unwrap();
    let link = bench.path("data/link");
    journal.symlink(Path::new("/ours"), &link).unwrap();
    // Removed by an `undo` that was killed before it was on disk.
    std::fs::remove_file(&link).unwrap();
    let report = journal.undo(false);
    assert_eq!(report.left, [], "{report}");
    assert_eq!(
        synced(),
        [at("data", 0), at("data/app", 1), at("data", 2), at("", 3)]
    );
}

#[test]
fn undo_goes_on_where_it_was_cut_short() {
    let bench = Bench::new();
    bench.put("config", "theirs");
    install(&bench).unwrap();
    bench
        .journal()
        .write_file(&bench.path("config"), b"ours, second", 0o600)
        .unwrap();
    // As if killed after the first steps: the journal is still there, the rest
    // is found undone.
    let kept = std::fs::read(bench.path("state/host-changes")).unwrap();
    bench.journal().undo(false);
    std::fs::create_dir(bench.path("state")).unwrap();
    atomic::write(&bench.path("state/host-changes"), &kept, 0o600).unwrap();
    let report = bench.journal().undo(false);
    assert!(
        report.left.iter().all(|l| l.why == "it was changed since"),
        "{report}"
    );
    assert_eq!(bench.get("config"), "theirs");
    assert!(!bench.path("state").exists());
}

#[test]
fn a_change_recorded_but_not_made_is_made_by_the_next_run() {
    let bench = Bench::new();
    let mut journal = bench.journal();
    journal.set_sysctl("a.b", "1").unwrap();
    // A boot: the parameter is as before.
    bench.fake.set_sysctl("a.b", "0").unwrap();
    journal.set_sysctl("a.b", "1").unwrap();
    assert_eq!(journal.changes().count(), 1);
    assert_eq!(bench.fake.sysctl("a.b").unwrap(), "1");
    bench.fake.set_sysctl("a.b", "0").unwrap();
    let report = journal.undo(false);
    assert_eq!(report, Report::default());
    assert_eq!(report.to_string(), "nothing was to be undone");
}

#[test]
fn nothing_is_removed_on_what_is_mounted() {
    let bench = Bench::new();
    install(&bench).unwrap();
    let line = |at: &str| {
        let at = bench.path(at);
        format!("1 1 8:1 / {} rw - ext4 /dev/sdz1 rw\n", at.display())
    };
    let text = line("state/pods/x") + &line("data/app/disk");
    bench.fake.0.lock().unwrap().mounts = crate::mounts::parse(&text);
    std::fs::create_dir_all(bench.path("data/app/disk")).unwrap();
    let report = bench.journal().undo(true);
    assert!(
        report.left.iter().any(|l| l.what == "filesystem /dev/sdz1"),
        "{report}"
    );
    assert!(
        report
            .left
            .iter()
            .any(|l| l.why.starts_with("something is mounted there")),
        "{report}"
    );
    assert!(bench.path("data/app/disk").exists() && !bench.path("state").exists());
}

#[test]
fn modes_are_restored_unless_somebody_has_changed_them_since() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let mode = |name: &str| root.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    let set = |name: &str, mode| {
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let mut journal = Journal::open_on(&root.join("journal"), Box::new(Fake::default())).unwrap();
    for name in ["ours", "theirs", "same", "gone"] {
        std::fs::create_dir(root.join(name)).unwrap();
        set(name, 0o700);
        let wanted = Attributes {
            mode: if name == "same" { 0o700 } else { 0o750 },
            ..Attributes::of(&root.join(name)).unwrap()
        };
        for _ in 0..2 {
            journal.set_attributes(&root.join(name), wanted).unwrap();
        }
    }
    assert_eq!((mode("ours"), journal.changes().count()), (0o750, 3));
    set("theirs", 0o755);
    std::fs::remove_dir(root.join("gone")).unwrap();
    let report = journal.undo(false);
    assert_eq!((mode("ours"), mode("theirs")), (0o700, 0o755));
    assert_eq!(report.restored.len(), 1, "{report}");
    assert_eq!(report.left.len(), 1, "{report}");
    assert!(report.left[0].what.ends_with("theirs"), "{report}");
}

#[test]
fn one_scope_is_taken_back_without_the_others() {
    let bench = Bench::new();
    let mut journal = bench.journal();
    journal.within(Some("op/one"));
    journal.create_dir(&bench.path("one"), 0o755).unwrap();
    journal.create_dir(&bench.path("full"), 0o755).unwrap();
    bench.put("full/data", "data");
    journal.within(Some("op/two"));
    journal.create_dir(&bench.path("two"), 0o755).unwrap();
    drop(journal);
    // Who made what is on disk.
    let mut journal = bench.journal();
    let report = journal.undo_scope("op/one");
    assert_eq!(report.removed.len(), 1, "{report}");
    assert_eq!(report.left.len(), 1, "{report}");
    assert!(!bench.path("one").exists());
    assert!(bench.path("full/data").exists() && bench.path("two").exists());
    assert_eq!(journal.changes().count(), 2);
    assert!(journal.undo_scope("op/one").removed.is_empty());
}

#[test]
fn a_daemon_reads_its_configuration_when_ours_is_gone() {
    let bench = Bench::new();
    let (file, other) = (bench.path("gravity.conf"), bench.path("other.conf"));
    bench.fake.0.lock().unwrap().configuration = file.clone();
    let mut journal = bench.journal();
    for _ in 0..2 {
        for path in [&file, &other] {
            let written = journal.write_configuration(Daemon::Firewalld, path, b"ours");
            written.unwrap();
        }
        journal.reload(Daemon::Firewalld).unwrap();
    }
    assert_eq!(journal.changes().count(), 3);
    let report = journal.undo(false);
    assert_eq!(report.left, [], "{report}");
    assert_eq!(report.removed.len(), 2, "{report}");
    assert_eq!(bench.fake.0.lock().unwrap().reloads, [true, true, false]);
}

/// A change of each kind.
fn every_change() -> Vec<Change> {
    let attributes = |uid, mode| Attributes {
        uid,
        gid: uid + 1,
        mode,
    };
    vec![
        Change::OwnedTree {
            path: "/var/lib/gravity".into(),
        },
        Change::Directory {
            path: "/srv/data".into(),
            parent: true,
        },
        Change::Attributes {
            path: "/srv/data".into(),
            attributes: attributes(1000, 0o750),
            previous: attributes(0, 0o755),
        },
        Change::File {
            path: "/etc/systemd/system/gravity.service".into(),
            written: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
            previous: Some(Previous {
                content: "b2xkCg==".into(),
                mode: 0o644,
                uid: 3,
                gid: 4,
            }),
        },
        Change::Symlink {
            path: "/usr/local/bin/kubectl".into(),
            target: "/var/lib/gravity/bin/gravity".into(),
            previous: Some("/opt/kubectl".into()),
        },
        Change::Group {
            name: "planet".into(),
            gid: 1000,
        },
        Change::User {
            name: "planet".into(),
            uid: 1000,
        },
        Change::Sysctl {
            name: "net.ipv4.ip_forward".into(),
            value: "1".into(),
            previous: "0".into(),
        },
        Change::Module {
            name: "overlay".into(),
        },
        Change::Unit {
            name: "gravity.service".into(),
        },
        Change::UnitEnabled {
            name: "gravity.service".into(),
        },
        Change::Configuration {
            daemon: Daemon::NetworkManager,
        },
        Change::Configuration {
            daemon: Daemon::Firewalld,
        },
        Change::Mount {
            target: "/run/planet".into(),
        },
        Change::Interface {
            name: "flannel.1".into(),
        },
        Change::Address {
            interface: "lo".into(),
            address: "169.254.20.10/32".into(),
        },
        Change::Cgroup {
            path: "/sys/fs/cgroup/gravity".into(),
        },
    ]
}

/// A journal of [`every_change`] as version 6.0.0 wrote it, the first of them without
/// a scope, and a last one that was undone. It must be readable for ever.
const VERSION_1: &str = include_str!("../../fixtures/host-changes-1");

#[test]
fn a_journal_of_version_1_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("host-changes");
    atomic::write(&path, VERSION_1.as_bytes(), 0o600).unwrap();
    assert_eq!(Journal::read(&path).unwrap(), every_change());
    let journal = Journal::open_on(&path, Box::new(Fake::default())).unwrap();
    let scopes: Vec<_> = journal
        .live
        .iter()
        .map(|live| live.scope.as_deref())
        .collect();
    assert_eq!(scopes[..2], [None, Some("5f6a/bootstrap")]);
    assert_eq!(journal.next, every_change().len() as u64 + 2);
}
