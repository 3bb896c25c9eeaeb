//! The versions file: what a base image is made of.
//!
//! In: a YAML file such as `6.0.0.yaml` and the go.mod files that it names.
//! Out: [`Versions`], checked: names are unique, paths are absolute and clean,
//! and every stated version is the one that the component's go.mod requires.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Longest versions file or go.mod that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// What a base image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Versions {
    /// Version of the base image.
    pub(crate) version: String,
    /// Versions of Gravity that the base image fits, a semver range.
    pub(crate) product_versions: String,
    /// Version of the planet's configuration that its planet-init reads.
    pub(crate) planet_config_version: u32,
    /// Such as `linux/amd64`.
    pub(crate) platform: String,
    /// The Debian part of the root filesystem.
    pub(crate) debian: Debian,
    /// The programs that are built from source.
    pub(crate) components: Vec<Component>,
}

/// The Debian part of the root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Debian {
    /// Code name of the release.
    pub(crate) suite: String,
    /// Packages beyond the minimal base.
    pub(crate) packages: Vec<String>,
}

/// Something that is built from one Go module.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Component {
    /// Unique name.
    pub(crate) name: String,
    /// Version with its `v`, which go.mod requires of `requires`.
    pub(crate) version: String,
    /// SPDX expression.
    pub(crate) license: String,
    /// Directory of the Go module, relative to the versions file.
    pub(crate) module: PathBuf,
    /// The Go module that the component is.
    pub(crate) requires: String,
    /// About how long a build takes on two cores with cold caches.
    pub(crate) seconds: u64,
    /// C libraries that are linked in, by their pkg-config names.
    #[serde(default)]
    pub(crate) native: Vec<String>,
    /// The programs of the image.
    pub(crate) builds: Vec<Build>,
    /// Symbolic links: absolute path to target.
    #[serde(default)]
    pub(crate) links: BTreeMap<String, String>,
    /// Programs that are not part of the image.
    #[serde(default)]
    pub(crate) tools: Vec<Build>,
}

/// One run of the Go linker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Build {
    /// Go package, such as `.`.
    pub(crate) package: String,
    /// Absolute path in the image; of a tool only a file name.
    pub(crate) output: String,
    /// Whether C code is part of it.
    #[serde(default)]
    pub(crate) cgo: bool,
    /// Go build tags.
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    /// Flags of the linker, placeholders included; see [`Component::ldflags`].
    #[serde(default)]
    pub(crate) ldflags: String,
}

impl Build {
    /// The last part of [`Build::output`].
    pub(crate) fn file_name(&self) -> &str {
        self.output.rsplit('/').next().unwrap_or(&self.output)
    }
}

impl Component {
    /// The linker flags of `build` with the placeholders filled in.
    pub(crate) fn ldflags(&self, build: &Build) -> String {
        let number = self.version.trim_start_matches('v');
        let mut parts = number.split('.');
        let own = build
            .ldflags
            .replace("{version}", &self.version)
            .replace("{number}", number)
            .replace("{major}", parts.next().unwrap_or_default())
            .replace("{minor}", parts.next().unwrap_or_default());
        format!("-s -w {own}").trim_end().to_owned()
    }
}

impl Versions {
    /// Reads and checks the versions file of `version` in `source`, and the
    /// go.mod of each of its components.
    ///
    /// # Errors
    /// When there is none, with the versions that there are; when it is not
    /// well formed; when it and a go.mod disagree, with both versions.
    pub(crate) fn load(source: &Path, version: &str) -> Result<Self> {
        let path = source.join(format!("{version}.yaml"));
        if !path.exists() {
            bail!(
                "no base image {version}: {} does not exist; there are: {}",
                path.display(),
                known(source).join(", ")
            );
        }
        let versions = Self::parse(&read(&path)?).with_context(|| path.display().to_string())?;
        ensure!(
            versions.version == version,
            "{}: states version {}, expected {version} as its name says",
            path.display(),
            versions.version
        );
        for component in &versions.components {
            component.agrees(source, &path)?;
        }
        Ok(versions)
    }

    fn parse(text: &str) -> Result<Self> {
        let versions: Self = serde_saphyr::from_str(text)?;
        versions.check()?;
        Ok(versions)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.platform == "linux/amd64",
            "platform {}: only linux/amd64 can be built",
            self.platform
        );
        let mut names = BTreeSet::new();
        let mut paths = BTreeSet::new();
        for component in &self.components {
            let name = component.name.as_str();
            ensure!(names.insert(name), "component {name} is there twice");
            ensure!(
                component.module.is_relative() && clean(&component.module.to_string_lossy()),
                "component {name}: module {} must be a directory beside the versions file",
                component.module.display()
            );
            ensure!(
                !component.builds.is_empty(),
                "component {name} builds nothing"
            );
            let outputs = component.builds.iter().map(|build| &build.output);
            for path in outputs.chain(component.links.keys()) {
                let inside = path.strip_prefix('/').is_some_and(clean);
                ensure!(
                    inside,
                    "component {name}: {path:?} must be an absolute path without . and .."
                );
                ensure!(
                    paths.insert(path),
                    "component {name}: {path} is installed twice"
                );
            }
            for tool in &component.tools {
                ensure!(
                    clean(&tool.output) && !tool.output.contains('/'),
                    "component {name}: tool {:?} must be a file name",
                    tool.output
                );
            }
        }
        Ok(())
    }
}

