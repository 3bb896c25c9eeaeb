//! `gravity check`: the node against the requirements of the cluster image.
//!
//! In: the image, the profile, facts of the host. Out: a report. `install`
//! runs the same.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use console::{Console, ExitCode};
use event::Sink;
use host::facts::HostFacts;
use image::Image;
use image::cluster::ClusterImage;
use installer::install::{self, Options};
use manifest::NodeProfile;
use preflight::{Report, Requirements};

use super::{Session, install as command};
use crate::cli::Check;

/// Room for etcd, logs and what containers write, in bytes.
const WORKING_ROOM: u64 = 2 << 30;

/// The host doesn't meet the requirements.
#[derive(Debug, thiserror::Error)]
#[error("{0} requirement(s) not met; nothing was changed")]
pub(crate) struct RequirementsNotMet(usize);

pub(crate) fn run(session: &Session, arguments: &Check) -> Result<ExitCode> {
    let image = session.image()?;
    let cluster = ClusterImage::open(image.clone()).context("read the cluster image")?;
    let (manifest, _) = command::content(session, &cluster)?;
    let profile = install::choose_profile(&manifest, None, arguments.profile.as_deref())?;
    let facts = HostFacts::collect();
    let address =
        install::choose_address(None, &facts).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let options = Options::of_defaults(session.layout.state_dir());
    let requirements = requirements(&options, address, profile, &image);
    let report = preflight::check(&requirements, &facts);
    if session.console.is_json() {
        session.console.print_json(&report)?;
        return Ok(match report.failures().count() {
            0 => ExitCode::Ok,
            _ => ExitCode::Preflight,
        });
    }
    show(&session.console, &report)?;
    Ok(ExitCode::Ok)
}

/// What image and options need of the node.
pub(crate) fn requirements(
    options: &Options,
    advertise_address: IpAddr,
    profile: Option<&NodeProfile>,
    image: &Image,
) -> Requirements {
    // Every blob is on the node once; containers' layers a second time unpacked,
    // about three times their compressed size.
    let blobs: u64 = image
        .blobs()
        .map(|blob| {
            if blob.length < blob.size {
                blob.size
            } else {
                blob.size.saturating_mul(4)
            }
        })
        .sum();
    Requirements {
        profile: profile
            .map(|profile| profile.requirements.clone())
            .unwrap_or_default(),
        state_dir: options.state_dir.clone(),
        state_bytes: blobs + WORKING_ROOM,
        advertise_address,
        pod_cidrs: vec![options.pod_cidr.clone()],
        service_cidrs: vec![options.service_cidr.clone()],
        vxlan_port: options.vxlan_port,
    }
}

/// Shows findings that need somebody; passes are counted.
///
/// # Errors
/// When a requirement isn't met.
pub(crate) fn show(console: &Console, report: &Report) -> Result<()> {
    for finding in report.warnings() {
        console.warning(&finding.to_string());
    }
    let failures: Vec<_> = report.failures().collect();
    for failure in &failures {
        console.error_text(&failure.to_string());
    }
    if !failures.is_empty() {
        return Err(RequirementsNotMet(failures.len()).into());
    }
    console.info(&format!("{} checks passed", report.passed()));
    Ok(())
}
