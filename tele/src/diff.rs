//! `tele diff`: what changed from one cluster image to another.
//!
//! In: two files. Out: a [`Difference`] as text or JSON: the program,
//! components, images, planets, fields of the manifest and files of the
//! resources that were added, removed or changed; and the bytes that somebody who
//! has the one needs for the other. Content is told apart by digest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use console::Console;
use console::render::bytes;
use image::cluster::ClusterImage;
use serde::Serialize;
use serde_json::Value;

use crate::cli::Format;
use crate::inspect::{Inspection, open, short};

/// Entries of the resources; as many as an install unpacks.
const MAX_ENTRIES: usize = 200_000;
/// Longest value of a manifest's field in the text.
const SHOWN: usize = 60;

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// A cluster image.
    pub(crate) old: PathBuf,
    /// Another one.
    pub(crate) new: PathBuf,
    /// How to show it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// What changed.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    pub(crate) old: String,
    pub(crate) new: String,
    /// Whether the two hold the same.
    pub(crate) same: bool,
    pub(crate) sections: Vec<Section>,
    pub(crate) bytes: Bytes,
}

/// One kind of content.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// Such as `components`.
    pub(crate) name: &'static str,
    pub(crate) changes: Vec<Change>,
}

/// One thing that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    pub(crate) name: String,
    /// Nothing where it was added.
    pub(crate) old: Option<String>,
    /// Nothing where it was removed.
    pub(crate) new: Option<String>,
}

/// Stored bytes, by digest.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Bytes {
    /// In both.
    pub(crate) same: u64,
    /// In the new one alone: what an update transfers.
    pub(crate) added: u64,
    /// In the old one alone.
    pub(crate) removed: u64,
}

pub(crate) fn run(arguments: &Diff, console: &Console) -> Result<()> {
    let difference = Difference::between(&open(&arguments.old)?, &open(&arguments.new)?)?;
    match arguments.format {
        Format::Json => console.print(&serde_json::to_string_pretty(&difference)?),
        Format::Text => difference.show(console),
    }
    Ok(())
}

impl Difference {
    /// Compares two images.
    pub(crate) fn between(old: &ClusterImage, new: &ClusterImage) -> Result<Self> {
        let (before, after) = (Inspection::of(old)?, Inspection::of(new)?);
        let section = |name, facts: fn(&Inspection) -> BTreeMap<String, String>| Section {
            name,
            changes: changes(&facts(&before), &facts(&after)),
        };
        let mut sections = vec![
            section("cluster", cluster),
            section("components", components),
            section("planets", planets),
            section("images", images),
            section("layers", layers),
            section("manifest", |one| {
                let mut fields = BTreeMap::new();
                flatten(&one.manifest, String::new(), &mut fields);
                fields
            }),
        ];
        sections.push(Section {
            name: "resources",
            changes: match old.config.resources == new.config.resources {
                true => Vec::new(),
                false => changes(&resources(old)?, &resources(new)?),
            },
        });
        sections.retain(|section| !section.changes.is_empty());
        let title = |one: &Inspection| format!("{} {}", one.name, one.version);
        Ok(Self {
            old: title(&before),
            new: title(&after),
            same: sections.is_empty() && old.image.root() == new.image.root(),
            sections,
            bytes: Bytes::between(old, new),
        })
    }

    fn show(&self, console: &Console) {
        console.print(&format!("{} -> {}", self.old, self.new));
        for section in &self.sections {
            console.print(&format!("\n{}", section.name));
            for change in &section.changes {
                console.print(&change.line());
            }
        }
        if self.same {
            console.print("\nno differences");
        }
        let Bytes {
            same,
            added,
            removed,
        } = &self.bytes;
        console.print(&format!(
            "\nbytes: {} added, {} removed, {} the same",
            bytes(*added),
            bytes(*removed),
            bytes(*same)
        ));
    }
}

impl Change {
    fn line(&self) -> String {
        let cut = |text: &str| match text.chars().count() > SHOWN {
            true => format!("{}...", text.chars().take(SHOWN).collect::<String>()),
            false => text.to_owned(),
        };
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => format!("  ~ {}: {} -> {}", self.name, cut(old), cut(new)),
            (Some(old), None) => format!("  - {}: {}", self.name, cut(old)),
            (None, Some(new)) => format!("  + {}: {}", self.name, cut(new)),
            (None, None) => String::new(),
        }
    }
}

impl Bytes {
    fn between(old: &ClusterImage, new: &ClusterImage) -> Self {
        let stored = |cluster: &ClusterImage| -> BTreeMap<String, u64> {
            let blobs = cluster.image.blobs();
            let mut stored: BTreeMap<_, _> = blobs
                .map(|blob| (blob.digest.clone(), blob.length))
                .collect();
            let elf = cluster.image.elf();
            stored.insert(elf.digest.clone(), elf.size);
            stored
        };
        let (old, new) = (stored(old), stored(new));
        let sum = |of: &BTreeMap<String, u64>, other: &BTreeMap<String, u64>, both: bool| {
            let wanted = of
                .iter()
                .filter(|(digest, _)| other.contains_key(*digest) == both);
            wanted.map(|(_, size)| size).sum()
        };
        Self {
            same: sum(&new, &old, true),
            added: sum(&new, &old, false),
            removed: sum(&old, &new, false),
        }
    }
}

