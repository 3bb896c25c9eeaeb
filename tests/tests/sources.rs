//! Images of this machine: Podman's engine over the Docker API, its storage,
//! what it saves as archives and what skopeo makes of those. Needs podman,
//! which keeps everything in directories of the test's own.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use event::Memory;
use gravity_tests::process;
use oci::source::{Engine, Storage};
use oci::{
    Client, Credentials, Digest, Layout, Progress, PullError, Pulled, Registries, Retry, Source,
};
use tokio::net::{TcpListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// A machine with Podman.
struct Machine {
    dir: tempfile::TempDir,
    services: Vec<Child>,
}

impl Machine {
    /// Podman with the images `app:1` and `quay.io/team/other:2`, of which the
    /// second has a layer more.
    fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
            services: Vec::new(),
        };
        let root = machine.at("root");
        fs::create_dir(&root).unwrap();
        gravity_tests::file::write(&root.join("file"), "content of a layer").unwrap();
        gravity_tests::file::write(&machine.at("Dockerfile"), "FROM scratch\nCOPY file /file\n")
            .unwrap();
        machine.build("app:1");
        gravity_tests::file::write(
            &machine.at("Dockerfile"),
            "FROM localhost/app:1\nCOPY Dockerfile /more\nENV A=B\n",
        )
        .unwrap();
        fs::copy(machine.at("Dockerfile"), root.join("Dockerfile")).unwrap();
        machine.build("quay.io/team/other:2");
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> Vec<String> {
        let path = |name: &str| self.at(name).display().to_string();
        [
            ("--root", path("storage")),
            ("--runroot", path("run")),
            ("--storage-driver", "vfs".into()),
        ]
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect()
    }

    fn podman(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("podman");
        process::text(command.args(self.options()).args(arguments)).unwrap()
    }

    fn build(&self, tag: &str) {
        let (file, context) = (self.at("Dockerfile"), self.at("root"));
        let (file, context) = (file.to_str().unwrap(), context.to_str().unwrap());
        self.podman(&[
            "build",
            "--isolation",
            "chroot",
            "--layers",
            "-t",
            tag,
            "-f",
            file,
            context,
        ]);
    }

    fn start(&mut self, address: &str) {
        let service = Command::new("podman")
            .args(self.options())
            .args(["system", "service", "--time", "0", address])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.services.push(service);
    }

    /// Starts the engine at an address of the loopback, which is returned.
    fn serve_at_address(&mut self) -> String {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listens = free.local_addr().unwrap();
        drop(free);
        let address = format!("tcp://{listens}");
        self.start(&address);
        assert!(process::wait_until(Duration::from_secs(60), || {
            std::net::TcpStream::connect(listens).is_ok()
        }));
        address
    }

    /// Certificates as Docker keeps them, below `name`, and a server's.
    fn certificates(&self, name: &str) -> (PathBuf, Arc<ServerConfig>) {
        let directory = self.at(name);
        fs::create_dir(&directory).unwrap();
        let hour = Duration::from_secs(3600);
        let authority = pki::Authority::generate("engines", hour).unwrap();
        let client = pki::Leaf::client("me", &[], hour);
        let issued = authority.issue(&client).unwrap();
        let server = authority.issue(&pki::Leaf {
            ip_addresses: vec![Ipv4Addr::LOCALHOST.into()],
            server: true,
            client: false,
            ..client
        });
        let server = server.unwrap();
        let identity = pki::tls::Identity {
            certificate_pem: server.certificate_pem,
            key_pem: server.key_pem,
        };
        let config = pki::tls::server(&identity, authority.certificate_pem()).unwrap();
        let mut config = (*config).clone();
        config.alpn_protocols.clear();
        for (name, text) in [
            ("ca.pem", authority.certificate_pem()),
            ("cert.pem", &issued.certificate_pem),
            ("key.pem", &issued.key_pem),
        ] {
            gravity_tests::file::write(&directory.join(name), text).unwrap();
        }
        (directory, Arc::new(config))
    }

    /// Puts TLS in front of the engine at `socket`, as long as the runtime is
    /// there; only for whom `config` knows.
    fn secure(&self, socket: &Path, config: Arc<ServerConfig>) -> (Runtime, String) {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let socket = socket.to_owned();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = TlsAcceptor::from(config.clone()).accept(stream).await else {
                    continue;
                };
                if stream.get_ref().1.peer_certificates().is_none() {
                    continue;
                }
                let mut engine = UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut engine).await;
                });
            }
        });
        (runtime, address)
    }

    /// Starts the engine; returns its socket.
    fn serve(&mut self) -> PathBuf {
        let socket = self.at("podman.sock");
        self.start(&format!("unix://{}", socket.display()));
        assert!(process::wait_until(Duration::from_secs(60), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        }));
        socket
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for service in &mut self.services {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

/// Pulls with a client that knows this place alone, into a cache of its own.
fn pull(source: Source, name: &str, cache: &Path) -> Result<(Pulled, u64), PullError> {
    let nowhere = "[[registry]]\nprefix = 'docker.io'\nblocked = true\n\
                   [[registry]]\nprefix = 'quay.io'\nblocked = true\n";
    let client = Client::new(
        Registries::parse(nowhere).unwrap(),
        Credentials::default(),
        2,
        Retry::default(),
    );
    let client = client.with_sources([source]);
    let layout = Layout::open_or_create(cache).unwrap();
    let progress = Progress::new("images", Arc::new(Memory::default()));
    let runtime = Runtime::new().unwrap();
    let pulled = runtime.block_on(client.pull(&name.parse().unwrap(), &layout, &progress))?;
    for blob in std::iter::once(&pulled.manifest)
        .chain([&pulled.config])
        .chain(&pulled.layers)
    {
        let digest = Digest::try_from(blob.digest()).unwrap();
        assert!(layout.has_blob(&digest, blob.size()));
        oci::layout::verify_file(&layout.blob_path(&digest), &digest).unwrap();
    }
    // Nothing unfinished is left.
    for entry in fs::read_dir(cache).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(!name.starts_with(".partial-"), "{name}");
    }
    Ok((pulled, progress.done()))
}

