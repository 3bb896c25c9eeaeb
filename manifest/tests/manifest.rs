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
    let mut fields = Vec::new();
    let found = manifest.inline(&mut |uri| {
        fields.push(uri.field.clone());
        match &uri.location {
            Location::File(path) if path.ends_with("eula.txt") => Ok("Be kind.".into()),
            Location::File(path) if path.ends_with("post-install-hook.yaml") => {
                Ok("kind: Pod".into())
            }
            Location::File(path) => Err(format!("{} is not there", path.display())),
            Location::Web(_) => Ok("data:image/png;base64,AA==".into()),
        }
    });
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
        ]
    );
}

#[test]
fn a_file_that_is_empty_is_refused_where_a_text_is_needed() {
    let mut manifest = parse(FULL);
    let found = manifest.inline(&mut |uri| {
        Ok(match uri.image {
            true => "data:image/png;base64,AA==".into(),
            false => " \n".into(),
        })
    });
    let found: Vec<_> = found.iter().map(|one| one.message.clone()).collect();
    assert_eq!(
        found,
        [
            "`installer.eula.source`: can't fetch eula.txt: it is empty",
            "`nodeProfiles[0].requirements.customChecks[1].script`: can't fetch checks.sh: it is \
             empty",
            "`hooks.postInstall.job`: can't fetch post-install-hook.yaml: it is empty",
        ]
    );
}

