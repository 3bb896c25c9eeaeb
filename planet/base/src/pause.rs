//! The image of the container that holds a pod's namespaces.
//!
//! In: planet-init. Out: an OCI layout as a tar, which `ctr images import`
//! takes; its one file is planet-init as /pause.

use anyhow::Result;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::file;

/// Name of the image.
const REFERENCE: &str = "leader.telekube.local:5000/pause:1";

/// The archive.
pub(crate) fn archive(init: &[u8]) -> Result<Vec<u8>> {
    let layer = tar(&[("pause", 0o755, init)])?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [file::digest(&layer)] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    entry["annotations"] = json!({
        "io.containerd.image.name": REFERENCE,
        "org.opencontainers.image.ref.name": "1",
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;
    let name = |bytes: &[u8]| file::digest(bytes).replace("sha256:", "blobs/sha256/");
    let mut blobs = [
        (name(&layer), layer.as_slice()),
        (name(&config), config.as_slice()),
        (name(&manifest), manifest.as_slice()),
    ];
    blobs.sort();
    let mut files: Vec<(&str, u32, &[u8])> = vec![
        ("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", 0o644, &index),
    ];
    files.extend(
        blobs
            .iter()
            .map(|(name, bytes)| (name.as_str(), 0o644, *bytes)),
    );
    tar(&files)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": file::digest(bytes), "size": bytes.len() })
}

fn tar(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (name, mode, bytes) in files {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes)?;
    }
    Ok(builder.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    #[test]
    fn every_digest_leads_to_a_blob_and_the_layer_is_the_program() {
        let bytes = archive(b"the program").unwrap();
        assert_eq!(bytes, archive(b"the program").unwrap());
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, content);
        }
        let read = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let content = &files[&digest.replace("sha256:", "blobs/sha256/")];
            assert_eq!(file::digest(content), digest);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["io.containerd.image.name"], REFERENCE);
        let manifest: Value = serde_json::from_slice(&read(entry)).unwrap();
        let config: Value = serde_json::from_slice(&read(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/pause");
        let layer = read(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], file::digest(&layer));
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path_bytes().as_ref(), b"pause");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"the program");
    }
}
