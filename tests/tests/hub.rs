//! A hub that is the real registry, with TLS and passwords, and real `tele`:
//! what is pushed comes back byte for byte, and a second version moves only
//! what changed. Needs the registry that `make base` built.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gravity_tests::process;
use gravity_tests::registry::{PASSWORD, Registry, USER};
use image::cluster::{BASE_ARTIFACT, BASE_CONFIG, GRAVITY_ELF, LAYER_TAR};
use oci::Layout;
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A vendor with a registry and a home without anything.
struct Vendor {
    dir: tempfile::TempDir,
    registry: Registry,
}

impl Vendor {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::start_secure(&dir.path().join("registry")).unwrap();
        let config = dir.path().join("home/.config/containers");
        fs::create_dir_all(&config).unwrap();
        std::os::unix::fs::symlink(dir.path().join("registry/certs.d"), config.join("certs.d"))
            .unwrap();
        Self { dir, registry }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        gravity_tests::file::write(&path, text).unwrap();
    }

    fn host(&self) -> String {
        self.registry.address().to_string()
    }

    fn hub(&self) -> String {
        format!("https://{}/team/images", self.host())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(gravity_tests::registry::tele().unwrap());
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.at("home"))
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("GRAVITY_HUB", self.hub())
            .env("CONTAINERS_REGISTRIES_CONF", "/dev/null")
            .current_dir(self.at("home"));
        command
    }

    fn tele(&self, arguments: &[&str]) -> String {
        process::text(&mut self.command(arguments)).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let Output { status, stderr, .. } = self.command(arguments).output().unwrap();
        assert!(!status.success(), "{arguments:?}");
        String::from_utf8(stderr).unwrap()
    }

    fn log_in(&self, password: &str) -> Output {
        let mut command = self.command(&["login", &self.host(), "-u", USER, "--password-stdin"]);
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), password.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Makes base images in a local hub; none is real.
    fn make_bases(&self, versions: &[(&str, &str)]) {
        let hub = Layout::open_or_create(self.at("local")).unwrap();
        for (version, fits) in versions {
            let config = json!({
                "version": version, "planet_config_version": 1, "product_versions": fits,
                "platform": "linux/amd64", "components": [],
            });
            let config = config.to_string();
            let config = hub.put_blob_bytes(config.as_bytes(), BASE_CONFIG).unwrap();
            let rootfs = hub.put_blob_bytes(&noise(5 << 20, 1), LAYER_TAR).unwrap();
            let elf = hub.put_blob_bytes(&noise(3 << 20, 2), GRAVITY_ELF).unwrap();
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BASE_ARTIFACT,
                "config": config, "layers": [rootfs, elf],
            });
            let manifest = manifest.to_string();
            let base = hub.put_blob_bytes(manifest.as_bytes(), MANIFEST).unwrap();
            hub.tag(&format!("gravity:{version}"), base).unwrap();
        }
    }

    /// Writes the manifest of an image with `size` bytes of resources that
    /// follow from `seed`.
    fn app(&self, name: &str, version: &str, size: usize, seed: u64) {
        self.put(
            "app/app.yaml",
            &format!(
                "apiVersion: cluster.gravitational.io/v2\nkind: Cluster\n\
                 metadata:\n  name: {name}\n  resourceVersion: {version}\n"
            ),
        );
        fs::create_dir_all(self.at("app/resources")).unwrap();
        gravity_tests::file::write(&self.at("app/resources/data.bin"), noise(size, seed)).unwrap();
    }

    fn build(&self, output: &str) -> PathBuf {
        let path = self.at(output);
        self.tele(&[
            "build",
            "-o",
            path.to_str().unwrap(),
            self.at("app").to_str().unwrap(),
        ]);
        path
    }

    fn list(&self, arguments: &[&str]) -> Vec<(String, String, String)> {
        let text = self.tele(&[&["ls", "--format", "json"], arguments].concat());
        let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
        let field = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
        rows.iter()
            .map(|row| {
                (
                    field(row, "name"),
                    field(row, "version"),
                    field(row, "kind"),
                )
            })
            .collect()
    }
}