/// What differs of two sets of facts by name.
fn changes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Change> {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let differs = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name));
    differs
        .map(|name| Change {
            name: name.clone(),
            old: old.get(name).cloned(),
            new: new.get(name).cloned(),
        })
        .collect()
}

fn cluster(one: &Inspection) -> BTreeMap<String, String> {
    let signers = one.license_authorities.iter();
    let signers = signers.map(|signer| {
        let digest = format!("sha256:{}", signer.fingerprint);
        let name = format!("license authority {}", short(&digest));
        (name, signer.name.clone())
    });
    let facts = BTreeMap::from([
        ("name".into(), one.name.clone()),
        ("version".into(), one.version.clone()),
        ("platform".into(), one.platform.clone()),
        ("base".into(), one.base.reference.clone()),
        ("program".into(), short(&one.program.digest)),
        ("planet of the base".into(), short(&one.base.rootfs.digest)),
    ]);
    facts.into_iter().chain(signers).collect()
}

fn components(one: &Inspection) -> BTreeMap<String, String> {
    let components = one.base.components.iter();
    components
        .map(|part| (part.name.clone(), part.version.clone()))
        .collect()
}

fn planets(one: &Inspection) -> BTreeMap<String, String> {
    let mut profiles = BTreeMap::new();
    for planet in &one.planets {
        for profile in &planet.profiles {
            let image = format!("{} ({})", planet.name, short(&planet.digest));
            profiles.insert(format!("profile {profile}"), image);
        }
    }
    profiles
}

fn images(one: &Inspection) -> BTreeMap<String, String> {
    let images = one.images.iter();
    images
        .map(|image| (image.reference.clone(), short(&image.digest)))
        .collect()
}

fn layers(one: &Inspection) -> BTreeMap<String, String> {
    let planets = one.planets.iter().flat_map(|planet| &planet.layers);
    let images = one.images.iter().flat_map(|image| &image.layers);
    planets
        .chain(images)
        .map(|layer| (short(&layer.part.digest), bytes(layer.part.size)))
        .collect()
}

/// The fields of a document with their paths.
fn flatten(value: &Value, path: String, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(value, format!("{path}{dot}{key}"), fields);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                flatten(item, format!("{path}[{index}]"), fields);
            }
        }
        Value::String(text) => drop(fields.insert(path, text.replace('\n', "\\n"))),
        other => drop(fields.insert(path, other.to_string())),
    }
}

/// The files of the resources: kind, mode and digest of each.
fn resources(cluster: &ClusterImage) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let reader = cluster.image.reader(&cluster.config.resources)?;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().context("cannot read the resources")? {
        let mut entry = entry.context("cannot read the resources")?;
        if files.len() >= MAX_ENTRIES {
            bail!("the resources have more than {MAX_ENTRIES} entries");
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mode = entry.header().mode()? & 0o7777;
        let kind = entry.header().entry_type();
        let what = if kind.is_dir() {
            continue;
        } else if let Some(target) = entry.link_name_bytes() {
            format!("link to {}", String::from_utf8_lossy(&target))
        } else {
            let (digest, size) = oci::digest::copy(&mut entry, &mut std::io::sink())?;
            format!("{}, {}", bytes(size), short(digest.as_str()))
        };
        files.insert(path, format!("{mode:04o} {what}"));
    }
    // To the end, so that the digest of the whole is compared.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink())?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::Vendor;

    #[test]
    fn only_what_changed_is_told() {
        let vendor = Vendor::new();
        let build = |name: &str| open(&vendor.build(name, &Default::default()).unwrap()).unwrap();
        let first = build("one");
        let same = Difference::between(&first, &build("one.tar")).unwrap();
        assert!(same.same && same.sections.is_empty(), "{same:?}");
        assert_eq!((same.bytes.added, same.bytes.removed), (0, 0));
        assert_eq!(same.bytes, Bytes::between(&first, &first));

        vendor.put("eula.txt", "be kind");
        vendor.put("resources/notes.txt", "other\n");
        vendor.put("resources/new.txt", "");
        let second = build("two");
        let difference = Difference::between(&first, &second).unwrap();
        let names: Vec<_> = difference.sections.iter().map(|one| one.name).collect();
        assert_eq!(names, ["manifest", "resources"]);
        assert_eq!(
            difference.sections[0].changes,
            [Change {
                name: "installer.eula.source".into(),
                old: Some("be nice".into()),
                new: Some("be kind".into()),
            }]
        );
        let lines: Vec<_> = difference.sections[1]
            .changes
            .iter()
            .map(Change::line)
            .collect();
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("  ~ eula.txt: 0644"))
        );
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("  + resources/new.txt: 0644 0"))
        );
        assert_eq!(lines.len(), 3, "{lines:?}");
        let back = Difference::between(&second, &first).unwrap();
        assert!(
            back.sections[1]
                .changes
                .iter()
                .any(|change| change.new.is_none())
        );
        assert!(difference.bytes.added > 0 && difference.bytes.same > 0);
        assert_eq!(difference.bytes.added, back.bytes.removed);
    }
}
