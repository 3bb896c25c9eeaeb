//! Whole manifests: the documentation's sample, and bad ones.

use manifest::{Bytes, Diagnostic, HookName, Location, Manifest, Mode, NetworkType, PortRange};

// The crate's own name is what users import it as.
use gravity_manifest as manifest;

const FULL: &str = include_str!("../testdata/full.yaml");
const BAD: &str = include_str!("../testdata/bad.yaml");

fn parse(text: &str) -> Manifest {
    manifest::parse(text, "app.yaml").unwrap_or_else(|errors| panic!("{}", show(&errors)))
}

fn show(diagnostics: &[Diagnostic]) -> String {
    diagnostics
        .iter()
        .map(|diagnostic| format!("{diagnostic}\n"))
        .collect()
}

#[test]
fn the_whole_sample_is_read() {
    let manifest = parse(FULL);
    assert_eq!(manifest.metadata.name, "MyCluster");
    assert_eq!(
        manifest.metadata.resource_version.to_string(),
        "1.2.3-alpha.1"
    );
    assert_eq!(
        manifest.base_image.as_ref().map(ToString::to_string),
        Some("gravity:6.0.0".into())
    );
    assert_eq!(
        manifest.providers.generic.network.kind,
        Some(NetworkType::Vxlan)
    );
    assert_eq!(manifest.eula(), Some("file://eula.txt"));
    assert_eq!(
        (manifest.default_flavor(), manifest.flavors().len()),
        (Some("small"), 2)
    );
    let db = manifest.profile("db").unwrap();
    assert_eq!(db.requirements.cpu.min, Some(8));
    assert_eq!(db.requirements.ram.min, Some(Bytes(32_000_000_000)));
    assert_eq!(db.requirements.os[1].versions, ["7.2", "7.3"]);
    assert_eq!(db.requirements.volumes.len(), 4);
    assert!(!db.requirements.volumes[1].create_if_missing);
    assert_eq!(db.requirements.volumes[3].mode.map(Mode::bits), Some(0o755));
    let ranges = &db.requirements.network.ports[0].ranges;
    assert_eq!(
        ranges[1],
        PortRange {
            first: 10000,
            last: 10005
        }
    );
    assert_eq!(
        manifest.hooks.keys().copied().collect::<Vec<_>>(),
        [HookName::Install, HookName::PostInstall]
    );
    assert!(manifest.hooks[&HookName::Install].contains("name: db-seed"));
}

#[test]
fn the_least_manifest_is_metadata() {
    let manifest = parse("metadata: {name: empty, resourceVersion: 0.0.1}");
    assert!(
        manifest.base_image.is_none()
            && manifest.unsupported().is_empty()
            && manifest.flavors().is_empty()
    );
}

#[test]
fn json_reads_back_as_the_same_manifest() {
    let mut manifest = parse(FULL);
    let odd =
        "tab\t \u{7f}\u{85}\u{2028}\u{feff}\u{fffe}\u{10ffff}é \u{1} \"'\\ # : - \n\n  end \n";
    let long = format!("{odd}{}", "<p>text: {}</p>\n".repeat(20_000));
    let failed = manifest.inline(&mut |uri| match uri.field.as_str() {
        "hooks.postInstall.job" => Ok("kind: Job\n".into()),
        "logo" => Ok(format!("data:image/png;base64,{}", "A".repeat(100_000))),
        _ => Ok(long.clone()),
    });
    assert_eq!(show(&failed), "");
    let json = manifest.to_json().unwrap();
    let again = parse(&json);
    assert_eq!(again.release_notes.as_deref(), Some(long.as_str()));
    assert_eq!(again.to_json().unwrap(), json);
    assert_eq!(again, manifest);
}

#[test]
fn uris_are_found_and_replaced() {
    let mut manifest = parse(FULL);
    let fields: Vec<_> = manifest
        .uri_fields()
        .into_iter()
        .map(|uri| uri.field)
        .collect();
    assert_eq!(
        fields,
        [
            "releaseNotes",
            "logo",
            "installer.eula.source",
            "installer.flavors.description",
            "nodeProfiles[0].requirements.customChecks[1].script",
            "hooks.postInstall.job",
        ]
    );
    let found = manifest.inline(&mut |uri| match &uri.location {
        Location::File(path) if path.ends_with("eula.txt") => Ok("Be kind.".into()),
        Location::File(path) if path.ends_with("post-install-hook.yaml") => Ok("kind: Pod".into()),
        Location::File(path) => Err(format!("{} is not there", path.display())),
        Location::Web(_) => Ok("data:image/png;base64,AA==".into()),
    });
    assert_eq!(manifest.eula(), Some("Be kind."));
    assert_eq!(manifest.logo.as_deref(), Some("data:image/png;base64,AA=="));
    let lines: Vec<_> = found.iter().map(|one| (one.code, one.line)).collect();
    let line = |text: &str| FULL.lines().position(|line| line.contains(text)).unwrap() + 1;
    assert_eq!(
        lines,
        [
            ("fetch-failed", line("releaseNotes: file")),
            ("fetch-failed", line("file://flavors-help.txt")),
            ("fetch-failed", line("file://checks.sh")),
            ("invalid-value", line("file://post-install-hook.yaml")),
        ]
    );
}

