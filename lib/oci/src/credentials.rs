//! Credentials for registries: `auth.json` and `config.json`.
//!
//! In: the files that `podman login`, `skopeo login` and `docker login` write.
//! Out: user and password for a repository, which files were looked at, and
//! those files with a login more or less.
//! Passwords are never part of a message.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::environment;

const MAX_SIZE: u64 = 1 << 20;

/// All that is known.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Files that were looked for, with what came of it.
    files: Vec<(PathBuf, File)>,
}

#[derive(Debug, Clone)]
enum File {
    Missing,
    Unusable(String),
    Read(Document),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry")
    }
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Name of the user.
    pub user: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads `REGISTRY_AUTH_FILE`, or else what there is of
    /// `containers/auth.json` in the runtime and the configuration directory
    /// and Docker's `config.json`. A file that can't be read counts as one
    /// without entries; what is said of refused access tells it.
    pub fn from_environment() -> Self {
        Self::load(files())
    }

    /// The same with a login for one registry, which counts before all others.
    #[must_use]
    pub fn with(mut self, registry: &str, login: Login) -> Self {
        self.files.splice(0..0, Self::only(registry, login).files);
        self
    }

    /// A login for one registry, and nothing else.
    pub fn only(registry: &str, login: Login) -> Self {
        let entry = Entry {
            auth: Some(encode(&login)),
            ..Entry::default()
        };
        let document = Document {
            auths: [(registry.to_owned(), entry)].into(),
            ..Document::default()
        };
        Self {
            files: vec![("the given login".into(), File::Read(document))],
        }
    }

    /// Reads these files; the first with an entry that fits counts.
    pub fn load(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let files = files.into_iter().map(|path| {
            let file = read(&path);
            (path, file)
        });
        Self {
            files: files.collect(),
        }
    }

    /// User and password for a repository, from the entry that fits best.
    pub fn login(&self, registry: &str, repository: &str) -> Option<Login> {
        let registry = if registry == "registry-1.docker.io" {
            "docker.io"
        } else {
            registry
        };
        let mut keys = Vec::new();
        let mut name = format!("{registry}/{repository}");
        loop {
            keys.push(name.clone());
            match name.rfind('/') {
                Some(end) => name.truncate(end),
                None => break,
            }
        }
        let documents = self.files.iter().filter_map(|(_, file)| match file {
            File::Read(document) => Some(document),
            _ => None,
        });
        for document in documents {
            for key in &keys {
                let found = document
                    .auths
                    .iter()
                    .find(|(entry, value)| value.auth.is_some() && normal(entry) == key);
                if let Some(login) = found.and_then(|(_, entry)| decode(entry.auth.as_deref()?)) {
                    return Some(login);
                }
            }
        }
        None
    }

    /// Which files were looked at and what they hold for a registry, for a
    /// message after it refused access.
    pub(crate) fn looked_at(&self, registry: &str) -> String {
        let registry = if registry == "registry-1.docker.io" {
            "docker.io"
        } else {
            registry
        };
        let of = |document: &Document| {
            let for_registry = |key: &String| {
                normal(key) == registry || normal(key).starts_with(&format!("{registry}/"))
            };
            let entry = document.auths.iter().find(|(key, _)| for_registry(key));
            match entry {
                Some((
                    _,
                    Entry {
                        auth: Some(auth), ..
                    },
                )) if decode(auth).is_some() => "has a login for it",
                Some((
                    _,
                    Entry {
                        identitytoken: Some(_),
                        ..
                    },
                )) => "has an identity token for it, which is not supported",
                Some((_, Entry { auth: Some(_), .. })) => "has a malformed entry for it",
                _ if document.cred_helpers.keys().any(for_registry)
                    || document.creds_store.is_some() =>
                {
                    "names a credential helper, which is not supported"
                }
                _ => "has no entry for it",
            }
            .to_owned()
        };
        let files: Vec<String> = self
            .files
            .iter()
            .map(|(path, file)| {
                let what = match file {
                    File::Missing => "is not there".to_owned(),
                    File::Unusable(reason) => format!("can't be used ({reason})"),
                    File::Read(document) => of(document),
                };
                format!("{} {what}", path.display())
            })
            .collect();
        match files.is_empty() {
            true => "no credentials file was looked at, as HOME is not set".into(),
            false => files.join("; "),
        }
    }
}

