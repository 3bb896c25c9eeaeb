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

use super::lock::Locked;
use super::yaml::documents;

/// Fields that list containers.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Annotation of any object that names images which no container of it names.
pub(crate) const ANNOTATION: &str = "cluster.gravitational.io/images";
/// Comes with the base image.
pub(crate) const PAUSE: &str = "pause:1";

/// The cluster's own registry.
pub(crate) fn registry() -> String {
    format!("{}:{}", spec::LEADER_NAME, spec::REGISTRY_PORT)
}

/// An image that the cluster will ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The name under which it will.
    pub(crate) name: String,
    /// What it is pulled as, where that is another name.
    pub(crate) source: Option<String>,
    /// File and line.
    pub(crate) place: String,
}

/// What a text names.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// Images by what can be replaced in the text.
    pub(crate) images: Vec<Named>,
    /// Bytes of the names, in the same order.
    bytes: Vec<Range<usize>>,
    /// Images that annotations name; their text stays.
    pub(crate) annotated: Vec<Named>,
}

/// Finds the images of all Kubernetes objects in a text.
pub(crate) fn scan(text: &str, place: &str) -> Result<Scanned> {
    let documents =
        documents(text).map_err(|error| anyhow::anyhow!("{place}: not valid YAML: {error}"))?;
    let (mut found, mut annotations) = (Vec::new(), Vec::new());
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
        look(document, &mut found, &mut annotations);
    }
    let mut scanned = Scanned::default();
    for node in found {
        let Some(name) = node.text() else {
            continue;
        };
        scanned.images.push(Named {
            name: name.to_owned(),
            source: None,
            place: format!("{place}:{}", node.at.line),
        });
        scanned.bytes.push(node.bytes.clone());
    }
    for node in annotations {
        let Some(text) = node.text() else {
            continue;
        };
        let line = node.at.line;
        scanned.annotated.extend(listed(text).map(|name| Named {
            name: name.into(),
            source: None,
            place: format!("{place}:{line}"),
        }));
    }
    Ok(scanned)
}

/// Names in a text, separated by commas or white space.
pub(super) fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|name| !name.is_empty())
}

/// Finds containers, image volumes and annotations, however deep.
fn look<'a>(node: &'a Node, found: &mut Vec<&'a Node>, annotations: &mut Vec<&'a Node>) {
    match &node.value {
        Value::Scalar { .. } => {}
        Value::List(items) => items.iter().for_each(|item| look(item, found, annotations)),
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
                if key == "annotations" {
                    annotations.extend(value.get(ANNOTATION));
                }
                look(value, found, annotations);
            }
        }
    }
}

impl Scanned {
    /// Whether a name is to be made by a template of Go.
    pub(crate) fn is_template(&self) -> bool {
        let mut all = self.images.iter().chain(&self.annotated);
        all.any(|image| image.name.contains("{{"))
    }