#[test]
fn what_is_not_done_yet_is_named() {
    assert_eq!(show(&parse(FULL).unsupported()), "");
    let text = "metadata: {name: a, resourceVersion: 1.0.0}\nproviders: {generic: {network: {type: calico}}}\n\
        hooks:\n  install: {job: 'kind: Job'}\n  update: {job: 'kind: Job'}\n  networkUpdate: {job: 'kind: Job'}\n";
    let found = parse(text).unsupported();
    let expected = "\
app.yaml:2:33: error[not-supported]: `providers.generic.network.type` is not supported by this release yet
  help: remove it, or use a release that supports it
app.yaml:5:3: error[not-supported]: `hooks.update` is not supported by this release yet
  help: remove it, or use a release that supports it
app.yaml:6:3: error[not-supported]: `hooks.networkUpdate` is not supported by this release yet
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
  setupEndpoints: [Web]
  eula: {source: "Text: any"}
  flavors: {prompt: "How many?", default: one, items: [{name: one, nodes: [{profile: node, count: 1}]}]}
nodeProfiles:
  - name: node
    labels: {role: node, example.com/zone: "1"}
    taints: [{key: dedicated, value: db, effect: NoSchedule}]
    expandPolicy: fixed
    systemOptions: {kubelet: {args: ["--v=2"], hairpinMode: promiscuous-bridge}}
    requirements:
      cpu: {min: 1, max: 64}
      ram: {min: 1GB}
      os: [{name: debian, versions: ["12"]}]
      volumes:
        - {path: /var/data, capacity: 1GB, createIfMissing: true, uid: 1, gid: 1, mode: "0755", targetPath: /data, minTransferRate: 50MB/s}
        - {path: /var/dir-???, targetPath: /in/dir-???, recursive: true}
        - {path: /var/maybe, name: maybe, skipIfMissing: true}
      devices: [{path: /dev/nvidia*, permissions: rw, fileMode: "0666", uid: 0, gid: 0}]
      customChecks: [{description: "License", script: "exit 0"}]
      network: {minTransferRate: 50MB/s, ports: [{protocol: tcp, ranges: ["8080"]}]}
license: {enabled: true, type: certificate}
logo: data:image/png;base64,AA==
systemOptions: {docker: {storageDriver: overlay2, args: ["--log-level=DEBUG"]}, etcd: {args: ["-debug"]}}
releaseNotes: "<p>New</p>"
extensions: {logs: {disabled: true}, monitoring: {disabled: false}, catalog: {disabled: true}, kubernetes: {disabled: true}}
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

const EXTRA: &str = include_str!("../testdata/extra.yaml");

#[test]
fn fields_beyond_the_sample_are_read_and_named() {
    let manifest = parse(EXTRA);
    assert!(manifest.base_image.as_ref().is_some_and(|base| base.stable));
    let node = manifest.profile("node").unwrap();
    assert_eq!(node.role(), Some(manifest::ServiceRole::Node));
    assert_eq!(node.providers.aws.instance_types, ["c3.xlarge"]);
    assert_eq!(
        node.requirements.volumes[0].selinux_label.as_deref(),
        Some("none")
    );
    let ranges = &node.requirements.network.ports[0].ranges;
    assert_eq!(
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["80", "443", "8000-8080"]
    );
    assert_eq!(parse(&manifest.to_json().unwrap()), manifest);
    let refused: Vec<_> = (manifest.unsupported().into_iter())
        .map(|one| one.message.split('`').nth(1).unwrap().to_owned())
        .collect();
    for name in [
        "metadata.namespace",
        "metadata.hidden",
        "webConfig",
        "dependencies.packages",
        "dependencies.apps",
        "ingress.nginx.enabled",
        "storage.openebs.enabled",
        "providers.aws.iamPolicy",
        "providers.aws.terraform.script",
        "providers.aws.terraform.instanceScript",
        "providers.generic.network.type",
        "nodeProfiles[0].providers.aws.instanceTypes",
        "nodeProfiles[0].requirements.volumes[0].seLinuxLabel",
        "systemOptions.args",
        "systemOptions.docker.capacity",
        "systemOptions.dependencies.runtimePackage",
        "extensions.encryption",
        "hooks.clusterProvision",
        "hooks.clusterDeprovision",
    ] {
        assert!(
            refused.iter().any(|one| one == name),
            "{name} in {refused:?}"
        );
    }
}

#[test]
fn every_rule_has_its_error() {
    let head = "metadata: {name: a, resourceVersion: 1.0.0}\n";
    let cases = [
        (
            "baseImage: gravity:1.0.0\nsystemOptions: {runtime: {version: 0.0.0+latest}}",
            "3:26: error[conflict]: baseImage and",
        ),
        (
            "providers: {generic: {network: {type: wireguard}}}\nhooks: {networkInstall: {job: 'kind: Job'}}",
            "2:39: error[conflict]: networkInstall replaces the network that would be encrypted",
        ),
        (
            "baseImage: ubuntu:1",
            "2:12: error[invalid-value]: `baseImage`: \"ubuntu:1\" is not a base image",
        ),
        (
            "hooks: {clusterProvision: {job: 'kind: Job'}}",
            "2:27: error[conflict]: clusterProvision needs other hooks beside it: clusterDeprovision, nodesProvision, nodesDeprovision",
        ),
        (
            "hooks: {install: {type: update, job: 'kind: Job'}}",
            "2:25: error[invalid-value]: `hooks.install.type`: \"update\" is not the type of this hook",
        ),
        (
            "webConfig: '[1]'",
            "2:12: error[invalid-value]: `webConfig`: \"[1]\" is not a JSON object",
        ),
        (
            "logo: url(data:text/html,x)",
            "2:7: error[invalid-value]: `logo`: ",
        ),
        (
            "dependencies: {apps: [app:1.0.0]}",
            "2:23: error[invalid-value]: `dependencies.apps[0]`: \"app:1.0.0\" is not the name of a package",
        ),
        (
            "license: {type: paper}",
            "2:17: error[invalid-value]: `license.type`: \"paper\" is not a type of license",
        ),
        (
            "systemOptions: {docker: {storageDriver: devicemapper}}",
            "2:41: error[invalid-value]: `systemOptions.docker.storageDriver`",
        ),
        (
            "endpoints: [{name: a, serviceName: My_Service}]",
            "2:36: error[invalid-value]: `endpoints[0].serviceName`: \"My_Service\" is not a Kubernetes name",
        ),
        (
            "nodeProfiles: [{name: a, serviceRole: master, labels: {node-role.kubernetes.io/node: 'true'}}]",
            "2:39: error[conflict]: the role is master, but node by the labels",
        ),
        (
            "nodeProfiles: [{name: a, taints: [{key: k, effect: NoSchedule}, {key: k, effect: NoSchedule}]}]",
            "2:65: error[duplicate-name]: there are two taints \"k:NoSchedule\"",
        ),
        (
            "nodeProfiles: [{name: a, taints: [{key: 'k k', effect: NoSchedule}]}]",
            "2:41: error[invalid-value]: \"k k\" is not the name of a Kubernetes label",
        ),
        (
            "nodeProfiles: [{name: a, expandPolicy: never}]",
            "2:40: error[invalid-value]",
        ),
        (
            "nodeProfiles: [{name: General purpose}]",
            "2:23: error[invalid-value]: \"General purpose\" is not the value of a Kubernetes label",
        ),
        (
            "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a}, {path: /a}]}}]",
            "there are two volumes with path \"/a\"",
        ),
        (
            "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a, targetPath: /c}, {path: /b, targetPath: /c}]}}]",
            "there are two volumes with targetPath \"/c\"",
        ),
        (
            "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a, mode: 0755}]}}]",
            "2:68: error[wrong-type]: `nodeProfiles[0].requirements.volumes[0].mode` must be text in quotes, not the number 0755\n  help: write \"0755\"",
        ),
        (
            "nodeProfiles: [{name: a, requirements: {devices: [{path: /dev/x, fileMode: 438}]}}]",
            "must be text in quotes, not the number 438",
        ),
        (
            "nodeProfiles: [{name: a, requirements: {devices: [{path: /dev/x, permissions: rwx}]}}]",
            "\"rwx\" are not permissions",
        ),
        (
            "nodeProfiles: [{name: a, requirements: {network: {ports: [{ranges: ['80,90-85']}]}}}]",
            "\"90-85\" is not a port or a range of ports",
        ),
        (
            "nodeProfiles: [{name: a, requirements: {network: {minTransferRate: 50MB}}}]",
            "\"50MB\" is not a rate",
        ),
        (
            "metadata: {name: b, resourceVersion: 1.0.0}",
            "2:1: error[duplicate-field]: `metadata` is written twice, first in line 1",
        ),
        ("\tlogo: x", "x:2:2: error[syntax]: while parsing"),
    ];
    let mut other = Vec::new();
    for (text, expected) in cases {
        let errors = manifest::parse(&format!("{head}{text}\n"), "x").unwrap_err();
        if errors.len() != 1 || !show(&errors).contains(expected) {
            other.push(format!("{text}\n  {}  not {expected}\n", show(&errors)));
        }
    }
    assert!(other.is_empty(), "{}", other.concat());
    // Harmless forms that manifests have.
    for text in [
        "nodeProfiles: [{name: a, requirements: {cpu: {min: 4, max: 0}, ram: {min: 1GB, max: 0}}}]",
        "nodeProfiles:\nhooks: {install: {}, update: {job: }}\nsystemOptions: {docker: , etcd: ~}",
        "logo: url(\"data:image/png;base64,AA==\")",
        "nodeProfiles: [{name: General purpose, labels: {role: general}}]",
        "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a, targetPath: /b}, {path: /a, targetPath: /c}]}}]",
        // One file, wherever a distribution has it.
        "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a, targetPath: /c, skipIfMissing: true}, \
         {path: /b, targetPath: /c, skipIfMissing: true}]}}]",
    ] {
        parse(&format!("{head}{text}\n"));
    }
}

#[test]
fn marks_and_line_ends_of_other_systems_are_read() {
    let windows = format!("\u{feff}{}", FULL.replace('\n', "\r\n"));
    let manifest = manifest::parse_bytes(windows.as_bytes(), "app.yaml").unwrap();
    assert_eq!(manifest.metadata, parse(FULL).metadata);
    assert_eq!(manifest, parse(FULL));
    let bad = "\u{feff}metadata:\r\n  name: a\r\n  resourceVersion: x\r\n";
    assert!(show(&manifest::parse(bad, "x").unwrap_err()).starts_with("x:3:20: "));
}

#[test]
fn what_is_no_text_is_told_with_its_place() {
    let message = |bytes: &[u8]| show(&manifest::parse_bytes(bytes, "x").unwrap_err());
    assert!(
        message(b"\x7fELF\x02\x01")
            .starts_with("x:1:1: error[syntax]: the manifest holds the control character U+007F")
    );
    assert!(
        message(b"a: b\nc: \xff").starts_with(
            "x:2:4: error[syntax]: the manifest holds the byte 0xff, which is not UTF-8"
        )
    );
    assert!(
        message(b"a: b\0")
            .starts_with("x:1:5: error[syntax]: the manifest holds the control character U+0000")
    );
    assert!(
        message(
            "a: b"
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<_>>()
                .as_slice()
        )
        .starts_with("x:1:2: ")
    );
}

#[test]
fn many_errors_are_told_and_end() {
    let keys: String = (0..5_000).map(|i| format!("k{i}: 1\n")).collect();
    assert_eq!(manifest::parse(&keys, "x").unwrap_err().len(), 1000);
    let long = format!("{}: 1\n", "k".repeat(900));
    assert!(show(&manifest::parse(&long, "x").unwrap_err()).len() < 1000);
    let (profiles, nodes): (Vec<_>, Vec<_>) = (0..3_000)
        .map(|i| {
            (
                format!("{{name: p{i}}}"),
                format!("{{profile: q{i}, count: 1}}"),
            )
        })
        .unzip();
    let text = format!(
        "metadata: {{name: a, resourceVersion: 1.0.0}}\nnodeProfiles: [{}]\ninstaller: {{flavors: {{items: [{{name: a, nodes: [{}]}}]}}}}\n",
        profiles.join(", "),
        nodes.join(", ")
    );
    assert_eq!(manifest::parse(&text, "x").unwrap_err().len(), 1000);
}
