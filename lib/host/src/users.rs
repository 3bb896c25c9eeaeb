//! Users and groups.
//!
//! In: `/etc/passwd` and `/etc/group`, and `getent` for what comes from
//! elsewhere (LDAP); never libc's `getpwnam`, which a static program can't use.
//! Out: users and groups; new ones by the host's own `useradd`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::bounded;
use crate::command::{Cmd, CommandError, installed};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Id.
    pub gid: u32,
}

/// Why a user or group can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// A name that `useradd` would take for an option, or not take.
    #[error("`{0}` is not a name for a user; use lower-case letters, digits, `-` and `_`")]
    Name(String),
    /// The name belongs to another id.
    #[error(
        "{kind} `{name}` exists with id {found}, expected {expected}; choose another name or id"
    )]
    OtherId {
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The id it has.
        found: u32,
        /// The id that was asked for.
        expected: u32,
    },
    /// The id belongs to another name.
    #[error("id {id} belongs to {kind} `{found}`, wanted for `{name}`; choose another id")]
    IdTaken {
        /// `user` or `group`.
        kind: &'static str,
        /// The id.
        id: u32,
        /// Whose it is.
        found: String,
        /// The name that was asked for.
        name: String,
    },
    /// The host can't make users.
    #[error(
        "create user `{0}`: `useradd` and `groupadd` are not installed; install the package \
         passwd (Debian) or shadow-utils (Red Hat), or create the user by hand"
    )]
    NoTools(String),
    /// `/etc/passwd` or `/etc/group` can't be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A tool failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Users in the text of a `passwd`. Lines that are none are left out.
pub(crate) fn parse_passwd(text: &str) -> Vec<User> {
    let user = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields.as_slice() else {
            return None;
        };
        Some(User {
            name: (*name).to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.into(),
            shell: shell.into(),
        })
    };
    text.lines().filter_map(user).collect()
}

/// Groups in the text of a `group`. Lines that are none are left out.
fn parse_group(text: &str) -> Vec<Group> {
    let group = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid })
    };
    text.lines().filter_map(group).collect()
}

/// What the host knows of users. `key` is a name or an id.
trait Database {
    fn user(&self, key: &str) -> Result<Option<User>, UserError>;
    fn group(&self, key: &str) -> Result<Option<Group>, UserError>;
}

struct Host;

impl Database for Host {
    fn user(&self, key: &str) -> Result<Option<User>, UserError> {
        look_up("passwd", key, parse_passwd, |user| {
            user.name == key || is_id(key, user.uid)
        })
    }

    fn group(&self, key: &str) -> Result<Option<Group>, UserError> {
        look_up("group", key, parse_group, |group| {
            group.name == key || is_id(key, group.gid)
        })
    }
}

fn is_id(key: &str, id: u32) -> bool {
    key.parse() == Ok(id)
}

fn look_up<T>(
    database: &str,
    key: &str,
    parse: fn(&str) -> Vec<T>,
    matches: impl Fn(&T) -> bool,
) -> Result<Option<T>, UserError> {
    let path = Path::new("/etc").join(database);
    let text = match bounded::text(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(source) => return Err(UserError::Read { path, source }),
    };
    if let Some(found) = parse(&text).into_iter().find(&matches) {
        return Ok(Some(found));
    }
    if !installed("getent") {
        return Ok(None);
    }
    // It fails with 2 where there is none; other failures are a directory
    // service that is away, which isn't ours to mend.
    match Cmd::new("getent").args([database, key]).run() {
        Ok(output) => Ok(parse(&output.stdout).into_iter().find(matches)),
        Err(_) => Ok(None),
    }
}

/// The user of this name.
///
/// # Errors
/// When `/etc/passwd` can't be read.
pub fn user_by_name(name: &str) -> Result<Option<User>, UserError> {
    Ok(Host.user(name)?.filter(|user| user.name == name))
}

/// The user of this id.
///
/// # Errors
/// When `/etc/passwd` can't be read.
pub fn user_by_id(uid: u32) -> Result<Option<User>, UserError> {
    Ok(Host.user(&uid.to_string())?.filter(|user| user.uid == uid))
}

