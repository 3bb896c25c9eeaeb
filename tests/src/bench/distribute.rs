//! An image to nodes that all get it at one moment, by the code by which they do,
//! over TLS on loopback.
//!
//! In: the image's size. Out: a row for each number of nodes, against one node
//! alone. Links are what is scarce: each node gives and takes at most [`RATE`], in
//! each direction. That nodes find each other is not part of it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use console::render;
use event::{Discard, Progress, Sink};
use futures::future::try_join_all;
use image::{Encoding, Image, Partial, Writer, digest};
use installer::fetch::{self, Remote, Source};
use installer::images::Coming;
use pki::tls::{self, Identity, Trust};
use pki::{Authority, Leaf};
use ring::rand::{SecureRandom, SystemRandom};
use rpc::controller::Refusal;
use rpc::images::{ADMITTED, Have, Images, Range};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use super::{Bench, Row, Target};
use crate::file;

/// What a node's link carries each way, in bytes a second.
const RATE: f64 = 20e6;
/// Numbers of nodes.
const NODES: [u8; 4] = [2, 4, 8, 16];
/// Blobs of the image.
const BLOBS: u64 = 8;
/// How long certificates are good.
const LIFE: Duration = Duration::from_secs(3600);

/// The rows.
pub(super) fn rows(bench: &Bench<'_>, megabytes: u64) -> Vec<Row> {
    let row = |nodes: &u8| {
        let what = format!("{megabytes} MB to {nodes} nodes at one moment");
        let target = Target::Ratio(1.0 + f64::from(*nodes).log2());
        Row::new(&what, "to one node", "s", Some(target))
    };
    let mut rows: Vec<_> = NODES.iter().map(row).collect();
    if let Err(error) = measure(bench, megabytes, &mut rows) {
        rows[0].note(&format!("{error:#}"));
    }
    rows
}

fn measure(bench: &Bench<'_>, megabytes: u64, rows: &mut [Row]) -> Result<()> {
    bench
        .console
        .step(&format!("Making an image of {megabytes} MB"));
    let path = bench.path("distribute");
    make_image(&path, bench, megabytes * 1_000_000 / BLOBS)?;
    let runtime = tokio::runtime::Runtime::new().context("starting a runtime")?;
    let distribute = |nodes: u8| -> Result<f64> {
        bench
            .console
            .step(&format!("Giving it to {nodes} node(s) at one moment"));
        let (seconds, first) = runtime.block_on(distribute(&path, nodes))?;
        bench.console.info(&format!(
            "{seconds:.1} s; the one that had it gave {}",
            render::bytes(first)
        ));
        Ok(seconds)
    };
    let alone = distribute(1)?;
    for (row, nodes) in rows.iter_mut().zip(NODES) {
        row.ours.push(distribute(nodes)?);
        row.peer.push(alone);
    }
    Ok(())
}

/// An image with blobs of noise.
fn make_image(path: &Path, bench: &Bench<'_>, bytes: u64) -> Result<()> {
    let (elf, blob) = (bench.path("distribute-elf"), bench.path("distribute-blob"));
    file::write(&elf, b"no program")?;
    let mut writer = Writer::create(path, &elf)?;
    let root = writer.add_blob_bytes(b"{}", "application/json")?;
    let mut noise = vec![0; usize::try_from(bytes)?];
    for _ in 0..BLOBS {
        let filled = SystemRandom::new().fill(&mut noise);
        ensure!(filled.is_ok(), "there is no randomness");
        file::write(&blob, &noise)?;
        let digest = digest::sha256(&noise);
        writer.add_blob_file(&blob, &digest, "application/octet-stream", Encoding::Raw)?;
    }
    writer.finish(&root, "linux/amd64")?;
    Ok(())
}

/// Has so many nodes get the image from one that has it, and from each other.
/// Seconds until the last one has all, and bytes that the first one gave.
async fn distribute(path: &Path, nodes: u8) -> Result<(f64, u64)> {
    let image = Image::open(path)?;
    let end = image.end()?;
    let authority = Authority::generate("rpc", LIFE)?;
    let first = Node::new(&authority, 0)?;
    first.serve(Whole(image.clone())).await?;
    let mut others = Vec::new();
    for number in 1..=nodes {
        let node = Node::new(&authority, number)?;
        let partial = Arc::new(Partial::nameless(&end, image.root())?);
        node.serve(Coming::new(&partial)).await?;
        others.push((node, partial));
    }
    let started = Instant::now();
    let all = others
        .iter()
        .map(|(node, partial)| node.get(partial, nodes));
    try_join_all(all).await?;
    let seconds = started.elapsed().as_secs_f64();
    for (node, _) in &others {
        node.stop();
    }
    first.stop();
    Ok((seconds, first.up.taken()))
}