impl Component {
    fn agrees(&self, source: &Path, versions: &Path) -> Result<()> {
        let path = source.join(&self.module).join("go.mod");
        match required(&read(&path)?, &self.requires) {
            Some(version) if version == self.version => Ok(()),
            Some(version) => bail!(
                "{}: component {} is {}, but {} requires {} {version}: make them agree",
                versions.display(),
                self.name,
                self.version,
                path.display(),
                self.requires
            ),
            None => bail!(
                "{}: does not require {}, which component {} of {} is",
                path.display(),
                self.requires,
                self.name,
                versions.display()
            ),
        }
    }
}

/// The version that the go.mod `text` requires of `module`.
fn required(text: &str, module: &str) -> Option<String> {
    let mut inside = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let requirement = match line {
            "require (" => {
                inside = true;
                continue;
            }
            ")" => {
                inside = false;
                continue;
            }
            _ if inside => line,
            _ => match line.strip_prefix("require ") {
                Some(requirement) => requirement,
                None => continue,
            },
        };
        let mut words = requirement.split_whitespace();
        if words.next() == Some(module) {
            return words.next().map(str::to_owned);
        }
    }
    None
}

/// Whether a relative path stays where it is put.
fn clean(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn known(source: &Path) -> Vec<String> {
    let mut versions: Vec<String> = std::fs::read_dir(source)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.strip_suffix(".yaml").map(str::to_owned)
        })
        .collect();
    versions.sort();
    versions
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .with_context(|| path.display().to_string())?;
    ensure!(
        text.len() as u64 <= MAX_FILE,
        "{}: longer than {MAX_FILE} bytes",
        path.display()
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn every_versions_file_agrees_with_its_modules() {
        let known = known(&source());
        assert!(known.contains(&"6.0.0".to_owned()));
        for version in known {
            Versions::load(&source(), &version).unwrap();
        }
    }

    #[test]
    fn the_base_has_what_the_planet_runs() {
        let versions = Versions::load(&source(), "6.0.0").unwrap();
        let mut paths: Vec<&str> = versions
            .components
            .iter()
            .flat_map(|c| {
                let builds = c.builds.iter().map(|b| b.output.as_str());
                builds.chain(c.links.keys().map(String::as_str))
            })
            .collect();
        paths.sort_unstable();
        for path in [
            "/opt/cni/bin/bridge",
            "/opt/cni/bin/host-local",
            "/opt/cni/bin/loopback",
            "/opt/cni/bin/portmap",
            "/usr/local/bin/containerd",
            "/usr/local/bin/containerd-shim-runc-v2",
            "/usr/local/bin/coredns",
            "/usr/local/bin/ctr",
            "/usr/local/bin/etcd",
            "/usr/local/bin/etcdctl",
            "/usr/local/bin/etcdutl",
            "/usr/local/bin/flanneld",
            "/usr/local/bin/helm",
            "/usr/local/bin/kube-apiserver",
            "/usr/local/bin/kube-controller-manager",
            "/usr/local/bin/kube-proxy",
            "/usr/local/bin/kube-scheduler",
            "/usr/local/bin/kubectl",
            "/usr/local/bin/kubelet",
            "/usr/local/bin/registry",
            "/usr/local/bin/runc",
        ] {
            assert!(paths.binary_search(&path).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_go_mod_of_another_version_is_refused_with_both_named() {
        let dir = tempfile::tempdir().unwrap();
        let put =
            |name: &str, text: &str| crate::file::write(&dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("m")).unwrap();
        put(
            "1.0.0.yaml",
            "version: 1.0.0\nproduct_versions: '*'\nplanet_config_version: 1\n\
             platform: linux/amd64\ndebian: {suite: bookworm, packages: []}\ncomponents:\n\
             - {name: a, version: v1.2.3, license: MIT, module: m, requires: x.org/a, seconds: 1,\n\
                builds: [{package: ., output: /bin/a}]}\n",
        );
        put(
            "m/go.mod",
            "module m\n\nrequire (\n\tx.org/a v1.2.4 // indirect\n)\n",
        );
        let error = format!("{:#}", Versions::load(dir.path(), "1.0.0").unwrap_err());
        assert!(
            error.contains("v1.2.3") && error.contains("v1.2.4"),
            "{error}"
        );
        put("m/go.mod", "module m\n\nrequire x.org/a v1.2.3\n");
        Versions::load(dir.path(), "1.0.0").unwrap();
        put("m/go.mod", "module m\n\nrequire x.org/b v1.2.3\n");
        let error = format!("{:#}", Versions::load(dir.path(), "1.0.0").unwrap_err());
        assert!(error.contains("does not require x.org/a"), "{error}");
        let error = format!("{:#}", Versions::load(dir.path(), "2.0.0").unwrap_err());
        assert!(error.contains("there are: 1.0.0"), "{error}");
    }

    #[test]
    fn unknown_fields_and_paths_outside_are_refused() {
        assert!(Versions::parse("version: 1.0.0\ncolour: red\n").is_err());
        let mut versions = Versions::load(&source(), "6.0.0").unwrap();
        for bad in ["usr/bin/x", "/usr/../x", "/", "//x", "/usr/local/bin/etcd"] {
            versions.components[0].builds[0].output = bad.into();
            assert!(versions.check().is_err(), "{bad}");
        }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let versions = Versions::load(&source(), "6.0.0").unwrap();
        let flags = |name: &str| {
            let component = versions.components.iter().find(|c| c.name == name).unwrap();
            component.ldflags(&component.builds[0])
        };
        assert_eq!(flags("etcd"), "-s -w");
        assert_eq!(
            flags("runc"),
            "-s -w -X main.version=1.3.4 -extldflags \"-static\""
        );
        assert!(flags("kubernetes").contains("gitMinor=37 "));
    }
}
