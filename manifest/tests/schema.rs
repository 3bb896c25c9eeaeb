//! The schema against the decoder: what one refuses the other doesn't take.

use boon::{Compiler, Schemas};
use gravity_manifest as manifest;
use serde_json::Value;

/// What the schema finds wrong with each text.
fn check(texts: &[String]) -> Vec<Option<String>> {
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.enable_format_assertions();
    let added = compiler.add_resource("manifest.json", manifest::schema());
    added.unwrap_or_else(|error| panic!("{error}"));
    let compiled = compiler.compile("manifest.json", &mut schemas);
    let schema = compiled.unwrap_or_else(|error| panic!("{error}"));
    let check = |text: &String| {
        let value: Value =
            serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        schemas
            .validate(&value, schema)
            .err()
            .map(|error| error.to_string())
    };
    texts.iter().map(check).collect()
}

#[test]
fn samples_fit_the_schema() {
    let full = include_str!("../testdata/full.yaml").to_owned();
    let extra = include_str!("../testdata/extra.yaml").to_owned();
    let json = |text: &str| manifest::parse(text, "x").unwrap().to_json().unwrap();
    let texts = [
        json(&full),
        json(&extra),
        full,
        extra,
        "metadata: {name: a, resourceVersion: 1.0.0}".into(),
        "metadata: {name: a, resourceVersion: 1.0.0, repository: }\nkind:\nhooks: {install: {type: }}".into(),
    ];
    assert_eq!(check(&texts), [const { None }; 6]);
}

#[test]
fn what_the_schema_refuses_the_decoder_refuses_too() {
    let bad = [
        "{}",
        "kind: Application",
        "apiVersion: v1",
        "metadata: {name: a, resourceVersion: 1.0}",
        "metadata: {name: a b, resourceVersion: 1.0.0}",
        "metadata: {name: a, resourceVersion: 1.0.0, repository: mine}",
        "metadata: {name: a, resourceVersion: 1.0.0, createdTimestamp: today}",
        "baseimage: gravity:6.0.0",
        "baseImage: debian:12",
        "logo: me.png",
        "endpoints: {name: a}",
        "endpoints: [{serviceName: a}]",
        "endpoints: [{name: a, serviceName: a, port: 70000}]",
        "endpoints: [{name: a, serviceName: A_b}]",
        "installer: {eula: {source: }}",
        "installer: {flavors: {items: [{name: a, nodes: [{profile: a, count: '1'}]}]}}",
        "nodeProfiles: [{name: ' '}]",
        "nodeProfiles: [{name: a, serviceRole: worker}]",
        "nodeProfiles: [{name: a, taints: [{key: a, effect: Never}]}]",
        "nodeProfiles: [{name: a, requirements: {cpu: {min: -1}}}]",
        "nodeProfiles: [{name: a, requirements: {ram: {min: 32XB}}}]",
        "nodeProfiles: [{name: a, requirements: {volumes: [{capacity: 1GB}]}}]",
        "nodeProfiles: [{name: a, requirements: {volumes: [{path: var/lib}]}}]",
        "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a, mode: 755}]}}]",
        "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a, minTransferRate: 5MB}]}}]",
        "nodeProfiles: [{name: a, requirements: {volumes: [{path: /a, recursive: 'yes'}]}}]",
        "nodeProfiles: [{name: a, requirements: {devices: [{path: /a, fileMode: '0888'}]}}]",
        "nodeProfiles: [{name: a, requirements: {devices: [{path: /a, permissions: x}]}}]",
        "nodeProfiles: [{name: a, requirements: {network: {ports: [{ranges: [http]}]}}}]",
        "nodeProfiles: [{name: a, requirements: {network: {ports: [{protocol: sctp, ranges: ['1']}]}}}]",
        "license: true",
        "systemOptions: {docker: {storageDriver: aufs}}",
        "systemOptions: {kubelet: {hairpinMode: none}}",
        "extensions: {encryption: {caCert: a}}",
        "hooks: {instal: {job: a}}",
        "hooks: {install: {type: update, job: 'kind: Job'}}",
        "dependencies: {apps: [a]}",
    ];
    let head = "metadata: {name: a, resourceVersion: 1.0.0}\n";
    let texts: Vec<_> = bad
        .iter()
        .map(|text| match text.starts_with(['m', '{']) {
            true => (*text).to_owned(),
            false => format!("{head}{text}"),
        })
        .collect();
    for (text, error) in texts.iter().zip(check(&texts)) {
        assert!(error.is_some(), "the schema takes {text}");
        assert!(
            manifest::parse(text, "x").is_err(),
            "the decoder takes {text}"
        );
    }
}