#[test]
fn every_place_has_the_same_image() {
    let mut machine = Machine::new();
    let cache = |name: &str| machine.at("cache").join(name);
    fs::create_dir(machine.at("cache")).unwrap();
    let archive = |name: &str, format: &str, images: &[&str]| {
        let path = machine.at(name);
        let mut arguments = vec!["save", "--format", format, "-o", path.to_str().unwrap()];
        if images.len() > 1 {
            arguments.push("--multi-image-archive");
        }
        arguments.extend(images);
        machine.podman(&arguments);
        path
    };
    let docker = archive(
        "docker.tar",
        "docker-archive",
        &["localhost/app:1", "quay.io/team/other:2"],
    );
    let oci = archive("oci.tar", "oci-archive", &["quay.io/team/other:2"]);
    let unpacked = machine.at("unpacked");
    fs::create_dir(&unpacked).unwrap();
    process::run(
        Command::new("tar")
            .arg("-xf")
            .arg(&oci)
            .arg("-C")
            .arg(&unpacked),
    )
    .unwrap();

    // Engine, storage and archive give the same image, also by the short name
    // under which it was built.
    let storage = || Source::Storage(Storage::new("podman", machine.options()));
    let (wanted, moved) = pull(storage(), "app:1", &cache("storage")).unwrap();
    assert!(moved > 0);
    assert_eq!(wanted.layers.len(), 1);
    let (again, moved) = pull(storage(), "app:1", &cache("storage")).unwrap();
    assert_eq!((again, moved), (wanted.clone(), 0));
    let buildah = Source::Storage(Storage::new("buildah", machine.options()));
    let (by_buildah, _) = pull(buildah, "app:1", &cache("buildah")).unwrap();
    assert_eq!(by_buildah, wanted);
    let (files, _) = pull(Source::files(&docker), "app:1", &cache("docker")).unwrap();
    assert_eq!(files, wanted);
    let other = "quay.io/team/other:2";
    let (wanted_other, _) = pull(storage(), other, &cache("storage")).unwrap();
    assert_eq!(wanted_other.layers.len(), 2);
    assert_eq!(wanted_other.layers[0], wanted.layers[0]);

    // An OCI archive and its directory keep the manifest as it is.
    let (archived, _) = pull(Source::files(&oci), other, &cache("oci")).unwrap();
    let (directory, _) = pull(Source::files(&unpacked), other, &cache("dir")).unwrap();
    assert_eq!(archived, directory);
    assert_eq!(archived.config.digest(), wanted_other.config.digest());
    let pinned = format!("quay.io/team/other@{}", archived.manifest.digest());
    let (by_digest, _) = pull(Source::files(&oci), &pinned, &cache("pinned")).unwrap();
    assert_eq!(by_digest, archived);

    // What a place doesn't have is asked of the registry.
    for source in [storage(), Source::files(&docker), Source::files(&oci)] {
        let error = pull(source, "nginx:1", &cache("none")).unwrap_err();
        assert!(matches!(error, PullError::Registries { .. }), "{error}");
    }
    // A pinned name has to keep its digest: that of the layout, or that of what
    // was taken from here before.
    let locked = format!("app:1@{}", wanted.manifest.digest());
    for (source, name) in [(storage(), "s"), (Source::files(&docker), "d")] {
        assert!(pull(source.clone(), &pinned, &cache("none")).is_err());
        let other = format!("app:1@{}", archived.manifest.digest());
        assert!(pull(source.clone(), &other, &cache("none")).is_err());
        let (same, moved) = pull(source, &locked, &cache(&format!("locked-{name}"))).unwrap();
        assert_eq!(same, wanted);
        assert!(moved > 0);
    }

    // Damage is told, not used.
    let mut bytes = fs::read(&docker).unwrap();
    let text = b"content of a layer";
    let at = bytes
        .windows(text.len())
        .position(|part| part == text)
        .unwrap();
    bytes[at] ^= 1;
    gravity_tests::file::write(&machine.at("damaged.tar"), bytes).unwrap();
    let error = pull(
        Source::files(machine.at("damaged.tar")),
        "app:1",
        &cache("damaged"),
    );
    let error = std::error::Error::source(&error.unwrap_err())
        .unwrap()
        .to_string();
    assert!(error.contains("is damaged"), "{error}");

    let socket = machine.serve();
    let cache = |name: &str| machine.at("cache").join(name);
    let engine = || Source::Engine(Engine::new(&socket).unwrap());
    let (served, moved) = pull(engine(), "app:1", &cache("engine")).unwrap();
    assert!(moved > 0);
    assert_eq!(served, wanted);
    let (again, moved) = pull(engine(), "app:1", &cache("engine")).unwrap();
    assert_eq!((&again, moved), (&wanted, 0));
    assert_eq!(
        pull(engine(), other, &cache("engine")).unwrap().0,
        wanted_other
    );
    let error = pull(engine(), "nginx:1", &cache("none")).unwrap_err();
    assert!(matches!(error, PullError::Registries { .. }), "{error}");

    // The same engine at an address, as containers of CI systems have it.
    let address = machine.serve_at_address();
    let tcp = || Source::Engine(Engine::at(&address, None).unwrap());
    let cache = |name: &str| machine.at("cache").join(name);
    let (distant, moved) = pull(tcp(), "app:1", &cache("tcp")).unwrap();
    assert!(moved > 0);
    assert_eq!(distant, served);
    // With TLS only where both sides know each other.
    let (ours, config) = machine.certificates("ours");
    let (strangers, _) = machine.certificates("strangers");
    let (_runtime, secure) = machine.secure(&socket, config);
    let at = |address: &str, certificates| {
        let engine = Engine::at(address, certificates).unwrap();
        pull(Source::Engine(engine), "app:1", &cache("tls"))
    };
    for (address, certificates) in [
        (&address, Some(&*ours)),
        (&secure, Some(&*strangers)),
        (&secure, None),
    ] {
        assert!(at(address, certificates).is_err());
    }
    assert_eq!(at(&secure, Some(&ours)).unwrap().0, served);

    // Bytes for bytes the same, wherever they came from.
    let blobs = |name: &str| -> BTreeSet<_> {
        let blobs = fs::read_dir(cache(name).join("blobs/sha256")).unwrap();
        blobs.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(blobs("engine"), blobs("storage"));

    // An engine that has gone is an error when it was named.
    let mut service = machine.services.remove(0);
    service.kill().unwrap();
    service.wait().unwrap();
    let error = pull(
        Source::Engine(Engine::new(&socket).unwrap()),
        "app:1",
        &machine.at("cache/gone"),
    );
    assert!(matches!(error, Err(PullError::Source { .. })));
}