/// A node and its link.
struct Node {
    address: SocketAddr,
    authority: String,
    identity: Identity,
    up: Arc<Lane>,
    down: Arc<Lane>,
    stopped: Arc<Notify>,
}

impl Node {
    fn new(authority: &Authority, number: u8) -> Result<Self> {
        let address = address(number);
        let issued = authority.issue(&Leaf {
            server: true,
            ip_addresses: vec![address.ip()],
            ..Leaf::client(ADMITTED, &[], LIFE)
        })?;
        Ok(Self {
            address,
            authority: authority.certificate_pem().into(),
            identity: Identity {
                certificate_pem: issued.certificate_pem,
                key_pem: issued.key_pem,
            },
            up: Arc::default(),
            down: Arc::default(),
            stopped: Arc::default(),
        })
    }

    /// Gives of an image until it is stopped.
    async fn serve(&self, images: impl Images) -> Result<()> {
        let tls = tls::server(&self.identity, &self.authority)?;
        let listener = TcpListener::bind(self.address)
            .await
            .with_context(|| format!("listening at {}", self.address))?;
        let images = Arc::new(Uplink(images, self.up.clone()));
        let stopped = self.stopped.clone();
        let stop = async move { stopped.notified().await };
        tokio::spawn(rpc::images::serve(listener, tls, images, None, stop));
        Ok(())
    }

    fn stop(&self) {
        self.stopped.notify_one();
    }

    /// Gets all of an image from the first node and the `nodes` others.
    async fn get(&self, partial: &Arc<Partial>, nodes: u8) -> Result<()> {
        let source = |number| {
            let trust = Trust::Authority(self.authority.clone());
            let from = Remote::new(address(number), trust, self.identity.clone());
            Arc::new(Downlink(from, self.down.clone())) as Arc<dyn Source>
        };
        let (found, more) = mpsc::channel(usize::from(nodes));
        for other in (1..=nodes).filter(|number| address(*number) != self.address) {
            found.try_send(source(other)).context("telling of a node")?;
        }
        let pieces = partial.missing(u64::MAX)?;
        let progress = Progress::new("image", Arc::new(Discard));
        fetch::fetch(partial, pieces, &[source(0)], more, &progress, &Discard).await?;
        let missing = partial.missing(u64::MAX)?;
        ensure!(missing.is_empty(), "{} pieces are missing", missing.len());
        Ok(())
    }
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([127, 99, 0, number + 1], spec::CONTROLLER_PORT))
}

/// One direction of a link.
#[derive(Debug, Default)]
struct Lane(Mutex<(Option<Instant>, u64)>);

impl Lane {
    /// When so many bytes more are over.
    fn take(&self, bytes: usize) -> Instant {
        let mut lane = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (free, taken) = &mut *lane;
        *taken += bytes as u64;
        let now = Instant::now();
        let begin = free.map_or(now, |free| free.max(now));
        *free.insert(begin + Duration::from_secs_f64(bytes as f64 / RATE))
    }

    fn taken(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// The whole image.
struct Whole(Image);

impl Images for Whole {
    fn end(&self) -> Result<Vec<u8>, Refusal> {
        self.0.end().map_err(refused)
    }

    fn have(&self, _: &str) -> Result<Have, Refusal> {
        Ok(Have::All)
    }

    fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
        let read = self
            .0
            .read_stored(&range.digest, range.offset, range.length);
        read.map_err(refused)
    }
}

fn refused(error: image::Error) -> Refusal {
    Refusal::Refused(error.to_string())
}

/// What is given goes over a link.
struct Uplink<I>(I, Arc<Lane>);

impl<I: Images> Images for Uplink<I> {
    fn end(&self) -> Result<Vec<u8>, Refusal> {
        self.0.end()
    }

    fn have(&self, image: &str) -> Result<Have, Refusal> {
        self.0.have(image)
    }

    fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
        let bytes = self.0.read(range)?;
        let over = self.1.take(bytes.len());
        std::thread::sleep(over.saturating_duration_since(Instant::now()));
        Ok(bytes)
    }
}

/// What is taken goes over a link.
struct Downlink(Remote, Arc<Lane>);

#[async_trait::async_trait]
impl Source for Downlink {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn connect(&self) -> Result<(), Refusal> {
        self.0.connect().await
    }

    async fn end(&self) -> Result<Vec<u8>, Refusal> {
        self.0.end().await
    }

    async fn have(&self, image: &str) -> Result<Have, Refusal> {
        self.0.have(image).await
    }

    async fn read(&self, range: &Range) -> Result<Vec<u8>, Refusal> {
        let bytes = self.0.read(range).await?;
        tokio::time::sleep_until(self.1.take(bytes.len()).into()).await;
        Ok(bytes)
    }
}