/// Bytes that don't compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

fn row(name: &str, version: &str, kind: &str) -> (String, String, String) {
    (name.into(), version.into(), kind.into())
}

#[test]
fn an_image_goes_to_a_registry_and_comes_back_byte_for_byte() {
    let vendor = Vendor::new();

    // Nobody gets in without a login, and a wrong one is not kept.
    let error = vendor.refused(&["ls"]);
    assert!(
        error.contains("401") && error.contains("is not there"),
        "{error}"
    );
    let wrong = vendor.log_in("guess");
    assert!(!wrong.status.success());
    assert!(!vendor.at("home/.config/containers/auth.json").exists());
    let right = vendor.log_in(PASSWORD);
    assert!(
        right.status.success(),
        "{}",
        String::from_utf8_lossy(&right.stderr)
    );
    for text in [right.stdout, right.stderr, wrong.stderr] {
        assert!(!String::from_utf8(text).unwrap().contains(PASSWORD));
    }
    assert_eq!(vendor.list(&["--all"]), []);

    // The base comes from the registry too: the newest that fits.
    vendor.make_bases(&[("6.0.0", ">=6, <7"), ("6.1.0", ">=6, <7"), ("9.0.0", ">=9")]);
    let local = vendor.at("local");
    for version in ["6.0.0", "6.1.0", "9.0.0"] {
        let image = format!("gravity:{version}");
        vendor.tele(&["push", &image, "--from", local.to_str().unwrap()]);
    }
    vendor.app("MyCluster", "1.0.0", 4 << 20, 7);
    let first = vendor.build("first.tar");
    let text = String::from_utf8_lossy(&fs::read(&first).unwrap()).into_owned();
    assert!(text.contains("\"reference\":\"gravity:6.1.0\""));

    let before = vendor.registry.stored();
    let said = vendor.tele(&["push", first.to_str().unwrap()]);
    assert!(said.contains("MyCluster:1.0.0"), "{said}");
    let whole = vendor.registry.stored() - before;
    // The program is in the registry, as part of the base.
    let size = fs::metadata(&first).unwrap().len();
    assert!(whole < size - (2 << 20), "{whole} of {size} bytes");

    // A second version, and an executable, share what did not change.
    vendor.app("MyCluster", "1.1.0-rc.1+b7", 1 << 20, 8);
    let second = vendor.build("second");
    let before = vendor.registry.stored();
    vendor.tele(&["push", second.to_str().unwrap()]);
    let changed = vendor.registry.stored() - before;
    assert!(
        (1 << 20..(1 << 20) + 100_000).contains(&changed),
        "{changed} bytes for 1 MiB of changes"
    );
    let before = vendor.registry.stored();
    vendor.tele(&["push", second.to_str().unwrap()]);
    assert_eq!(vendor.registry.stored(), before);

    let base = |version| row("gravity", version, "base image");
    let cluster = |version| row("MyCluster", version, "cluster image");
    assert_eq!(
        vendor.list(&["--all"]),
        [
            base("9.0.0"),
            base("6.1.0"),
            base("6.0.0"),
            cluster("1.1.0-rc.1+b7"),
            cluster("1.0.0"),
        ]
    );
    assert_eq!(vendor.list(&[]), [base("9.0.0"), cluster("1.1.0-rc.1+b7")]);
    assert_eq!(vendor.list(&["mycluster"]), [cluster("1.1.0-rc.1+b7")]);
    let table = vendor.tele(&["ls", "--all"]);
    assert!(
        table.contains("MyCluster") && table.contains("1.1.0-rc.1+b7"),
        "{table}"
    );
    let yaml = vendor.tele(&["ls", "--format", "yaml"]);
    assert!(yaml.contains("name: MyCluster"), "{yaml}");

    // Into an empty state directory, byte for byte.
    let state = vendor.at("empty");
    let state = ["--state-dir", state.to_str().unwrap()];
    vendor.tele(&[&["pull", "MyCluster:stable"], &state[..]].concat());
    assert!(same(&first, &vendor.at("home/mycluster-1.0.0.tar")));
    vendor.tele(&[&["pull", "MyCluster", "-o", "exe"], &state[..]].concat());
    assert!(same(&second, &vendor.at("home/exe")));
    let mode = fs::metadata(vendor.at("home/exe")).unwrap().permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o755
    );
    let error = vendor.refused(&["pull", "MyCluster", "-o", "exe"]);
    assert!(error.contains("exists already"), "{error}");
    let error = vendor.refused(&["pull", "MyCluster:3.0.0"]);
    assert!(error.contains("there are 1.0.0, 1.1.0-rc.1+b7"), "{error}");
    let error = vendor.refused(&["pull", "gravity:6.0.0"]);
    assert!(error.contains("base image"), "{error}");

    // The same version with another content is an accident.
    vendor.app("MyCluster", "1.0.0", 1000, 9);
    let other = vendor.build("other.tar");
    let error = vendor.refused(&["push", other.to_str().unwrap()]);
    assert!(error.contains("replace it with -f"), "{error}");
    vendor.tele(&["push", "-f", other.to_str().unwrap()]);
    vendor.tele(&["pull", "MyCluster:1.0.0", "-f", "-o", "exe"]);
    assert!(same(&other, &vendor.at("home/exe")));

    // What is damaged is not pushed.
    let mut bytes = fs::read(&second).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    gravity_tests::file::write(&vendor.at("damaged"), bytes).unwrap();
    let error = vendor.refused(&["push", vendor.at("damaged").to_str().unwrap()]);
    assert!(error.contains("is damaged"), "{error}");

    vendor.tele(&["rm", "MyCluster:1.1.0-rc.1+b7"]);
    assert_eq!(vendor.list(&["MyCluster", "--all"]), [cluster("1.0.0")]);
    let error = vendor.refused(&["rm", "MyCluster:1.1.0-rc.1+b7"]);
    assert!(error.contains("has no MyCluster:1.1.0-rc.1+b7"), "{error}");
    vendor.tele(&["logout", &vendor.host()]);
    assert!(vendor.refused(&["ls"]).contains("401"));
}

