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
use image::Image;
use image::cluster::ClusterImage;

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
    let mut found: Vec<_> = (image.verify(sink)?.iter().map(ToString::to_string)).collect();
    if found.is_empty()
        && let Err(error) = contents(&image)
    {
        found.push(format!("{error:#}"));
    }
    Ok(found)
}

/// Follows every reference of a sound file.
fn contents(image: &Image) -> Result<()> {
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
    Ok(())
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
}
