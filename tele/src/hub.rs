//! The hub, as commands use it.
//!
//! In: options and the name of an image. Out: an open [`Hub`] and the version
//! that is meant. `latest`, or no version, is the newest of all; `stable` the
//! newest that is no pre-release; a range such as `^1.2` the newest within it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use console::Console;
use oci::hub::{self, Hub};
use oci::{Client, Layout, Progress, Registries, Retry};
use semver::{Version, VersionReq};
use tokio::runtime::Runtime;

use crate::build::state::State;

/// Where the hub is.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) hub: crate::cli::Hub,
    /// Transfers at a time.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) parallel: u8,
}

/// A hub and what it is used with.
pub(crate) struct Connection {
    pub(crate) runtime: Runtime,
    pub(crate) hub: Hub,
}

impl Options {
    /// Opens the hub; `create` makes a directory that is not there.
    pub(crate) fn connect(&self, create: bool) -> Result<Connection> {
        let runtime = Runtime::new().context("cannot start the runtime")?;
        let client = Client::new(
            Registries::from_environment()?,
            self.hub.credentials(),
            usize::from(self.parallel),
            Retry::default(),
        );
        let hub = self.hub.open(&client, create)?;
        Ok(Connection { runtime, hub })
    }
}

/// Splits `NAME[:VERSION]`.
pub(crate) fn split(image: &str) -> Result<(&str, Option<&str>)> {
    let (name, version) = match image.split_once(':') {
        Some((name, version)) => (name, Some(version)),
        None => (image, None),
    };
    if name.is_empty() || version == Some("") {
        bail!("`{image}` is no image of a hub: write NAME or NAME:VERSION");
    }
    Ok((name, version))
}

/// The tag that is meant.
pub(crate) async fn find(hub: &Hub, name: &str, wanted: Option<&str>) -> Result<String> {
    let tags = hub.tags(name).await?;
    if tags.is_empty() {
        bail!(
            "{} has no image {name}: `tele ls` lists what there is",
            hub.describe()
        );
    }
    choose(&tags, wanted).with_context(|| format!("cannot find {name} in {}", hub.describe()))
}

fn choose(tags: &[String], wanted: Option<&str>) -> Result<String> {
    if let Some(exact) = wanted.map(hub::tag)
        && tags.contains(&exact)
    {
        return Ok(exact);
    }
    let range = match wanted {
        None | Some("latest" | "stable") => VersionReq::STAR,
        // A number alone is no minimum here, as elsewhere: 1.2 are all 1.2.x.
        Some(text) if text.starts_with(|c: char| c.is_ascii_digit()) => {
            VersionReq::parse(&format!("={text}")).context("the version is malformed")?
        }
        Some(text) => VersionReq::parse(text).with_context(|| {
            format!("`{text}` is neither a version that is there nor a range such as ^1.2")
        })?,
    };
    let versions = || {
        tags.iter()
            .filter_map(|tag| Some((Version::parse(&hub::version(tag)).ok()?, tag)))
    };
    let newest = match wanted {
        None | Some("latest") => versions().max(),
        _ => versions()
            .filter(|(version, _)| range.matches(version))
            .max(),
    };
    match (newest, wanted) {
        (Some((_, tag)), _) => Ok(tag.clone()),
        // Container images may have nothing but this.
        (None, None) if tags.iter().any(|tag| tag == "latest") => Ok("latest".into()),
        (None, wanted) => {
            let mut known: Vec<(Option<Version>, String)> = tags
                .iter()
                .map(|tag| hub::version(tag))
                .map(|version| (Version::parse(&version).ok(), version))
                .collect();
            known.sort();
            let known: Vec<_> = known.into_iter().map(|(_, version)| version).collect();
            bail!(
                "no version is {}; there are {}",
                wanted.unwrap_or("latest"),
                known.join(", ")
            )
        }
    }
}

/// Blobs that were fetched: kept, so that the next version moves only what
/// changed. While the state is open, unfinished ones stay, too.
pub(crate) fn cache(state_dir: Option<&PathBuf>) -> Result<(State, Layout)> {
    let state = State::open(&crate::build::state_dir(state_dir)?)?;
    let cache = Layout::open_or_create(state.images())?;
    Ok((state, cache))
}

/// Bytes that go to or come from the hub.
pub(crate) fn progress(task: &str, console: &Arc<Console>) -> Progress {
    Progress::new(task, console.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_is_meant_is_chosen() {
        let tags = [
            "1.2.3",
            "1.2.10",
            "1.10.0",
            "2.0.0-rc.1",
            "2.0.0-rc.1_b",
            "odd",
        ];
        let tags: Vec<String> = tags.map(String::from).to_vec();
        for (wanted, expected) in [
            (None, "2.0.0-rc.1_b"),
            (Some("latest"), "2.0.0-rc.1_b"),
            (Some("stable"), "1.10.0"),
            (Some("1.2.3"), "1.2.3"),
            (Some("2.0.0-rc.1+b"), "2.0.0-rc.1_b"),
            (Some("1.2"), "1.2.10"),
            (Some("1"), "1.10.0"),
            (Some("^1.2"), "1.10.0"),
            (Some("~1.2"), "1.2.10"),
            (Some(">=1.0, <1.5"), "1.2.10"),
            (Some("1.2.x"), "1.2.10"),
            (Some("odd"), "odd"),
        ] {
            assert_eq!(choose(&tags, wanted).unwrap(), expected, "{wanted:?}");
        }
        let error = choose(&tags, Some("3.0.0")).unwrap_err().to_string();
        assert!(
            error.ends_with("there are odd, 1.2.3, 1.2.10, 1.10.0, 2.0.0-rc.1, 2.0.0-rc.1+b"),
            "{error}"
        );
        assert!(choose(&tags, Some("newest")).is_err());
        assert_eq!(choose(&["latest".into()], None).unwrap(), "latest");
    }

    #[test]
    fn names_are_split() {
        assert_eq!(split("app").unwrap(), ("app", None));
        assert_eq!(split("app:>=1, <2").unwrap(), ("app", Some(">=1, <2")));
        assert!(split(":1").is_err() && split("app:").is_err());
    }
}