    /// The text with every image named as in the cluster's registry. All
    /// other bytes stay.
    pub(crate) fn rewrite(&self, text: &str, replacements: &Replacements) -> Result<String> {
        let registry = registry();
        let mut edits = BTreeMap::new();
        for (image, bytes) in self.images.iter().zip(&self.bytes) {
            let (name, place) = (&image.name, &image.place);
            let written = text.get(bytes.clone()).unwrap_or_default();
            let rest = without_host(replacements.of(name).unwrap_or(name));
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

    /// Images of a text that is rewritten.
    pub(crate) fn into_rewritten(self, replacements: &Replacements) -> Vec<Named> {
        let replaced = self.images.into_iter().map(|image| Named {
            name: match replacements.of(&image.name) {
                Some(other) => other.to_owned(),
                None => image.name,
            },
            ..image
        });
        replaced.chain(replacements.apply(self.annotated)).collect()
    }
}

/// `--set-image`: what to take in place of all images of the same repository.
#[derive(Debug, Default)]
pub(crate) struct Replacements(Vec<(String, Reference)>);

impl Replacements {
    pub(crate) fn parse(images: &[String]) -> Result<Self> {
        let mut replacements: Vec<(String, Reference)> = Vec::new();
        for text in images {
            let image: Reference = text.parse().context("--set-image")?;
            let former = replacements.iter().find(|(_, one)| same_path(one, &image));
            if let Some((former, _)) = former
                && former != text
            {
                bail!(
                    "--set-image names {former} and {text}: an image can be replaced only by one"
                );
            }
            replacements.push((text.clone(), image));
        }
        Ok(Self(replacements))
    }

    /// What replaces an image, as it was written.
    fn of(&self, name: &str) -> Option<&str> {
        if self.0.is_empty() {
            return None;
        }
        let image: Reference = name.parse().ok()?;
        let found = self.0.iter().find(|(_, other)| same_path(other, &image));
        found.map(|(text, _)| text.as_str())
    }

    /// Has images whose names stay come from elsewhere.
    pub(crate) fn apply(&self, images: impl IntoIterator<Item = Named>) -> Vec<Named> {
        let replaced = images.into_iter().map(|image| Named {
            source: self.of(&image.name).map(str::to_owned),
            ..image
        });
        replaced.collect()
    }

    /// Fails when a replacement has nothing to replace: a name was mistyped.
    fn check(&self, images: &BTreeMap<String, (Option<String>, String)>) -> Result<()> {
        let used = |image: &Reference| {
            let mut names = images.keys().filter_map(|name| name.parse().ok());
            names.any(|name: Reference| same_path(&name, image))
        };
        if let Some((text, _)) = self.0.iter().find(|(_, image)| !used(image)) {
            let known: Vec<&str> = images.keys().map(String::as_str).collect();
            bail!(
                "--set-image {text} replaces no image; the images are {}",
                known.join(", ")
            );
        }
        Ok(())
    }
}

/// Whether two images have the same repository, on whatever registry.
fn same_path(a: &Reference, b: &Reference) -> bool {
    fn path(image: &Reference) -> &str {
        let path = image.repository();
        path.strip_prefix("library/").unwrap_or(path)
    }
    path(a) == path(b)
}

/// All images of a build, by name, with source and the first place of each.
#[derive(Debug, Default)]
pub(crate) struct Images(BTreeMap<String, (Option<String>, String)>);

/// An image that must be in the cluster's registry.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) source: Reference,
    /// Its name in the cluster's registry.
    pub(crate) reference: String,
}

impl Images {
    pub(crate) fn add(&mut self, image: Named) {
        self.0
            .entry(image.name)
            .or_insert((image.source, image.place));
    }

    /// What must be pulled, by name. What only the cluster's registry is named
    /// for is told.
    pub(crate) fn resolve(
        &self,
        replacements: &Replacements,
        sink: &dyn Sink,
    ) -> Result<Vec<Wanted>> {
        let registry = registry();
        replacements.check(&self.0)?;
        let mut wanted = BTreeMap::new();
        // Docker's own images are served with and without `library/`.
        let mut paths: BTreeMap<String, (Reference, &str)> = BTreeMap::new();
        let mut ours = Vec::new();
        for (name, (source, place)) in &self.0 {
            let image: Reference = name.parse().with_context(|| place.clone())?;
            let source: Reference = match source {
                Some(source) => source.parse().context("--set-image")?,
                None => image.clone(),
            };
            // Nodes ask for the digest of the name, which stays.
            if image.digest().is_some() && source.digest() != image.digest() {
                bail!(
                    "{place}: {name} is pinned to a digest, so that --set-image {source} cannot replace it: change the \
                     name there, for example by --set with a chart's value, or give --set-image this digest"
                );
            }
            let reference = image.in_registry(&registry);
            if source.registry() == registry {
                ours.push((reference, place));
                continue;
            }
            let path = without_host(&reference);
            let path = match path.strip_prefix("library/") {
                Some(rest) if !rest.contains('/') => rest,
                _ => path,
            };
            // The same digest is the same image.
            if let Some((other, there)) = paths.get(path)
                && other.to_string() != source.to_string()
                && (source.digest().is_none() || other.digest() != source.digest())
            {
                bail!(
                    "{other} ({there}) and {source} ({place}) would both be {reference} in the cluster's registry: \
                     give one of them another repository or tag"
                );
            }
            paths.insert(path.to_owned(), (source.clone(), place));
            wanted.insert(reference.clone(), Wanted { source, reference });
        }
        for (reference, place) in ours {
            if !wanted.contains_key(&reference) && without_host(&reference) != PAUSE {
                sink.warning(&format!(
                    "{place}: {reference} is not included, as nothing says where to pull it from: name its own registry"
                ));
            }
        }
        Ok(wanted.into_values().collect())
    }
}

/// An image in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Vendored {
    pub(crate) application: ApplicationImage,
    pub(crate) pulled: Pulled,
    /// What its source names, for the lock file.
    pub(crate) resolved: oci::Digest,
}

