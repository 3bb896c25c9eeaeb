//! What needs root, in mount namespaces of the tests' own: nothing is seen of
//! it outside. Without root these tests say that they skip.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests: a skip must say why, and what fails must fail"
)]

use std::path::Path;

use gravity_host::changes::Journal;
use gravity_host::{mounts, users};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Gives this thread, and what it starts, a mount namespace of its own.
fn isolated() -> bool {
    if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNS).is_err() {
        println!("skipped: needs root and mount namespaces");
        return false;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    true
}

fn tmpfs(path: &Path) {
    std::fs::create_dir_all(path).unwrap();
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
}

#[test]
fn mounts_below_a_path_go_busy_ones_too() {
    if !isolated() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a b");
    tmpfs(&root);
    tmpfs(&root.join("x"));
    tmpfs(&root.join("x/y"));
    let _busy = std::fs::File::create(root.join("x/y/open")).unwrap();
    assert_eq!(mounts::below(&mounts::list().unwrap(), &root).len(), 3);
    mounts::unmount_below(&root, true).unwrap();
    assert_eq!(mounts::below(&mounts::list().unwrap(), &root).len(), 1);
    mounts::unmount_below(&root, false).unwrap();
    assert!(mounts::below(&mounts::list().unwrap(), &root).is_empty());
}

#[test]
fn a_service_user_comes_and_goes() {
    if !isolated() {
        return;
    }
    if !gravity_host::command::installed("useradd") {
        println!("skipped: no useradd");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    tmpfs(directory.path());
    for name in ["upper", "work"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    let at = directory.path().display();
    let options = format!("lowerdir=/etc,upperdir={at}/upper,workdir={at}/work");
    let overlay = mount(
        Some("etc"),
        "/etc",
        Some("overlay"),
        MsFlags::empty(),
        Some(&*options),
    );
    if let Err(error) = overlay {
        println!("skipped: no overlay over /etc: {error}");
        return;
    }
    let read = || {
        ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"]
            .map(|name| std::fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default())
    };
    let before = read();
    let mut journal = Journal::open(&directory.path().join("changes")).unwrap();
    for _ in 0..2 {
        journal
            .create_service_user("gravity-test", 61234, 61235)
            .unwrap();
    }
    let user = users::user_by_name("gravity-test").unwrap().unwrap();
    assert_eq!((user.uid, user.gid), (61234, 61235));
    let report = journal.undo(false);
    assert!(report.left.is_empty(), "{report}");
    assert_eq!(read(), before);
}
