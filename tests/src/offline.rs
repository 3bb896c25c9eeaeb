//! `tele verify --offline-boot`: the sample has all that it needs; one whose hook
//! names an image that nobody packed hasn't.
//!
//! In: the sample. Out: an error where either is told wrongly, or a node is left.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use console::Console;
use event::Sink;

use crate::node::Node;
use crate::registry::tele;
use crate::said::Said;
use crate::scenario::Setup;
use crate::{file, process};

/// The line of the sample's hook before which the other one asks for more.
const LINE: &str = "              kubectl=/usr/local/bin/kubectl\n";
/// An image that only a hook's script names.
const STRAY: &str = "quay.io/nobody/stray:1.0.0";

/// How many nodes there are of `tele verify`.
fn booted() -> Result<usize> {
    let nodes = Node::list()?;
    let booted = nodes.iter().filter(|node| node.name().starts_with("boot-"));
    Ok(booted.count())
}

/// Runs all of it.
///
/// # Errors
/// At the first thing that is not as it should be.
pub fn run(setup: &Setup, console: &Console) -> Result<()> {
    let before = booted()?;
    let image = setup.image(console)?;
    verify(&image, console)?.expect(0, &["is whole", "installs without network"])?;

    console.step("A hook that starts a pod of an image that is not packed");
    let directory = file::cache()?.join("stray");
    file::remove_directory(&directory)?;
    process::run(
        Command::new("cp")
            .arg("-r")
            .arg(&setup.sample)
            .arg(&directory),
    )?;
    let hook = directory.join("hooks/post-install.yaml");
    let text = file::read(&hook)?;
    ensure!(text.contains(LINE), "the sample's hook has changed: {text}");
    let run = format!("{LINE}              $kubectl run stray --image={STRAY}\n");
    file::write(&hook, text.replace(LINE, &run))?;
    let stray = Setup {
        sample: directory.clone(),
        image: None,
        ..setup.clone()
    };
    let image = stray.image(console)?;
    let pulls = format!("pod default/stray pulls {STRAY}");
    verify(&image, console)?.expect(1, &["is whole", &pulls])?;
    file::remove_directory(&directory)?;
    ensure!(booted()? == before, "nodes are left");
    Ok(())
}

fn verify(image: &Path, console: &Console) -> Result<Said> {
    console.step("tele verify --offline-boot");
    let mut command = Command::new(tele()?);
    command
        .args(["verify", "--offline-boot", "--flavor=one"])
        .arg(image);
    let output = command.stdin(Stdio::null()).output();
    Ok(Said::of(&output.context("starting tele")?))
}
