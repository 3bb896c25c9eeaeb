//! The bill of materials, as CycloneDX.
//!
//! In: built components and the status file of dpkg. Out: JSON with every
//! component, its programs with their SHA-256, every Go module and C library
//! that is linked in, and every Debian package. The same inputs give the same
//! bytes, so it has no serial number and no time.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Value, json};

use crate::component::Built;
use crate::versions::Versions;

/// An installed Debian package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    name: String,
    version: String,
    architecture: String,
}

/// The installed packages of dpkg's status file, sorted.
pub(crate) fn debian_packages(status: &str) -> Vec<Package> {
    let mut packages = Vec::new();
    for paragraph in status.split("\n\n") {
        let fields: BTreeMap<&str, &str> = paragraph
            .lines()
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split_once(": "))
            .collect();
        let field = |name: &str| fields.get(name).map(|value| value.trim().to_owned());
        if !field("Status").is_some_and(|status| status.ends_with(" installed")) {
            continue;
        }
        if let (Some(name), Some(version), Some(architecture)) =
            (field("Package"), field("Version"), field("Architecture"))
        {
            packages.push(Package {
                name,
                version,
                architecture,
            });
        }
    }
    packages.sort();
    packages
}

/// The document.
pub(crate) fn make(versions: &Versions, built: &[Built], debian: &[Package]) -> Result<Vec<u8>> {
    let suite = &versions.debian.suite;
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    let mut libraries: BTreeMap<String, Value> = BTreeMap::new();
    let mut own = BTreeSet::new();
    for (component, built) in versions.components.iter().zip(built) {
        let reference = format!("component:{}", component.name);
        let mut parts = BTreeSet::new();
        let standard = go_library("stdlib", built.go.trim_start_matches("go"));
        let modules = built
            .modules
            .iter()
            .filter(|module| module.name != component.requires)
            .map(|module| go_library(&module.name, &module.version));
        let native = built.native.iter().map(|library| {
            let purl = format!("pkg:generic/{}@{}", library.name, encode(&library.version));
            library_entry(&library.name, &library.version, purl)
        });
        for library in modules.chain([standard]).chain(native) {
            let purl = library["purl"].as_str().unwrap_or_default().to_owned();
            parts.insert(purl.clone());
            libraries.insert(purl, library);
        }
        let files: Vec<Value> = built
            .files
            .iter()
            .map(|file| {
                json!({
                    "type": "file",
                    "name": file.output,
                    "hashes": [{ "alg": "SHA-256", "content": file.digest.replace("sha256:", "") }],
                })
            })
            .collect();
        components.push(json!({
            "type": "application",
            "bom-ref": reference,
            "name": component.name,
            "version": component.version,
            "purl": go_purl(&component.requires, &component.version),
            "licenses": [{ "expression": component.license }],
            "components": files,
        }));
        dependencies.push(json!({ "ref": reference, "dependsOn": parts }));
        own.insert(reference);
    }
    components.extend(libraries.into_values());
    for package in debian {
        let purl = format!(
            "pkg:deb/debian/{}@{}?arch={}&distro={suite}",
            encode(&package.name),
            encode(&package.version),
            package.architecture
        );
        let entry = library_entry(&package.name, &package.version, purl.clone());
        components.push(entry);
        own.insert(purl);
    }
    dependencies.insert(0, json!({ "ref": "planet", "dependsOn": own }));
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": "planet",
                "name": "planet",
                "version": versions.version,
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_vec_pretty(&document)?)
}

fn go_library(name: &str, version: &str) -> Value {
    library_entry(name, version, go_purl(name, version))
}

fn library_entry(name: &str, version: &str, purl: String) -> Value {
    json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl })
}

fn go_purl(module: &str, version: &str) -> String {
    let path: Vec<String> = module.to_lowercase().split('/').map(encode).collect();
    format!("pkg:golang/{}@{}", path.join("/"), encode(version))
}

/// Percent-encodes what a package URL does not take as it is.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{BuiltFile, Module};
    use std::path::Path;

    const STATUS: &str = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\n\
        Version: 2.36-9+deb12u10\nDescription: x\n Version: no\n\nPackage: gone\n\
        Status: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
        Package: adduser\nStatus: install ok installed\nArchitecture: all\nVersion: 3.134\n";

    #[test]
    fn only_installed_packages_are_listed() {
        let packages = debian_packages(STATUS);
        let names: Vec<&str> = packages.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["adduser", "libc6"]);
        assert_eq!(packages[1].version, "2.36-9+deb12u10");
    }

    #[test]
    fn everything_is_listed_once_with_its_package_url() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut versions = Versions::load(source, "6.0.0").unwrap();
        versions.components.truncate(2);
        let module = |name: &str, version: &str| Module {
            name: name.into(),
            version: version.into(),
        };
        let built: Vec<Built> = versions
            .components
            .iter()
            .map(|component| Built {
                name: component.name.clone(),
                go: "go1.26.8".into(),
                files: component
                    .builds
                    .iter()
                    .map(|build| BuiltFile {
                        output: build.output.clone(),
                        digest: format!("sha256:{}", "ab".repeat(32)),
                        size: 1,
                    })
                    .collect(),
                modules: vec![
                    module(&component.requires, &component.version),
                    module("github.com/Azure/x", "v2.5.0+incompatible"),
                ],
                native: Vec::new(),
                directory: "/nowhere".into(),
            })
            .collect();
        let text = make(&versions, &built, &debian_packages(STATUS)).unwrap();
        assert_eq!(
            text,
            make(&versions, &built, &debian_packages(STATUS)).unwrap()
        );
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["bomFormat"], "CycloneDX");
        let components = document["components"].as_array().unwrap();
        let purls: Vec<&str> = components
            .iter()
            .map(|c| c["purl"].as_str().unwrap())
            .collect();
        assert_eq!(
            purls,
            [
                "pkg:golang/k8s.io/kubernetes@v1.37.2",
                "pkg:golang/go.etcd.io/etcd/server/v3@v3.6.8",
                "pkg:golang/github.com/azure/x@v2.5.0%2Bincompatible",
                "pkg:golang/stdlib@1.26.8",
                "pkg:deb/debian/adduser@3.134?arch=all&distro=bookworm",
                "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=bookworm",
            ]
        );
        let file = &components[0]["components"][0];
        assert_eq!(file["name"], "/usr/local/bin/kubernetes");
        assert_eq!(file["hashes"][0]["content"], "ab".repeat(32));
        let references: BTreeSet<&str> = components
            .iter()
            .map(|c| c["bom-ref"].as_str().unwrap())
            .collect();
        assert_eq!(references.len(), components.len());
        for dependency in document["dependencies"].as_array().unwrap() {
            for part in dependency["dependsOn"].as_array().unwrap() {
                assert!(references.contains(part.as_str().unwrap()), "{part}");
            }
        }
    }
}
