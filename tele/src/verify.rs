//! `tele verify`: compares every byte of a cluster image with what was built.
//!
//! In: the file. Out: what is damaged, by part and offset. Beyond the bytes, all
//! that the cluster refers to must be there and readable: the manifest that an
//! install will parse, every layer of every image and planet. And, if wanted, that
//! it installs, see [`boot`].

mod boot;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use console::{Console, ExitCode};
use image::cluster::ClusterImage;
use image::{Damage, Image};

use crate::inspect::Inspection;

/// What to verify.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The cluster image: the executable, or the archive with it.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) boot: boot::Boot,
}

pub(crate) fn run(arguments: &Verify, console: &Console) -> Result<ExitCode> {
    let found = problems(&arguments.file, console)?;
    for problem in &found {
        console.error_text(problem);
    }
    if !found.is_empty() {
        return Ok(ExitCode::DamagedImage);
    }
    let file = arguments.file.display();
    console.print(&format!("{file} is whole"));
    if arguments.boot.offline_boot {
        let cluster = ClusterImage::open(Image::open(&arguments.file)?)?;
        let found = boot::problems(&cluster, &arguments.boot, console)?;
        for problem in &found {
            console.error_text(problem);
        }
        if !found.is_empty() {
            return Ok(ExitCode::Failed);
        }
        console.print(&format!("{file} installs without network"));
    }
    Ok(ExitCode::Ok)
}

/// Everything that is wrong with the image.
fn problems(file: &std::path::Path, sink: &dyn event::Sink) -> Result<Vec<String>> {
    let image = match Image::open(file) {
        Ok(image) => image,
        Err(error) if error.is_damage() => return Ok(vec![error.to_string()]),
        Err(error) => return Err(error.into()),
    };
    let mut found: Vec<_> = image.verify(sink).iter().map(ToString::to_string).collect();
    if found.is_empty() {
        match contents(&image) {
            Ok(cluster) => found.extend(archive(&cluster, sink).iter().map(ToString::to_string)),
            Err(error) => found.push(format!("{error:#}")),
        }
    }
    Ok(found)
}

/// What an archive has around a sound image and is not what was built.
pub(crate) fn archive(cluster: &ClusterImage, sink: &dyn event::Sink) -> Vec<Damage> {
    if cluster.image.is_archived() && cluster.config.archive.is_none() {
        sink.warning(
            "an earlier tele has built this archive: what it holds beside the executable can't be verified",
        );
    }
    cluster.verify_archive()
}

/// Follows every reference of a sound image.
fn contents(image: &Image) -> Result<ClusterImage> {
    let cluster = ClusterImage::open(image.clone())?;
    Inspection::of(&cluster)?;
    for image in &cluster.config.images {
        cluster.image_blobs(&image.digest)?;
    }
    for profile in cluster.config.planets.keys() {
        cluster.planet(profile)?;
    }
    if let Err(errors) = manifest::parse(&cluster.manifest_yaml()?, "the Image Manifest") {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::bail!("{}", lines.join("\n"));
    }
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use event::Discard;

    use super::*;
    use crate::build::tests::Vendor;

    #[test]
    fn damage_is_found_alone_and_in_an_archive() {
        let vendor = Vendor::new();
        for (name, program) in [("shop", 8), ("shop.tar", 520)] {
            let path = vendor.build(name, &Default::default()).unwrap();
            assert_eq!(problems(&path, &Discard).unwrap(), [""; 0]);
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            file.write_all_at(b"?", program).unwrap();
            let found = problems(&path, &Discard).unwrap();
            assert!(found[0].contains("the gravity program"), "{found:?}");
            file.set_len(length / 2).unwrap();
            let found = problems(&path, &Discard).unwrap();
            assert!(found[0].contains("is truncated"), "{found:?}");
        }
        let text = vendor.at("app/app.yaml");
        let found = problems(&text, &Discard).unwrap();
        assert!(found[0].contains("is not a cluster image"), "{found:?}");
        assert!(problems(&vendor.at("none"), &Discard).is_err());
    }

    #[test]
    fn what_an_archive_holds_beside_the_image_is_verified() {
        let vendor = Vendor::new();
        let path = vendor.build("shop.tar", &Default::default()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let length = whole.len();
        let find = |text: &str| {
            let mut windows = whole.windows(text.len());
            let found = windows.rposition(|window| window == text.as_bytes());
            found.unwrap()
        };
        let changed = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let manifest = find("app.yaml\0");
        assert_eq!(manifest % 512, 0);
        for (bytes, problem) in [
            (whole[..length - 600].to_vec(), "is missing"),
            (whole[..manifest + 700].to_vec(), "is missing"),
            (whole[..manifest].to_vec(), "is missing"),
            ([&whole[..], &[0; 512]].concat(), "was added"),
            (changed(find("./gravity install")), "expected sha256:"),
            (changed(find("kind: Cluster")), "expected sha256:"),
            // The script's mode.
            (changed(find("install\0") + 104), "expected sha256:"),
            (changed(length - 1), "expected sha256:"),
            (changed(manifest - 1), "is not zero"),
            // Mode and time of the program.
            (changed(105), "header of the archive"),
            (changed(140), "header of the archive"),
        ] {
            let file = std::fs::File::create(&path).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let found = problems(&path, &Discard).unwrap();
            assert!(found[0].contains(problem), "{problem}: {found:?}");
            let pushed = crate::artifact::describe(&path, &Discard).unwrap_err();
            assert!(pushed.to_string().contains(problem), "{pushed}");
        }
    }
}
