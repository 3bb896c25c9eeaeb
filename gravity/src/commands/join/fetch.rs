//! The image of a join by a program that carries none: the cluster's nodes give
//! it.
//!
//! In: the addresses and the token of a join. Out: the image in the state
//! directory. Its documents come first, without a trace on the node, so that
//! the node is checked before the rest is fetched.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use console::render;
use event::{Discard, Progress, Sink};
use image::cluster::{ClusterImage, MAX_DOCUMENT};
use image::digest::Hasher;
use image::{Image, Partial};
use installer::fetch::{self, Neighbours, Source};
use spec::{ClusterSpec, NodeSpec};
use tokio::sync::mpsc;

use crate::cli::Join;
use crate::commands::Session;

/// The program that runs.
const PROGRAM: &str = "/proc/self/exe";

/// An image that the nodes of a cluster give.
pub(super) struct Fetch {
    holders: Vec<SocketAddr>,
    sources: Vec<Arc<dyn Source>>,
    neighbours: Neighbours,
    end: Vec<u8>,
    /// Holds the documents.
    documents: Arc<Partial>,
}

impl Fetch {
    /// Gets the documents of the image, to which this node was admitted.
    pub(super) async fn begin(
        session: &Session,
        arguments: &Join,
        cluster: &ClusterSpec,
        neighbours: Neighbours,
    ) -> Result<Self> {
        let console = &session.console;
        console.step("Getting the image's documents from the cluster's nodes");
        let holders = holders(arguments, cluster);
        let sources: Vec<_> = holders.iter().map(|at| neighbours.source(*at)).collect();
        let root = &cluster.image.digest;
        let end = fetch::end(&sources, root, &**console).await?;
        let documents = Arc::new(Partial::nameless(&end, root)?);
        let pieces = documents.missing(MAX_DOCUMENT)?;
        let progress = Progress::new("documents", Arc::new(Discard));
        let (_, none) = mpsc::channel(1);
        fetch::fetch(&documents, pieces, &sources, none, &progress, &**console).await?;
        refuse_other_program(documents.image())?;
        Ok(Self {
            holders,
            sources,
            neighbours,
            end,
            documents,
        })
    }

    /// The image, of which only documents can be read.
    pub(super) fn documents(&self) -> &Image {
        self.documents.image()
    }

    /// Where the image will be.
    pub(super) fn path(session: &Session) -> PathBuf {
        session.layout.cluster_image()
    }

    /// How much room it takes that it hasn't taken, in bytes.
    pub(super) fn room(&self, session: &Session) -> u64 {
        let there = std::fs::metadata(Self::path(session)).map_or(0, |meta| meta.blocks() * 512);
        self.documents().length().saturating_sub(there)
    }

    /// Gets the rest; what came before, of a join that was cut off, is taken.
    pub(super) async fn complete(self, session: &Session) -> Result<Image> {
        let layout = &session.layout;
        let path = Self::path(session);
        let _lock = host::lock::Lock::acquire(&layout.operation_lock())?;
        agent::leave::adopt_state_dir(layout)?;
        let directory = layout.image();
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let root = self.documents().root().to_owned();
        let partial = Partial::open(&path, &self.end, &root)?;
        partial.put_elf(PROGRAM.as_ref())?;
        let partial = Arc::new(partial);
        let missing = partial.clone();
        let pieces = tokio::task::spawn_blocking(move || missing.missing(u64::MAX)).await??;
        session
            .console
            .step("Fetching the cluster image from the cluster's nodes");
        let progress = Progress::new("cluster image", session.console.clone());
        let console = &*session.console;
        let (found, more) = mpsc::channel(1);
        let fetched = tokio::select! {
            fetched = fetch::fetch(&partial, pieces, &self.sources, more, &progress, console) => fetched,
            never = self.neighbours.meet(&partial, &self.holders, found) => match never {},
        };
        let given = fetched.with_context(|| {
            format!(
                "what has come stays in {}: the same command goes on with it, `gravity leave` \
                 removes it",
                directory.display()
            )
        })?;
        for (name, bytes) in given.into_iter().filter(|(_, bytes)| *bytes > 0) {
            console.info(&format!("{} from {name}", render::bytes(bytes)));
        }
        let synced = partial.clone();
        tokio::task::spawn_blocking(move || synced.sync()).await??;
        Ok(Image::open(&path)?)
    }
}

/// Where the image may be: those that the user named, then all of the cluster.
fn holders(arguments: &Join, cluster: &ClusterSpec) -> Vec<SocketAddr> {
    let mut holders = arguments.peers.clone();
    let nodes = cluster.nodes.iter().filter(|node| !node.leaving);
    for address in nodes.filter_map(NodeSpec::address) {
        let address = SocketAddr::new(address, spec::CONTROLLER_PORT);
        if !holders.contains(&address) {
            holders.push(address);
        }
    }
    holders
}

/// What a node runs is what its cluster's image holds.
fn refuse_other_program(image: &Image) -> Result<()> {
    let mut program = std::fs::File::open(PROGRAM).context("open this program")?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = std::io::Read::read(&mut program, &mut buffer).context("read this program")?;
        if n == 0 {
            break;
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
    }
    if hasher.finish() == image.elf().digest {
        return Ok(());
    }
    let base = ClusterImage::open(image.clone()).and_then(|cluster| cluster.base());
    let base = base.context("read the base image")?.config.version;
    bail!(
        "this program is gravity {}, and not the one of the cluster's image, whose base is \
         gravity:{base}; copy /usr/local/bin/gravity from a node of the cluster and join with it",
        env!("CARGO_PKG_VERSION")
    )
}