#[test]
fn a_container_that_builds_knows_its_hub_by_two_variables() {
    let vendor = Vendor::new();
    vendor.make_bases(&[("6.0.0", ">=6, <7")]);
    let local = vendor.at("local");
    // As in the documentation's container: no login, no file, no --hub.
    let ops = |token: &str, arguments: &[&str]| {
        let mut command = vendor.command(arguments);
        command
            .env_remove("GRAVITY_HUB")
            .env("OPS_URL", vendor.hub())
            .env("OPS_TOKEN", token)
            .env(
                "TELE_FLAGS",
                format!("--state-dir={}", vendor.at("tele-cache").display()),
            );
        command
    };
    let good = |arguments: &[&str]| process::text(&mut ops(PASSWORD, arguments)).unwrap();
    good(&["push", "gravity:6.0.0", "--from", local.to_str().unwrap()]);
    vendor.app("shop", "1.0.0", 1000, 1);
    let app = vendor.at("app");
    let app = app.to_str().unwrap();
    good(&["build", "-o", "cluster.tar", app]);
    assert!(vendor.at("tele-cache").is_dir());
    good(&["push", "cluster.tar"]);
    assert!(good(&["ls"]).contains("shop"));
    let wrong = ops("guess", &["build", "-f", "-o", "cluster.tar", app])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&wrong.stderr);
    assert!(!wrong.status.success() && text.contains("401"), "{text}");
    assert!(!text.contains("guess"), "{text}");
    // The token is for that hub, and for nobody else.
    let mut other = ops(PASSWORD, &["ls"]);
    let other = other
        .env("OPS_URL", "https://127.0.0.1:1/x")
        .env("GRAVITY_HUB", vendor.hub());
    assert!(!other.output().unwrap().status.success());
}