/// Why a login can't be kept or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// There is no place for it.
    #[error("there is no directory to keep logins in: set HOME or REGISTRY_AUTH_FILE")]
    NoHome,
    /// The file is not what it must be.
    #[error("{}: {reason}: repair or remove it", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Keeps a login where other container tools look for it first; returns the
/// file. All else in it stays.
///
/// # Errors
/// When the file is malformed or can't be written.
pub fn save(registry: &str, login: &Login) -> Result<PathBuf, SaveError> {
    let path = files().into_iter().next().ok_or(SaveError::NoHome)?;
    save_in(&path, registry, login)?;
    Ok(path)
}

fn save_in(path: &Path, registry: &str, login: &Login) -> Result<(), SaveError> {
    let mut document = document(path)?.unwrap_or_else(|| Value::Object(Map::new()));
    let auths = document
        .as_object_mut()
        .map(|all| {
            all.entry("auths")
                .or_insert_with(|| Value::Object(Map::new()))
        })
        .and_then(Value::as_object_mut)
        .ok_or_else(|| SaveError::Malformed {
            path: path.to_owned(),
            reason: "it has no object `auths`".into(),
        })?;
    auths.retain(|key, _| normal(key) != normal(registry));
    auths.insert(
        registry.into(),
        serde_json::json!({ "auth": encode(login) }),
    );
    write(path, &document)
}

/// Removes the logins for a registry; returns the files that had one.
///
/// # Errors
/// When a file is malformed or can't be written.
pub fn forget(registry: &str) -> Result<Vec<PathBuf>, SaveError> {
    let mut had = Vec::new();
    for path in files() {
        if forget_in(&path, registry)? {
            had.push(path);
        }
    }
    Ok(had)
}

fn forget_in(path: &Path, registry: &str) -> Result<bool, SaveError> {
    let Some(mut document) = document(path)? else {
        return Ok(false);
    };
    let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) else {
        return Ok(false);
    };
    let before = auths.len();
    auths.retain(|key, _| normal(key) != normal(registry));
    if auths.len() == before {
        return Ok(false);
    }
    write(path, &document).map(|()| true)
}

/// Files with credentials, in the order in which they count.
fn files() -> Vec<PathBuf> {
    if let Some(path) = environment::path("REGISTRY_AUTH_FILE") {
        return vec![path];
    }
    let docker = environment::path("DOCKER_CONFIG")
        .or_else(|| environment::path("HOME").map(|home| home.join(".docker")));
    let files = [
        environment::path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        environment::config_dir().map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ];
    files.into_iter().flatten().collect()
}

/// The whole file; nothing when there is none.
fn document(path: &Path) -> Result<Option<Value>, SaveError> {
    parse(path).map_err(|reason| SaveError::Malformed {
        path: path.to_owned(),
        reason,
    })
}

/// What a file holds, an empty one nothing; `None` where there is no file.
fn parse<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let bytes = match host::bounded::bytes(path, MAX_SIZE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let text: &[u8] = match bytes.as_slice() {
        [] => b"{}",
        text => text,
    };
    // What serde tells may quote a secret: the place alone.
    serde_json::from_slice(text).map(Some).map_err(|error| {
        format!(
            "malformed at line {} column {}",
            error.line(),
            error.column()
        )
    })
}

fn write(path: &Path, document: &Value) -> Result<(), SaveError> {
    let failed = |source| SaveError::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed)?;
    }
    let text = serde_json::to_vec_pretty(document)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    host::atomic::write(path, &text, 0o600).map_err(|error| failed(error.source))
}

