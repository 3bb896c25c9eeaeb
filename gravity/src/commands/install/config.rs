//! The file of `--config`: resources that a user gives to an install.
//!
//! In: YAML. Out: what Kubernetes gets at the end of the install, and what resources of
//! Gravity say of the cluster. Always holds: nothing was changed when a file is refused.

use std::path::{Path, PathBuf};

use cluster::is_of_gravity;
use installer::settings::Settings;
use serde_json::Value;

/// What the file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// All of it.
    pub(super) text: String,
    /// What resources of Gravity say.
    pub(super) settings: Settings,
    /// Resources of Kubernetes, each its kind and name.
    pub(super) objects: Vec<String>,
}

/// The file of `--config` can't be used.
#[derive(Debug, thiserror::Error)]
#[error("--config {}: {reason}", path.display())]
pub(crate) struct WrongConfig {
    path: PathBuf,
    reason: String,
}

impl Config {
    /// Reads and checks the file.
    pub(super) fn read(path: &Path) -> Result<Self, WrongConfig> {
        read(path).map_err(|reason| WrongConfig {
            path: path.to_owned(),
            reason,
        })
    }
}

fn read(path: &Path) -> Result<Config, String> {
    let text = host::bounded::string(path, manifest::MAX_SIZE as u64);
    let mut config = Config {
        text: text.map_err(|error| error.to_string())?,
        ..Config::default()
    };
    let documents = cluster::documents(&config.text).map_err(|error| error.to_string())?;
    if documents.is_empty() {
        return Err("it holds no resources".into());
    }
    for (index, document) in documents.iter().enumerate() {
        let field = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, name) = (
            field(&document["kind"]),
            field(&document["metadata"]["name"]),
        );
        let known = format!("its resource {} ({kind} {name:?})", index + 1);
        if is_of_gravity(document) {
            let added = config.settings.add(document);
            added.map_err(|reason| format!("{known} {reason}"))?;
            continue;
        }
        for (key, value) in [
            ("apiVersion", &field(&document["apiVersion"])),
            ("kind", &kind),
            ("metadata.name", &name),
        ] {
            if value.is_empty() {
                return Err(format!("{known} has no {key}"));
            }
        }
        config.objects.push(format!("{kind} {name}"));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_resources_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let read = |text: &str| {
            host::atomic::write(&path, text.as_bytes(), 0o600).unwrap();
            Config::read(&path).map_err(|error| error.to_string())
        };
        let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
        let settings = "kind: RuntimeEnvironment\nversion: v1\nspec: {data: {A: b}}\n";
        let config = read(&format!("{object}---\n{settings}---\n{object}")).unwrap();
        assert_eq!(config.objects, ["ConfigMap a", "ConfigMap a"]);
        assert_eq!(config.settings.services.environment["A"], "b");
        assert_eq!(read(settings).unwrap().objects, [""; 0]);

        let wrong = |text: &str| read(text).unwrap_err();
        assert!(wrong("").ends_with("it holds no resources"));
        assert!(wrong("a: [").contains("config.yaml"));
        let user = "kind: user\nversion: v2\nmetadata: {name: alice}\n";
        assert!(
            wrong(&format!("{object}---\n{user}"))
                .contains("2 (user \"alice\") is of a kind of Gravity")
        );
        assert!(wrong("kind: Pod\napiVersion: v1\n").contains("no metadata.name"));
        assert!(wrong("kind: Pod\n").contains("no apiVersion"));
        assert!(Config::read(&path.join("x")).is_err());
    }
}
