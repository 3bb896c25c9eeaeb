//! `tele inspect`: what a cluster image holds.
//!
//! In: the file of a cluster image, alone or in the archive that a build
//! writes. Out: an [`Inspection`] as text or JSON: the cluster, the base and its
//! components, every image with its layers, sizes and who shares them. Documents
//! are read and verified; blobs are not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use console::Console;
use console::render::bytes;
use image::Image;
use image::cluster::{ClusterImage, Component};
use oci::layout::REF_NAME;
use pki::license::Signer;
use serde::Serialize;

use crate::cli::Format;

/// What to look at.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The cluster image: the executable, or the archive with it.
    pub(crate) file: PathBuf,
    /// How to show it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Show the Image Manifest alone, as it was resolved.
    #[arg(long)]
    pub(crate) manifest: bool,
}

/// What a cluster image holds. Sizes are in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    pub(crate) file: PathBuf,
    /// Of the executable.
    pub(crate) size: u64,
    pub(crate) name: String,
    pub(crate) version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) description: String,
    pub(crate) platform: String,
    pub(crate) program: Part,
    pub(crate) base: Base,
    pub(crate) resources: Part,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logo: Option<Logo>,
    /// Who signs the licenses that it demands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) license_authorities: Vec<Signer>,
    pub(crate) planets: Vec<Planet>,
    pub(crate) images: Vec<Container>,
    /// The resolved Image Manifest.
    pub(crate) manifest: serde_json::Value,
}

/// Content with its place in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Part {
    pub(crate) digest: String,
    pub(crate) size: u64,
    /// What it takes in the file.
    pub(crate) stored: u64,
}

/// The logo of the installer, which is in the manifest as a data URL.
#[derive(Debug, Serialize)]
pub(crate) struct Logo {
    pub(crate) media_type: String,
    pub(crate) size: u64,
}

/// The base image.
#[derive(Debug, Serialize)]
pub(crate) struct Base {
    pub(crate) reference: String,
    pub(crate) digest: String,
    pub(crate) version: String,
    pub(crate) product_versions: String,
    pub(crate) rootfs: Part,
    pub(crate) components: Vec<Component>,
}

/// The root filesystem of some profiles' nodes.
#[derive(Debug, Serialize)]
pub(crate) struct Planet {
    /// Name of the image that it was.
    pub(crate) name: String,
    pub(crate) digest: String,
    /// `""` stands for nodes without a profile.
    pub(crate) profiles: Vec<String>,
    pub(crate) layers: Vec<Layer>,
}

/// A container image.
#[derive(Debug, Serialize)]
pub(crate) struct Container {
    /// Name in the cluster's registry.
    pub(crate) reference: String,
    /// Where it was pulled from.
    pub(crate) source: String,
    pub(crate) digest: String,
    /// Of all layers as they are transferred.
    pub(crate) size: u64,
    pub(crate) layers: Vec<Layer>,
}

/// A layer of an image.
#[derive(Debug, Serialize)]
pub(crate) struct Layer {
    #[serde(flatten)]
    pub(crate) part: Part,
    pub(crate) media_type: String,
    /// Other images that have it too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) shared_with: Vec<String>,
}

pub(crate) fn run(arguments: &Inspect, console: &Console) -> Result<()> {
    let inspection = Inspection::of(&open(&arguments.file)?)?;
    match (arguments.manifest, arguments.format) {
        (true, _) => console.print(&serde_json::to_string_pretty(&inspection.manifest)?),
        (false, Format::Json) => console.print(&serde_json::to_string_pretty(&inspection)?),
        (false, Format::Text) => inspection.show(console),
    }
    Ok(())
}

/// Opens a cluster image.
pub(crate) fn open(file: &Path) -> Result<ClusterImage> {
    ClusterImage::open(Image::open(file)?)
        .with_context(|| format!("cannot read the cluster image {}", file.display()))
}

impl Inspection {
    /// Reads all documents of an image.
    pub(crate) fn of(cluster: &ClusterImage) -> Result<Self> {
        let config = &cluster.config;
        let base = cluster.base()?;
        let manifest = cluster.manifest_yaml()?;
        let mut planets: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (profile, digest) in &config.planets {
            planets.entry(digest).or_default().push(profile.clone());
        }
        let mut inspection = Self {
            file: cluster.image.path().to_owned(),
            size: cluster.image.length(),
            name: config.name.clone(),
            version: config.image_version.clone(),
            description: config.description.trim().to_owned(),
            platform: cluster.image.platform().to_owned(),
            program: Part {
                digest: cluster.image.elf().digest.clone(),
                size: cluster.image.elf().size,
                stored: cluster.image.elf().size,
            },
            resources: part(cluster, &config.resources),
            logo: None,
            license_authorities: config
                .license_authorities
                .as_deref()
                .and_then(pki::license::authorities)
                .unwrap_or_default(),
            planets: Vec::new(),
            images: Vec::new(),
            // JSON is YAML: builds write it.
            manifest: serde_json::from_str(&manifest)
                .unwrap_or_else(|_| serde_json::Value::String(manifest)),
            base: Base {
                reference: config.base.reference.clone(),
                digest: config.base.digest.clone(),
                version: base.config.version,
                product_versions: base.config.product_versions,
                rootfs: part(cluster, &base.rootfs),
                components: base.config.components,
            },
        };
        inspection.logo = inspection.manifest["logo"].as_str().and_then(logo);
        for (digest, profiles) in planets {
            inspection.planets.push(Planet {
                name: named(cluster, digest).unwrap_or_else(|| digest.to_owned()),
                digest: digest.to_owned(),
                profiles,
                layers: layers(cluster, digest)?,
            });
        }
        for image in &config.images {
            let layers = layers(cluster, &image.digest)?;
            inspection.images.push(Container {
                reference: image.reference.clone(),
                source: image.source.clone(),
                digest: image.digest.clone(),
                size: layers.iter().map(|layer| layer.part.size).sum(),
                layers,
            });
        }
        inspection.share();
        Ok(inspection)
    }

