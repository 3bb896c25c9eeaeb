//! `tele build` as a program: the images of charts, and several builds at once.
//! Needs the programs that `make base` builds, helm among them; no root.

#![expect(clippy::unwrap_used, reason = "a test without its programs fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use gravity_tests::file;
use gravity_tests::registry::component;
use gravity_tests::vendor::{Vendor, images};

/// Charts, each with a list of its images, by hand: what each chart starts, or may start with its annotated values.
const CHARTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tele/testdata/charts");

fn vendor() -> (tempfile::TempDir, Vendor) {
    let directory = tempfile::tempdir().unwrap();
    let vendor = Vendor::new(directory.path()).unwrap();
    (directory, vendor)
}

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn sources(command: &mut Command) -> BTreeSet<String> {
    let output = command
        .env("HELM", component("helm").unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    images(&text).unwrap()
}

fn expected(chart: &str) -> BTreeSet<String> {
    let list = Path::new(CHARTS).join(format!("{chart}.images"));
    let text = fs::read_to_string(&list).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn all_images_of_charts_are_found() {
    let (_directory, vendor) = vendor();
    let mut charts = 0;
    let mut wrong = String::new();
    for entry in fs::read_dir(CHARTS).unwrap().flatten() {
        if !entry.path().is_dir() {
            continue;
        }
        charts += 1;
        let name = entry.file_name().into_string().unwrap();
        let app = vendor.app(&format!("app-{name}")).unwrap();
        copy(&entry.path(), &app);
        let (found, expected) = (
            sources(&mut vendor.build(&app, &vendor.directory.join("image"))),
            expected(&name),
        );
        for image in expected.difference(&found) {
            wrong += &format!("{name}: {image} is not found\n");
        }
        for image in found.difference(&expected) {
            wrong += &format!("{name}: {image} should not be found\n");
        }
    }
    assert_eq!((charts, wrong.as_str()), (10, ""));
}

#[test]
fn packed_charts_are_looked_into_and_one_alone_is_enough() {
    let (directory, vendor) = vendor();
    let app = vendor.app("app").unwrap();
    let helm = component("helm").unwrap();
    for (chart, destination) in [
        ("statefulset", app.clone()),
        ("cronjob", app.join("more")),
        ("values", app.join("more")),
        ("conditionals", app.join("more")),
    ] {
        let mut package = Command::new(&helm);
        package.args(["package", "--destination"]).arg(destination);
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            package.env(name, directory.path().join("helm"));
        }
        let output = package.arg(Path::new(CHARTS).join(chart)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    file::write(&app.join("other.tgz"), "no archive").unwrap();
    let found = sources(&mut vendor.build(&app, &vendor.directory.join("image")));
    let charts = ["statefulset", "cronjob", "values", "conditionals"];
    let all: BTreeSet<_> = charts.into_iter().flat_map(expected).collect();
    assert_eq!(found, all);

    // A chart alone; the output lies in it, as by default.
    let chart = directory.path().join("umbrella");
    copy(&Path::new(CHARTS).join("umbrella"), &chart);
    for output in ["umbrella.tar", "again"] {
        let found = sources(&mut vendor.build(&chart, &chart.join(output)));
        assert_eq!(found, expected("umbrella"));
    }
    let mut locked = vendor.build(&chart, &chart.join("locked"));
    sources(locked.arg("--locked"));
    let read = |name: &str| fs::read(chart.join(name)).unwrap();
    assert!(read("again") == read("locked"));
}

/// Names of what is unfinished, however deep.
fn unfinished(directory: &Path) -> Vec<String> {
    walkdir::WalkDir::new(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains("partial-"))
        .collect()
}

#[test]
fn builds_at_once_and_a_killed_one_harm_nothing() {
    let (directory, vendor) = vendor();
    let app = vendor.app("app").unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n\
               spec: {containers: [{image: quay.io/a:1}, {image: nginx}]}\n";
    file::write(&app.join("pod.yaml"), pod).unwrap();
    let out = directory.path().join("out");
    fs::create_dir(&out).unwrap();
    vendor.registry.hold();
    let mut builds: Vec<_> = (0..4)
        .map(|build| {
            let mut command = vendor.build(&app, &out.join(format!("{build}.tar")));
            let silent = command.stdout(Stdio::null()).stderr(Stdio::inherit());
            silent.spawn().unwrap()
        })
        .collect();
    // One layer each: both images have the same.
    vendor.registry.wait_for_held(4);
    let mut killed = builds.remove(0);
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success());
    assert!(!unfinished(directory.path()).is_empty());
    vendor.registry.release();
    for mut build in builds {
        assert!(build.wait().unwrap().success());
    }
    assert!(!out.join("0.tar").exists());
    let first = fs::read(out.join("1.tar")).unwrap();
    for other in ["2.tar", "3.tar"] {
        assert!(fs::read(out.join(other)).unwrap() == first, "{other}");
    }
    // The next one clears away what is left, and makes the same.
    let found = sources(&mut vendor.build(&app, &out.join("0.tar")));
    let expected = ["docker.io/library/nginx:latest", "quay.io/a:1"];
    assert_eq!(found, expected.map(str::to_owned).into());
    assert!(fs::read(out.join("0.tar")).unwrap() == first);
    assert_eq!(unfinished(directory.path()), [""; 0]);
}
