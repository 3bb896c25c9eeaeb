//! Container images: found in Kubernetes objects, renamed, pulled.
//!
//! In: YAML or JSON with any objects. Out: the images of all containers in
//! them, however deep, with their places; the same text with the names that
//! the cluster's registry has, all other bytes kept; and the images in the
//! cache.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use event::Sink;
use image::cluster::ApplicationImage;
use manifest::yaml::{Node, Value};
use oci::reference::without_host;
use oci::{Client, Layout, Progress, Pulled, Reference};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::yaml::documents;

/// Fields that list containers.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Comes with the base image.
const PAUSE: &str = "pause:1";

/// The cluster's own registry.
pub(crate) fn registry() -> String {
    format!("{}:{}", spec::LEADER_NAME, spec::REGISTRY_PORT)
}

/// An image that an object names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The name as it is written.
    pub(crate) name: String,
    /// File and line.
    pub(crate) place: String,
}

/// What a text names.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) images: Vec<Named>,
    /// Bytes of the names, in the same order.
    bytes: Vec<Range<usize>>,
}

/// Finds the images of all Kubernetes objects in a text.
pub(crate) fn scan(text: &str, place: &str) -> Result<Scanned> {
    let documents =
        documents(text).map_err(|error| anyhow::anyhow!("{place}: not valid YAML: {error}"))?;
    let mut found = Vec::new();
    for document in &documents {
        let kind = document.get("kind").and_then(Node::text);
        let version = document.get("apiVersion").and_then(Node::text);
        let (Some(kind), Some(version)) = (kind, version) else {
            continue;
        };
        if kind == "ImageSet" && version.starts_with("cluster.gravitational.io/") {
            let set = document.get("spec").and_then(|spec| spec.get("images"));
            found.extend(
                set.map(Node::items)
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|item| item.get("image")),
            );
        }
        containers(document, &mut found);
    }
    let mut scanned = Scanned {
        images: Vec::new(),
        bytes: Vec::new(),
    };
    for node in found {
        let Some(name) = node.text() else {
            continue;
        };
        scanned.images.push(Named {
            name: name.to_owned(),
            place: format!("{place}:{}", node.at.line),
        });
        scanned.bytes.push(node.bytes.clone());
    }
    Ok(scanned)
}

fn containers<'a>(node: &'a Node, found: &mut Vec<&'a Node>) {
    match &node.value {
        Value::Scalar { .. } => {}
        Value::List(items) => items.iter().for_each(|item| containers(item, found)),
        Value::Map(entries) => {
            for entry in entries {
                let (key, value) = (&entry.key, &entry.value);
                if CONTAINERS.contains(&key.as_str()) {
                    found.extend(
                        value
                            .items()
                            .iter()
                            .filter_map(|container| container.get("image")),
                    );
                }
                if key == "volumes" {
                    let images = value
                        .items()
                        .iter()
                        .filter_map(|volume| volume.get("image")?.get("reference"));
                    found.extend(images);
                }
                containers(value, found);
            }
        }
    }
}

impl Scanned {
    /// The text with every image named as in the cluster's registry. All
    /// other bytes stay.
    pub(crate) fn rewrite(&self, text: &str) -> Result<String> {
        let registry = registry();
        let mut edits = BTreeMap::new();
        for (image, bytes) in self.images.iter().zip(&self.bytes) {
            let (name, place) = (&image.name, &image.place);
            let written = text.get(bytes.clone()).unwrap_or_default();
            let rest = without_host(name);
            if format!("{registry}/{rest}") == *name {
                continue;
            }
            let quote = match written.strip_suffix(name.as_str()) {
                Some("") => "",
                _ if written == format!("'{name}'") => "'",
                _ if written == format!("\"{name}\"") => "\"",
                _ => bail!(
                    "{place}: the image `{name}` is written in a form that can't be replaced: write `image: {name}`"
                ),
            };
            // An alias leads to the same bytes more than once.
            edits.insert(
                bytes.start,
                (bytes.end, format!("{quote}{registry}/{rest}{quote}")),
            );
        }
        let mut rewritten = String::with_capacity(text.len() + 64);
        let mut copied = 0;
        for (start, (end, name)) in edits {
            rewritten.push_str(&text[copied..start]);
            rewritten.push_str(&name);
            copied = end;
        }
        rewritten.push_str(&text[copied..]);
        Ok(rewritten)
    }
}