#[test]
fn what_a_new_version_brings_is_told_and_is_what_moves() {
    let vendor = Vendor::new();
    assert!(vendor.log_in(PASSWORD).status.success());
    vendor.make_bases(&[("6.0.0", ">=6, <7")]);
    let local = vendor.at("local");
    vendor.tele(&["push", "gravity:6.0.0", "--from", local.to_str().unwrap()]);
    vendor.app("shop", "1.0.0", 100_000, 1);
    vendor.put("app/resources/notes.txt", "old\n");
    let old = vendor.build("old.tar");
    vendor.app("shop", "1.1.0", 1 << 20, 2);
    vendor.put("app/resources/notes.txt", "new\n");
    vendor.put("app/resources/more.txt", "more\n");
    // An archive and an executable are compared alike.
    let new = vendor.build("new");
    let (old, new) = (old.to_str().unwrap(), new.to_str().unwrap());
    let diff = |one: &str, other: &str| -> Value {
        let text = vendor.tele(&["diff", "--format", "json", one, other]);
        serde_json::from_str(&text).unwrap()
    };
    let found = diff(old, new);
    assert_eq!(
        (&found["old"], &found["new"]),
        (&json!("shop 1.0.0"), &json!("shop 1.1.0"))
    );
    assert_eq!(found["same"], false);
    let section = |name: &str| {
        let sections = found["sections"].as_array().unwrap();
        let section = sections.iter().find(|section| section["name"] == name);
        let changes = section.map(|section| section["changes"].as_array().unwrap());
        let names = changes.into_iter().flatten().map(|change| &change["name"]);
        names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(section("manifest"), ["metadata.resourceVersion"]);
    let files = [
        "app.yaml",
        "resources/data.bin",
        "resources/more.txt",
        "resources/notes.txt",
    ];
    assert_eq!(section("resources"), files);
    assert_eq!(section("components"), [""; 0]);

    // What it says is added is what the registry gets.
    vendor.tele(&["push", old]);
    let before = vendor.registry.stored();
    vendor.tele(&["push", new]);
    let moved = vendor.registry.stored() - before;
    let added = found["bytes"]["added"].as_u64().unwrap();
    assert!(
        added > 1 << 20 && moved.abs_diff(added) < 100_000,
        "{added} told, {moved} moved"
    );

    let text = vendor.tele(&["diff", old, new]);
    assert!(
        text.contains("shop 1.0.0 -> shop 1.1.0") && text.contains("more.txt"),
        "{text}"
    );
    assert_eq!(diff(new, new)["same"], true);
    assert!(
        vendor
            .refused(&["diff", old, "/dev/null"])
            .contains("/dev/null")
    );
}

#[test]
fn a_directory_is_a_hub_too() {
    let vendor = Vendor::new();
    vendor.make_bases(&[("6.0.0", ">=6, <7")]);
    let local = vendor.at("local");
    let hub = ["--hub", local.to_str().unwrap()];
    let tele = |arguments: &[&str]| vendor.tele(&[arguments, &hub[..]].concat());
    for (version, seed) in [("1.0.0", 1), ("1.1.0", 2)] {
        vendor.app("app", version, 100_000, seed);
        let path = vendor.at(version);
        let (path, app) = (path.to_str().unwrap(), vendor.at("app"));
        tele(&["build", "-o", path, app.to_str().unwrap()]);
        tele(&["push", path]);
    }
    tele(&["pull", "app:1.0", "-o", "out"]);
    assert!(same(&vendor.at("1.0.0"), &vendor.at("home/out")));
    tele(&["rm", "app:1.0.0"]);
    tele(&["pull", "app", "-f", "-o", "out"]);
    assert!(same(&vendor.at("1.1.0"), &vendor.at("home/out")));
    tele(&["rm", "app:1.1.0"]);
    // The base still has all its blobs, and nothing else is left.
    let left = fs::read_dir(local.join("blobs/sha256")).unwrap().count();
    assert_eq!(left, 4);
    assert_eq!(
        tele(&["ls", "--format", "json"])
            .matches("base image")
            .count(),
        1
    );
}