/// The group of this name.
///
/// # Errors
/// When `/etc/group` can't be read.
pub(crate) fn group_by_name(name: &str) -> Result<Option<Group>, UserError> {
    Ok(Host.group(name)?.filter(|group| group.name == name))
}

/// What of a service user is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The group has to be made.
    pub group: bool,
    /// The user has to be made.
    pub user: bool,
}

/// Finds out what of a service user is missing, and whether it can be had.
///
/// # Errors
/// When name or id belong to others.
pub fn missing(name: &str, uid: u32, gid: u32) -> Result<Missing, UserError> {
    missing_in(&Host, name, uid, gid)
}

fn missing_in(
    database: &dyn Database,
    name: &str,
    uid: u32,
    gid: u32,
) -> Result<Missing, UserError> {
    let other = |kind, found, expected| UserError::OtherId {
        kind,
        name: name.into(),
        found,
        expected,
    };
    let taken = |kind, id, found| UserError::IdTaken {
        kind,
        id,
        found,
        name: name.into(),
    };
    let user = database.user(name)?;
    if let Some(user) = &user {
        if user.uid != uid {
            return Err(other("user", user.uid, uid));
        }
        if user.gid != gid {
            return Err(other("group of user", user.gid, gid));
        }
    } else if let Some(owner) = database.user(&uid.to_string())? {
        return Err(taken("user", uid, owner.name));
    }
    // Names that exist may be any.
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let rest = |c: char| first(c) || c.is_ascii_digit() || c == '-';
    let good = name.len() <= 32 && name.starts_with(first) && name.chars().all(rest);
    if user.is_none() && !good {
        return Err(UserError::Name(name.to_owned()));
    }
    // An existing user may have a primary group of any name, or of none.
    if user.is_some() {
        return Ok(Missing {
            group: false,
            user: false,
        });
    }
    let group = database.group(&gid.to_string())?;
    match &group {
        Some(group) if group.name != name => {
            return Err(taken("group", gid, group.name.clone()));
        }
        None => {
            if let Some(group) = database.group(name)? {
                return Err(other("group", group.gid, gid));
            }
        }
        Some(_) => {}
    }
    Ok(Missing {
        group: group.is_none(),
        user: true,
    })
}

/// Whether somebody can log in as this user: its shell is none of those that
/// refuse.
pub(crate) fn can_log_in(user: &User) -> bool {
    let refuses = ["nologin", "false", "sync", "shutdown", "halt"];
    let name = user.shell.file_name().unwrap_or_default();
    // An empty field means /bin/sh.
    !refuses.iter().any(|shell| name == *shell)
}

/// Finds out, without a change, whether a service user is there or can be made.
///
/// # Errors
/// When name or id belong to others, or the host can't make users.
pub fn check_service_user(name: &str, uid: u32, gid: u32) -> Result<Missing, UserError> {
    let missing = missing(name, uid, gid)?;
    let tools = [(missing.group, "groupadd"), (missing.user, "useradd")];
    match tools
        .iter()
        .any(|(needed, tool)| *needed && !installed(tool))
    {
        true => Err(UserError::NoTools(name.to_owned())),
        false => Ok(missing),
    }
}

/// Makes a group by `groupadd`.
///
/// # Errors
/// When there is no such program or it fails.
pub(crate) fn create_group(name: &str, gid: u32) -> Result<(), UserError> {
    Cmd::new("groupadd")
        .args(["--gid", &gid.to_string(), "--", name])
        .describe(format!("create group `{name}`"))
        .run()
        .map(drop)
        .map_err(|error| no_tools(error, name))
}

/// Makes a user without home, password and login by `useradd`.
///
/// # Errors
/// When there is no such program or it fails.
pub(crate) fn create_user(name: &str, uid: u32, gid: u32) -> Result<(), UserError> {
    let shell = ["/usr/sbin/nologin", "/sbin/nologin"]
        .into_iter()
        .find(|shell| Path::new(shell).exists())
        .unwrap_or("/bin/false");
    Cmd::new("useradd")
        // A system user gets no range of subordinate ids and no password age.
        .args([
            "--system",
            "--no-create-home",
            "--no-log-init",
            "--home-dir",
            "/nonexistent",
        ])
        .args(["--shell", shell, "--comment", "Gravity service user"])
        .args([
            "--uid",
            &uid.to_string(),
            "--gid",
            &gid.to_string(),
            "--",
            name,
        ])
        .describe(format!("create user `{name}`"))
        .run()
        .map(drop)
        .map_err(|error| no_tools(error, name))
}