/// All images of a build, by name, with the first place of each.
#[derive(Debug, Default)]
pub(crate) struct Images(BTreeMap<String, String>);

/// An image that must be in the cluster's registry.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) source: Reference,
    /// Its name in the cluster's registry.
    pub(crate) reference: String,
}

impl Images {
    pub(crate) fn add(&mut self, image: Named) {
        self.0.entry(image.name).or_insert(image.place);
    }

    /// What must be pulled, by name. What only the cluster's registry is named
    /// for is told.
    pub(crate) fn resolve(&self, sink: &dyn Sink) -> Result<Vec<Wanted>> {
        let registry = registry();
        let mut wanted: BTreeMap<String, (Wanted, &str)> = BTreeMap::new();
        let mut ours = Vec::new();
        for (name, place) in &self.0 {
            let source: Reference = name.parse().with_context(|| place.clone())?;
            let reference = match (source.tag(), source.digest()) {
                (Some(_), _) | (_, Some(_)) => source.in_registry(&registry),
                (None, None) => continue,
            };
            if source.registry() == registry {
                ours.push((reference, place));
                continue;
            }
            if let Some((other, there)) = wanted.get(&reference)
                && other.source != source
            {
                bail!(
                    "{} ({there}) and {source} ({place}) would both be {reference} in the cluster's registry: \
                     give one of them another repository or tag",
                    other.source
                );
            }
            wanted.insert(reference.clone(), (Wanted { source, reference }, place));
        }
        for (reference, place) in ours {
            if !wanted.contains_key(&reference) && without_host(&reference) != PAUSE {
                sink.warning(&format!(
                    "{place}: {reference} is not included, as nothing says where to pull it from: name its own registry"
                ));
            }
        }
        Ok(wanted.into_values().map(|(wanted, _)| wanted).collect())
    }
}

/// An image in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Vendored {
    pub(crate) application: ApplicationImage,
    pub(crate) pulled: Pulled,
}

/// Pulls images into the cache, several at a time; they come back in order.
pub(crate) async fn pull(
    wanted: &[Wanted],
    client: &Client,
    cache: &Layout,
    parallel: usize,
    sink: &Arc<dyn Sink>,
) -> Result<Vec<Vendored>> {
    let progress = Arc::new(Progress::new("container images", Arc::clone(sink)));
    let places = Arc::new(Semaphore::new(parallel));
    let mut tasks = JoinSet::new();
    for (order, image) in wanted.iter().cloned().enumerate() {
        let (client, cache, progress, places) = (
            client.clone(),
            cache.clone(),
            progress.clone(),
            places.clone(),
        );
        tasks.spawn(async move {
            let _place = places.acquire().await;
            let pulled = client.pull(&image.source, &cache, &progress).await?;
            if let (Some(_), Some(index)) = (image.source.digest(), &pulled.index) {
                bail!(
                    "{} is pinned to an index of several platforms, {index}, which is not supported by this release yet: \
                     pin it to its linux/amd64 manifest, {}",
                    image.source,
                    pulled.manifest.digest()
                );
            }
            let application = ApplicationImage {
                reference: image.reference,
                source: image.source.to_string(),
                digest: pulled.manifest.digest().to_string(),
            };
            Ok((order, Vendored { application, pulled }))
        });
    }
    let mut pulled = BTreeMap::new();
    // The first failure ends all others, as the set is dropped.
    while let Some(result) = tasks.join_next().await {
        let (order, image) = result.context("a transfer ended early")??;
        pulled.insert(order, image);
    }
    if !wanted.is_empty() {
        progress.finish();
    }
    Ok(pulled.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        scan(text, "f.yaml")
            .unwrap()
            .images
            .into_iter()
            .map(|image| image.name)
            .collect()
    }

    #[test]
    fn images_are_found_in_all_templates() {
        let text = "\
apiVersion: v1
kind: Pod
spec:
  containers: [{name: a, image: a:1}]
  initContainers:
  - {name: b, image: 'b:1'}
  ephemeralContainers:
  - image: c:1
  volumes:
  - name: v
    image: {reference: d:1}
---
apiVersion: batch/v1
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: e:1}]}}}}}
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  spec: {template: {spec: {containers: [{image: f:1}, {name: none}]}}}
---
apiVersion: cluster.gravitational.io/v1beta1
kind: ImageSet
spec: {images: [{image: g:1}]}
---
apiVersion: v1
kind: ConfigMap
data:
  image: no
  other: |
    containers:
    - image: no