fn encode(login: &Login) -> String {
    let text = format!("{}:{}", login.user, login.password);
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn read(path: &Path) -> File {
    match parse(path) {
        Ok(Some(document)) => File::Read(document),
        Ok(None) => File::Missing,
        Err(reason) => File::Unusable(reason),
    }
}

/// A key without scheme and the paths that Docker puts behind it.
fn normal(key: &str) -> &str {
    let key = key
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    if key == "index.docker.io" {
        "docker.io"
    } else {
        key
    }
}

fn decode(auth: &str) -> Option<Login> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(auth.trim())
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.trim_end_matches('\0').split_once(':')?;
    (!user.is_empty()).then(|| Login {
        user: user.into(),
        password: password.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[test]
    fn the_entry_that_fits_best_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        let text = serde_json::json!({
            "auths": {
                "quay.io": {"auth": encoded("all:one")},
                "quay.io/team": {"auth": encoded("team:t:wo")},
                "https://index.docker.io/v1/": {"auth": encoded("hub:three")},
                "bad.io": {"auth": "!"},
                "token.io": {"identitytoken": "secret"},
            },
            "credHelpers": {"helper.io": "x"},
        });
        host::atomic::write(&path, text.to_string().as_bytes(), 0o600).unwrap();
        let all = Credentials::load([dir.path().join("none"), path]);
        let user = |registry, repository| all.login(registry, repository).map(|login| login.user);
        assert_eq!(user("quay.io", "team/app").as_deref(), Some("team"));
        assert_eq!(all.login("quay.io", "team/app").unwrap().password, "t:wo");
        assert_eq!(user("quay.io", "teams/app").as_deref(), Some("all"));
        assert_eq!(
            user("registry-1.docker.io", "library/nginx").as_deref(),
            Some("hub")
        );
        assert_eq!(user("bad.io", "x"), None);
        assert_eq!(user("other.io", "x"), None);
        for (registry, what) in [
            ("quay.io", "has a login"),
            ("bad.io", "malformed"),
            ("token.io", "identity token"),
            ("helper.io", "credential helper"),
            ("other.io", "no entry"),
        ] {
            let said = all.looked_at(registry);
            assert!(
                said.contains("none is not there") && said.contains(what),
                "{said}"
            );
        }
        assert!(!format!("{all:?}").contains(&encoded("all:one")));
    }

    #[test]
    fn a_malformed_file_does_not_tell_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        host::atomic::write(&path, br#"{"auths": "secret"}"#, 0o600).unwrap();
        let said = Credentials::load([path]).looked_at("quay.io");
        assert!(
            said.contains("malformed at line 1") && !said.contains("secret"),
            "{said}"
        );
    }

    #[test]
    fn a_login_is_kept_beside_the_others_and_forgotten() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/auth.json");
        let login = Login {
            user: "me".into(),
            password: "p:w".into(),
        };
        save_in(&path, "a.io", &login).unwrap();
        save_in(&path, "b.io:5000", &login).unwrap();
        save_in(
            &path,
            "a.io",
            &Login {
                user: "you".into(),
                ..login.clone()
            },
        )
        .unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let all = Credentials::load([path.clone()]);
        assert_eq!(all.login("a.io", "x").unwrap().user, "you");
        assert_eq!(all.login("b.io:5000", "x"), Some(login.clone()));
        assert!(forget_in(&path, "https://a.io/").unwrap());
        assert!(!forget_in(&path, "a.io").unwrap());
        assert!(!forget_in(&dir.path().join("none"), "a.io").unwrap());
        let all = Credentials::load([path.clone()]);
        assert!(all.login("a.io", "x").is_none() && all.login("b.io:5000", "x").is_some());
        host::atomic::write(&path, b"{\"auths\": \"secret\"}", 0o600).unwrap();
        let error = save_in(&path, "a.io", &login).unwrap_err().to_string();
        assert!(
            error.contains("no object `auths`") && !error.contains("secret"),
            "{error}"
        );
        assert_eq!(
            Credentials::only("c.io", login.clone()).login("c.io", "x"),
            Some(login)
        );
    }
}
