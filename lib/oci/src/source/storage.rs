//! Images that `podman` or `buildah` keep without a daemon.
//!
//! In: the name of an image. Out: the image as the program exports it. Layers
//! lie unpacked in that storage, below user namespaces and drivers that only
//! the programs know: they are asked instead of their files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use host::command::{Cmd, installed};

use super::bundle::{Bundle, cached};
use super::{SourceError, blocking};
use crate::digest::Digest;
use crate::environment;
use crate::layout::Layout;
use crate::reference::Reference;
use crate::registry::Pulled;
use event::Progress;

/// The largest images take minutes.
const EXPORT: Duration = Duration::from_secs(3600);

/// The storage that `podman` and `buildah` share.
#[derive(Debug, Clone)]
pub struct Storage {
    tool: &'static str,
    /// Options before the command, such as `--root`.
    options: Vec<String>,
    /// Whether the user has named it: then it has to answer.
    named: bool,
    /// IDs by name, asked for once.
    images: Arc<Mutex<Option<HashMap<String, String>>>>,
}

impl Storage {
    /// The user's storage, where there is one and a program that reads it. It
    /// is not asked otherwise: the programs would make one.
    pub fn from_environment() -> Option<Self> {
        let usual = [
            environment::data_dir().map(|data| data.join("containers/storage")),
            Some("/var/lib/containers/storage".into()),
        ];
        let there = environment::path("CONTAINERS_STORAGE_CONF").is_some()
            || usual.iter().flatten().any(|dir| dir.is_dir());
        let tool = ["podman", "buildah"]
            .into_iter()
            .find(|tool| there && installed(tool))?;
        Some(Self {
            named: false,
            ..Self::new(tool, [])
        })
    }

    /// The storage that `tool`, which is `podman` or `buildah`, uses with these
    /// options.
    pub fn new(tool: &'static str, options: impl IntoIterator<Item = String>) -> Self {
        Self {
            tool,
            options: options.into_iter().collect(),
            named: true,
            images: Arc::default(),
        }
    }

    /// The program that is asked.
    pub fn tool(&self) -> &str {
        self.tool
    }

    pub(crate) async fn pull(
        &self,
        image: &Reference,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        let (this, image) = (self.clone(), image.clone());
        let (layout, progress) = (layout.clone(), progress.clone());
        blocking(move || this.find(&image, &layout, &progress)).await
    }

    fn find(
        &self,
        image: &Reference,
        layout: &Layout,
        progress: &Progress,
    ) -> Result<Option<Pulled>, SourceError> {
        let Some((name, id)) = self.id_of(image)? else {
            return Ok(None);
        };
        if let Ok(id) = format!("sha256:{}", id.trim_start_matches("sha256:")).parse::<Digest>()
            && let Some(pulled) = cached(&id, image, layout)?
        {
            return Ok(Some(pulled));
        }
        let dir = layout.temp_dir()?;
        let archive = dir.path().join("image.tar");
        let export = match self.tool {
            "podman" => self
                .command()
                .args(["save", "--quiet", "--format", "docker-archive", "--output"])
                .arg(&archive)
                .arg(&name),
            _ => self
                .command()
                .args(["push", "--quiet"])
                .arg(&name)
                .arg(format!("docker-archive:{}:{name}", archive.display())),
        };
        export.timeout(EXPORT).run()?;
        Bundle::open(&archive)?.pull(image, true, layout, progress)
    }

    /// Name and ID of an image in the storage.
    fn id_of(&self, image: &Reference) -> Result<Option<(String, String)>, SourceError> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let images = match &mut *images {
            Some(images) => images,
            None => images.insert(self.list()?),
        };
        let names = image.local_names().into_iter();
        Ok(names
            .filter_map(|name| images.get(&name).map(|id| (name.clone(), id.clone())))
            .next())
    }

    fn list(&self) -> Result<HashMap<String, String>, SourceError> {
        let format = match self.tool {
            "podman" => "{{.Repository}}:{{.Tag}} {{.ID}}",
            _ => "{{.Name}}:{{.Tag}} {{.ID}}",
        };
        let command = self.command();
        let listed = command
            .args(["images", "--noheading", "--no-trunc", "--format", format])
            .run();
        match listed {
            Ok(listed) => Ok(listed
                .stdout
                .lines()
                .filter_map(|line| line.trim().split_once(' '))
                .map(|(name, id)| (name.to_owned(), id.to_owned()))
                .collect()),
            Err(error) if !self.named => {
                tracing::debug!(%error, tool = self.tool, "no storage");
                Ok(HashMap::new())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn command(&self) -> Cmd {
        Cmd::new(self.tool).args(&self.options)
    }
}