/// Pulls images into the cache, several at a time; they come back in order.
pub(crate) async fn pull(
    wanted: &[Wanted],
    locked: &Locked,
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
        let asked = locked.pin(&image.source)?;
        tasks.spawn(async move {
            let _place = places.acquire().await;
            let pulled = client.pull(&asked, &cache, &progress).await?;
            let manifest = oci::Digest::try_from(pulled.manifest.digest())?;
            // Whoever asks for an index by its digest must get it.
            let index = pulled.index.clone();
            let index = index.filter(|index| image.source.digest() == Some(index));
            let application = ApplicationImage {
                reference: image.reference,
                source: image.source.to_string(),
                digest: manifest.to_string(),
                index: index.map(|index| index.to_string()),
            };
            let resolved = pulled.index.clone().unwrap_or(manifest);
            let vendored = Vendored {
                application,
                pulled,
                resolved,
            };
            Ok::<_, anyhow::Error>((order, vendored))
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
        let rewritten = scan(text, "f")
            .unwrap()
            .rewrite(text, &Replacements::default())
            .unwrap();
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
            scan(&rewritten, "f")
                .unwrap()
                .rewrite(&rewritten, &Replacements::default())
                .unwrap(),
            rewritten
        );
    }

    #[test]
    fn a_form_that_cannot_be_kept_is_refused() {
        for image in ["\"ngin\\x78\"", ">-\n      nginx", "!!str nginx"] {
            let text =
                format!("apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: {image}\n");
            let rewritten = scan(&text, "f")
                .unwrap()
                .rewrite(&text, &Replacements::default());
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
                source: None,
                place: "f:1".into(),
            });
        }
        Ok(all
            .resolve(&Replacements::default(), sink)?
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

    #[test]
    fn annotations_name_images_and_stay() {
        let text = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  annotations:
    cluster.gravitational.io/images: a:1, quay.io/b:1
spec:
  template:
    metadata: {annotations: {cluster.gravitational.io/images: \"c:1\\nd:1\"}}
    spec: {containers: [{image: e:1}]}
";
        let scanned = scan(text, "f").unwrap();
        let annotated: Vec<_> = scanned.annotated.iter().map(|image| &*image.name).collect();
        assert_eq!(annotated, ["a:1", "quay.io/b:1", "c:1", "d:1"]);
        assert_eq!(scanned.annotated[3].place, "f:8");
        let none = Replacements::default();
        let expected = text.replace("image: e:1", "image: leader.telekube.local:5000/e:1");
        assert_eq!(scanned.rewrite(text, &none).unwrap(), expected);
    }

    #[test]
    fn images_are_replaced_by_repository() {
        let set = |images: &[&str]| {
            Replacements::parse(
                &images
                    .iter()
                    .map(|image| (*image).into())
                    .collect::<Vec<_>>(),
            )
        };
        let replacements = set(&["mirror.io:5000/team/app:2", "nginx:1.27"]).unwrap();
        let pod = |image: &str, annotation: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{annotations: {{{ANNOTATION}: {annotation}}}}}\n\
                 spec: {{containers: [{{image: '{image}'}}]}}\n"
            )
        };
        let text = pod("quay.io/team/app:1", "docker.io/library/nginx");
        let rewritten = scan(&text, "f").unwrap().rewrite(&text, &replacements);
        let expected = pod(
            "leader.telekube.local:5000/team/app:2",
            "docker.io/library/nginx",
        );
        assert_eq!(rewritten.unwrap(), expected);
        let resolve = |images: Vec<Named>| {
            let mut all = Images::default();
            images.into_iter().for_each(|image| all.add(image));
            let wanted = all.resolve(&replacements, &event::Discard);
            wanted.map(|wanted| {
                let text = wanted
                    .into_iter()
                    .map(|w| format!("{} {}", w.source, w.reference));
                text.collect::<Vec<_>>()
            })
        };
        let host = "leader.telekube.local:5000";
        let nginx = format!("docker.io/library/nginx:1.27 {host}/library/nginx:latest");
        // What a chart names is not rewritten: the other image is served so.
        let scanned = || scan(&text, "f").unwrap();
        let kept = |scanned: Scanned| {
            replacements.apply(scanned.images.into_iter().chain(scanned.annotated))
        };
        assert_eq!(
            resolve(scanned().into_rewritten(&replacements)).unwrap(),
            [
                nginx.clone(),
                format!("mirror.io:5000/team/app:2 {host}/team/app:2")
            ]
        );
        assert_eq!(
            resolve(kept(scanned())).unwrap(),
            [
                nginx,
                format!("mirror.io:5000/team/app:2 {host}/team/app:1")
            ]
        );
        let error = resolve(kept(scan(&pod("a:1", "nginx"), "f").unwrap()));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(
                "--set-image mirror.io:5000/team/app:2 replaces no image; the images are a:1, nginx"
            ),
            "{error}"
        );
        assert!(set(&["nginx:1", "quay.io/library/nginx:2"]).is_err());
        assert!(set(&["A B"]).is_err());
    }

    #[test]
    fn a_digest_is_replaced_only_by_itself() {
        let [pinned, other] = [b"a", b"b"].map(|bytes| oci::Digest::of(bytes));
        let name = format!("quay.io/acme/app:1@{pinned}");
        let resolve = |replacement: &str| {
            let replacements = Replacements::parse(&[replacement.into()])?;
            let named = Named {
                name: name.clone(),
                source: None,
                place: "charts/app (app/templates/pod.yaml)".into(),
            };
            let mut all = Images::default();
            let images = replacements.apply([named]);
            images.into_iter().for_each(|image| all.add(image));
            all.resolve(&replacements, &event::Discard)
        };
        let good = format!("reg.local/acme/app:2@{pinned}");
        let wanted = resolve(&good).unwrap();
        assert_eq!(wanted[0].source.to_string(), good);
        for bad in [
            "reg.local/acme/app:2",
            &format!("reg.local/acme/app@{other}"),
        ] {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(
                error.starts_with("charts/app (app/templates/pod.yaml): quay.io"),
                "{error}"
            );
            assert!(
                error.contains(&format!("--set-image {bad} cannot replace it")),
                "{error}"
            );
        }
    }

    #[test]
    fn two_sources_for_one_path_are_refused() {
        let pinned = format!("a@{}", oci::Digest::of(b""));
        let sink = event::Discard;
        for (two, one) in [
            (["quay.io/library/nginx:1", "nginx:1"], false),
            (["docker.io/library/nginx:1", "nginx:1"], true),
            (["quay.io/a/nginx:1", "quay.io/a/nginx:2"], true),
            (
                [&format!("quay.io/{pinned}"), &format!("gcr.io/{pinned}")],
                true,
            ),
        ] {
            assert_eq!(resolve(&two, &sink).is_ok(), one, "{two:?}");
        }
    }
}