fn no_tools(error: CommandError, name: &str) -> UserError {
    match error {
        CommandError::NotInstalled { .. } => UserError::NoTools(name.to_owned()),
        error => UserError::Command(error),
    }
}

/// Removes a user by `userdel`; a missing one is fine.
///
/// # Errors
/// When a process still runs as that user.
pub(crate) fn delete_user(name: &str) -> Result<(), UserError> {
    if user_by_name(name)?.is_some() {
        Cmd::new("userdel")
            .args(["--", name])
            .describe(format!("remove user `{name}`"))
            .run()?;
    }
    Ok(())
}

/// Removes a group by `groupdel`; a missing one is fine (`userdel` may have
/// taken it along).
///
/// # Errors
/// When it is somebody's primary group.
pub(crate) fn delete_group(name: &str) -> Result<(), UserError> {
    if group_by_name(name)?.is_some() {
        Cmd::new("groupdel")
            .args(["--", name])
            .describe(format!("remove group `{name}`"))
            .run()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\nbad:x:y:0:::\nshort:x:1\nalice:x:1000:1000:A,,:/home/alice:/bin/sh\nbob:x:1001:100::/:/bin/sh\nJ.Doe:x:1002:4000::/:/usr/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nalice:x:1000:\nusers:x:100:a,b\nlonely:x:77:\n#\n";

    impl Database for Fake {
        fn user(&self, key: &str) -> Result<Option<User>, UserError> {
            let users = parse_passwd(PASSWD).into_iter();
            Ok(users
                .into_iter()
                .find(|u| u.name == key || is_id(key, u.uid)))
        }

        fn group(&self, key: &str) -> Result<Option<Group>, UserError> {
            Ok(parse_group(GROUP)
                .into_iter()
                .find(|g| g.name == key || is_id(key, g.gid)))
        }
    }

    #[test]
    fn files_are_read_and_bad_lines_left_out() {
        let users = parse_passwd(PASSWD);
        assert_eq!(
            users.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(),
            ["root", "alice", "bob", "J.Doe"]
        );
        assert_eq!(
            users.iter().map(can_log_in).collect::<Vec<_>>(),
            [true, true, true, false]
        );
        assert_eq!(users[1].home, Path::new("/home/alice"));
        assert_eq!(parse_group(GROUP).len(), 4);
        assert_eq!(user_by_name("root").unwrap().unwrap().uid, 0);
        assert_eq!(user_by_id(0).unwrap().unwrap().name, "root");
        assert!(user_by_name("no-such-user").unwrap().is_none());
    }

    #[test]
    fn what_is_missing_is_found_and_conflicts_are_named() {
        let missing = |name, uid, gid| missing_in(&Fake, name, uid, gid);
        assert_eq!(
            missing("planet", 980, 980).unwrap(),
            Missing {
                group: true,
                user: true
            }
        );
        assert_eq!(
            missing("alice", 1000, 1000).unwrap(),
            Missing {
                group: false,
                user: false
            }
        );
        assert_eq!(
            missing("lonely", 77, 77).unwrap(),
            Missing {
                group: false,
                user: true
            }
        );
        assert_eq!(
            missing("bob", 1001, 100).unwrap(),
            Missing {
                group: false,
                user: false
            }
        );
        let error = |name, uid, gid| missing(name, uid, gid).unwrap_err().to_string();
        assert!(error("alice", 5, 5).starts_with("user `alice` exists with id 1000, expected 5"));
        assert!(error("planet", 1000, 980).starts_with("id 1000 belongs to user `alice`"));
        assert!(error("planet", 980, 100).starts_with("id 100 belongs to group `users`"));
        assert!(error("lonely", 78, 78).starts_with("group `lonely` exists with id 77"));
        // A user that exists may have any name, and a group without one.
        let there = missing("J.Doe", 1002, 4000).unwrap();
        assert!(!there.user && !there.group);
        for bad in ["", "-r", "a b", "A", "a:b"] {
            assert!(
                matches!(missing(bad, 1, 1), Err(UserError::Name(_))),
                "{bad}"
            );
        }
    }
}