#[test]
fn what_is_not_done_yet_is_named() {
    let names: Vec<_> = parse(FULL)
        .unsupported()
        .into_iter()
        .map(|one| one.message.split('`').nth(1).unwrap().to_owned())
        .collect();
    for name in [
        "license.enabled",
        "nodeProfiles[0].requirements.customChecks",
    ] {
        assert!(names.iter().any(|one| one == name), "{name} in {names:?}");
    }
    let text = "metadata: {name: a, resourceVersion: 1.0.0}\nproviders: {generic: {network: {type: wireguard}}}\n\
        hooks:\n  install: {job: 'kind: Job'}\n  update: {job: 'kind: Job'}\n  networkInstall: {job: 'kind: Job'}\n";
    let found = parse(text).unsupported();
    let expected = "\
app.yaml:2:33: error[not-supported]: `providers.generic.network.type` is not supported by this release yet
  help: remove it, or use a release that supports it
app.yaml:5:3: error[not-supported]: `hooks.update` is not supported by this release yet
  help: remove it, or use a release that supports it
app.yaml:6:3: error[not-supported]: `hooks.networkInstall` is not supported by this release yet
  help: remove it, or use a release that supports it
";
    assert_eq!(show(&found), expected);
}

#[test]
fn what_this_release_does_is_not_refused() {
    let text = r#"
metadata: {name: my_app-1, resourceVersion: 1.0.0}
baseImage: gravity:6.0.0
endpoints: [{name: Web, serviceName: web, protocol: http}]
installer:
  eula: {source: "Text: any"}
  flavors: {prompt: "How many?", default: one, items: [{name: one, nodes: [{profile: node, count: 1}]}]}
nodeProfiles:
  - name: node
    labels: {role: node, example.com/zone: "1"}
    taints: [{key: dedicated, value: db, effect: NoSchedule}]
    systemOptions: {kubelet: {args: ["--v=2"], hairpinMode: promiscuous-bridge}}
    requirements:
      cpu: {min: 1, max: 64}
      ram: {min: 1GB}
      os: [{name: debian, versions: ["12"]}]
      volumes:
        - {path: /var/data, capacity: 1GB, createIfMissing: true, uid: 1, gid: 1, mode: "0755", targetPath: /data}
        - {path: /var/dir-???, targetPath: /in/dir-???, recursive: true}
        - {path: /var/maybe, name: maybe, skipIfMissing: true}
      devices: [{path: /dev/nvidia*, permissions: rw, fileMode: "0666", uid: 0, gid: 0}]
      network: {ports: [{protocol: tcp, ranges: ["8080"]}]}
license: {enabled: false}
systemOptions: {docker: {storageDriver: overlay2, args: ["--log-level=DEBUG"]}, etcd: {args: ["-debug"]}}
releaseNotes: "<p>New</p>"
extensions: {logs: {disabled: true}, monitoring: {disabled: true}, catalog: {disabled: false}}
hooks: {install: {job: "kind: Job"}, postInstall: {job: "kind: Job"}, uninstall: }
"#;
    assert_eq!(show(&parse(text).unsupported()), "");
}

#[test]
fn patterns_that_lead_nowhere_are_refused() {
    let text = "metadata: {name: a, resourceVersion: 1.0.0}
nodeProfiles:
  - name: n
    requirements:
      volumes:
        - {path: '/a/dir-???', targetPath: '/b/dir-??'}
        - {path: /a/**, targetPath: /b}
        - {path: /c, targetPath: '/d/*'}
        - {path: /e, targetPath: /}
        - {path: '/f/*/g?', targetPath: '/f/*/g?/x'}
      devices: [{path: '/dev/sd[a'}]
";
    let errors = manifest::parse(text, "a").unwrap_err();
    let found: Vec<_> = errors.iter().map(|one| (one.line, one.code)).collect();
    assert_eq!(
        found,
        [
            (6, "conflict"),
            (7, "invalid-value"),
            (8, "conflict"),
            (9, "invalid-value"),
            (11, "invalid-value"),
        ]
    );
}

#[test]
fn every_error_is_told_at_once_with_its_position() {
    let errors = manifest::parse(BAD, "bad.yaml").unwrap_err();
    assert_eq!(show(&errors), include_str!("../testdata/bad.txt"));
}

#[test]
fn texts_that_are_no_manifest_are_errors() {
    let message = |text: &str| show(&manifest::parse(text, "x").unwrap_err());
    assert!(message("").contains("the manifest is empty"));
    assert!(message("a\n").contains("the manifest must be a mapping, not \"a\""));
    assert!(
        message("a: 1\n---\nb: 1\n")
            .starts_with("x:3:1: error[syntax]: the manifest has more than one")
    );
    assert!(message("metadata:\n  name: [a\n").starts_with("x:"));
    assert!(
        message("kind: Application\nmetadata: {name: a, resourceVersion: 1.0.0}")
            .contains("Cluster, Bundle")
    );
    assert!(
        message("apiVersion: v1\nmetadata: {name: a, resourceVersion: 1.0.0}")
            .contains("x:1:13: error[invalid")
    );
    let many = message(
        "metadata: 5\nhooks: []\nnodeProfiles: {}\nendpoints: [1]\nlogo: me.png\nbaseImage: x:1\n",
    );
    assert_eq!(many.matches("error[").count(), 6, "{many}");
}