---
containers: [{image: no}]
--- just text
";
        assert_eq!(
            names(text),
            ["a:1", "b:1", "c:1", "d:1", "e:1", "f:1", "g:1"]
        );
        let json =
            r#"{"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "x"}]}}"#;
        assert_eq!(names(json), ["x"]);
        assert_eq!(scan(text, "f.yaml").unwrap().images[1].place, "f.yaml:6");
        let error = scan("a: [", "f.yaml").unwrap_err().to_string();
        assert!(error.starts_with("f.yaml: not valid YAML: line"), "{error}");
    }

    #[test]
    fn only_the_names_change() {
        let text = "# é: quay.io/a/b:1\r\napiVersion: v1\r\nkind: Pod\r\nmetadata: {annotations: {image: \"quay.io/a/b:1\"}}\r\n\
            spec:\r\n  containers:\r\n  - image:   quay.io/a/b:1   # quay.io/a/b:1\r\n    args: [\"quay.io/a/b:1\"]\r\n  - {image: 'nginx', name: x}\r\n\
            \x20 - image: \"localhost:5000/p/q@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"\r\n\
            \x20 - image: leader.telekube.local:5000/z:1\r\n  - image: &same bitnami/redis:6\r\n  initContainers: [{image: *same}]\r\n...\r\n";
        let rewritten = scan(text, "f").unwrap().rewrite(text).unwrap();
        let expected = text
            .replace(
                "image:   quay.io/a/b:1  ",
                "image:   leader.telekube.local:5000/a/b:1  ",
            )
            .replace("'nginx'", "'leader.telekube.local:5000/nginx'")
            .replace("\"localhost:5000/p", "\"leader.telekube.local:5000/p")
            .replace("bitnami/redis", "leader.telekube.local:5000/bitnami/redis");
        assert_eq!(rewritten, expected);
        // And again there is nothing to do.
        assert_eq!(
            scan(&rewritten, "f").unwrap().rewrite(&rewritten).unwrap(),
            rewritten
        );
    }

    #[test]
    fn a_form_that_cannot_be_kept_is_refused() {
        for image in ["\"ngin\\x78\"", ">-\n      nginx", "!!str nginx"] {
            let text =
                format!("apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: {image}\n");
            let rewritten = scan(&text, "f").unwrap().rewrite(&text);
            match rewritten {
                Err(error) => assert!(
                    error.to_string().contains("write `image: nginx`"),
                    "{error}"
                ),
                Ok(rewritten) => assert_eq!(
                    names(&rewritten),
                    ["leader.telekube.local:5000/nginx"],
                    "{rewritten}"
                ),
            }
        }
    }

    fn resolve(images: &[&str], sink: &dyn Sink) -> Result<Vec<String>> {
        let mut all = Images::default();
        for name in images {
            all.add(Named {
                name: (*name).into(),
                place: "f:1".into(),
            });
        }
        Ok(all
            .resolve(sink)?
            .into_iter()
            .map(|w| format!("{} {}", w.source, w.reference))
            .collect())
    }

    #[test]
    fn each_image_is_pulled_once() {
        let sink = event::Memory::default();
        let host = "leader.telekube.local:5000";
        let all = resolve(
            &[
                "nginx",
                "nginx:latest",
                "quay.io/a:1",
                &format!("{host}/a:1"),
                &format!("{host}/pause:1"),
            ],
            &sink,
        );
        assert_eq!(
            all.unwrap(),
            [
                format!("quay.io/a:1 {host}/a:1"),
                format!("docker.io/library/nginx:latest {host}/nginx:latest")
            ]
        );
        assert_eq!(sink.events(), []);
        assert_eq!(resolve(&[&format!("{host}/b:1")], &sink).unwrap().len(), 0);
        assert_eq!(sink.events().len(), 1);
        let error = resolve(&["quay.io/a:1", "docker.io/a:1"], &sink)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("would both be leader.telekube.local:5000/a:1"),
            "{error}"
        );
        let error = format!(
            "{:#}",
            resolve(&["{{ .Values.image }}"], &sink).unwrap_err()
        );
        assert!(
            error.starts_with("f:1: `{{ .Values.image }}` is not the name of an image"),
            "{error}"
        );
    }
}