    /// Notes at each layer who else has it.
    fn share(&mut self) {
        let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let base = (self.base.rootfs.digest.clone(), self.base.reference.clone());
        users.entry(base.0).or_default().insert(base.1);
        for (name, layers) in self.layered() {
            for layer in layers {
                let users = users.entry(layer.part.digest.clone()).or_default();
                users.insert(name.clone());
            }
        }
        for (name, layers) in self.layered() {
            for layer in layers {
                let users = users.get(&layer.part.digest).into_iter().flatten();
                layer.shared_with = users.filter(|user| **user != name).cloned().collect();
            }
        }
    }

    fn layered(&mut self) -> impl Iterator<Item = (String, &mut Vec<Layer>)> {
        let planets = self.planets.iter_mut();
        let planets = planets.map(|planet| (planet.name.clone(), &mut planet.layers));
        let images = self.images.iter_mut();
        planets.chain(images.map(|image| (image.reference.clone(), &mut image.layers)))
    }

    fn show(&self, console: &Console) {
        let line = |what: &str, value: String| console.print(&format!("{what:<11}{value}"));
        line("Cluster", format!("{} {}", self.name, self.version));
        if !self.description.is_empty() {
            line("", self.description.replace('\n', "\n           "));
        }
        if let Some(author) = self.manifest["metadata"]["author"].as_str() {
            line("Author", author.trim().replace('\n', "\n           "));
        }
        line("Size", bytes(self.size));
        line("Platform", self.platform.clone());
        line(
            "Base",
            format!("{} ({})", self.base.reference, short(&self.base.digest)),
        );
        line("Resources", bytes(self.resources.size));
        if let Some(logo) = &self.logo {
            line("Logo", format!("{}, {}", logo.media_type, bytes(logo.size)));
        }
        for signer in &self.license_authorities {
            let Signer { name, fingerprint } = signer;
            line(
                "License",
                format!("signed by {name} (sha256:{fingerprint})"),
            );
        }
        let components = self.base.components.iter();
        let rows: Vec<_> = components
            .map(|one| vec![one.name.clone(), one.version.clone()])
            .collect();
        console.print("");
        console.table(&["Component", "Version"], &rows);
        if !self.planets.is_empty() {
            let row = |planet: &Planet| {
                let own = planet.layers.iter().skip(1).map(|layer| layer.part.size);
                let profiles = planet.profiles.iter().map(|profile| match &**profile {
                    "" => "(none)",
                    name => name,
                });
                vec![
                    planet.name.clone(),
                    profiles.collect::<Vec<_>>().join(", "),
                    short(&planet.digest),
                    format!("{} on the base", bytes(own.sum())),
                ]
            };
            let rows: Vec<_> = self.planets.iter().map(row).collect();
            console.print("");
            console.table(&["Planet", "Profiles", "Digest", "Adds"], &rows);
        }
        if !self.images.is_empty() {
            let row = |image: &Container| {
                let shared = image
                    .layers
                    .iter()
                    .filter(|one| !one.shared_with.is_empty());
                vec![
                    image.reference.clone(),
                    short(&image.digest),
                    image.layers.len().to_string(),
                    bytes(image.size),
                    bytes(shared.map(|layer| layer.part.size).sum()),
                ]
            };
            let rows: Vec<_> = self.images.iter().map(row).collect();
            console.print("");
            console.table(&["Image", "Digest", "Layers", "Size", "Shared"], &rows);
        }
    }
}

fn logo(url: &str) -> Option<Logo> {
    let (media_type, bytes) = crate::build::manifest::data_url(url)?;
    Some(Logo {
        media_type: media_type.to_owned(),
        size: bytes.len() as u64,
    })
}

fn layers(cluster: &ClusterImage, digest: &str) -> Result<Vec<Layer>> {
    let manifest = cluster.image_manifest(digest)?;
    let layers = manifest.layers().iter().map(|layer| Layer {
        part: part(cluster, layer.digest().as_ref()),
        media_type: layer.media_type().to_string(),
        shared_with: Vec::new(),
    });
    Ok(layers.collect())
}

/// What is not there has no size.
fn part(cluster: &ClusterImage, digest: &str) -> Part {
    let blob = cluster.image.blob(digest);
    Part {
        digest: digest.to_owned(),
        size: blob.map_or(0, |blob| blob.size),
        stored: blob.map_or(0, |blob| blob.length),
    }
}

/// The name that the root index gives to a manifest.
pub(crate) fn named(cluster: &ClusterImage, digest: &str) -> Option<String> {
    let manifests = cluster.index.manifests().iter();
    let mut found = manifests.filter(|one| one.digest().as_ref() == digest);
    found.find_map(|one| one.annotations().as_ref()?.get(REF_NAME).cloned())
}

/// The first digits of a digest, as people compare them.
pub(crate) fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}
