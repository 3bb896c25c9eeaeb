//! Pulls from a registry on the loopback that misbehaves as it is told, and
//! pushes to it.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event::{Event, Memory};
use gravity_oci::hub::{Hub, HubError, Moved};
use gravity_oci::{
    Client, Content, Credentials, Digest, Layout, Progress, PullError, Pulled, Registries, Retry,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the registry was asked.
#[derive(Debug, Clone, Default)]
struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
    headers: HashMap<String, String>,
    /// How often this path was asked for before.
    before: usize,
}

#[derive(Debug, Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Ends the answer after so many bytes of the body.
    cut: Option<usize>,
    /// Says nothing more, and keeps the connection.
    silent: bool,
    /// Sends zeros for as long as they are taken.
    endless: bool,
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply {
        status,
        body: body.into(),
        ..Reply::default()
    }
}

type Handler = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// A registry with one image, of two layers, and an index of it.
struct Stub {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    image: Image,
}

#[derive(Debug, Clone)]
struct Image {
    blobs: HashMap<String, Vec<u8>>,
    manifest: Digest,
    index: Digest,
    layer: Digest,
}

fn image(architecture: &str) -> Image {
    let mut blobs = HashMap::new();
    let mut put = |bytes: Vec<u8>| {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        blobs.insert(digest.to_string(), bytes);
        (digest, size)
    };
    let config = put(json!({"os": "linux", "architecture": architecture})
        .to_string()
        .into_bytes());
    let big = put((0..200_000u32).flat_map(u32::to_le_bytes).collect());
    let small = put(b"small".to_vec());
    let descriptor = |kind: &str, (digest, size): &(Digest, usize)| {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest, "size": size,
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [
            descriptor("layer.v1.tar+gzip", &big),
            descriptor("layer.v1.tar+gzip", &small),
            descriptor("layer.v1.tar+gzip", &small),
        ],
    });
    let manifest = put(manifest.to_string().into_bytes());
    let mut entries = Vec::new();
    for architecture in ["arm64", architecture] {
        let mut entry = descriptor("manifest.v1+json", &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let index = put(json!({"schemaVersion": 2, "manifests": entries})
        .to_string()
        .into_bytes());
    Image {
        blobs,
        manifest: manifest.0,
        index: index.0,
        layer: big.0,
    }
}

impl Stub {
    /// `handler` answers first; what it leaves is answered as a registry does.
    async fn start(
        handler: impl Fn(&Request, &Image) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::with(image("amd64"), handler).await
    }

    async fn with(
        image: Image,
        handler: impl Fn(&Request, &Image) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, content) = (asked.clone(), image.clone());
        let handler: Arc<Handler> = Arc::new(move |request| {
            handler(request, &content).or_else(|| usual(request, &content))
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, handler.clone(), log.clone()));
            }
        });
        Self {
            address,
            asked,
            image,
        }
    }

    fn count(&self, part: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|r| r.path.contains(part)).count()
    }
}

fn usual(request: &Request, image: &Image) -> Option<Reply> {
    let path = request.path.strip_prefix("/v2/")?;
    if path.is_empty() {
        return Some(reply(200, "{}"));
    }
    let (kind, name) = path.strip_prefix("team/app/")?.split_once('/')?;
    let name = match (kind, name) {
        ("manifests", "1") => image.manifest.as_str(),
        ("manifests", "multi") => image.index.as_str(),
        (_, name) => name,
    };
    let body = image.blobs.get(name)?;
    let from = request.headers.get("range").map(|range| {
        let from = range.trim_start_matches("bytes=").trim_end_matches('-');
        from.parse::<usize>().unwrap()
    });
    Some(match from {
        Some(from) => Reply {
            headers: vec![(
                "content-range",
                format!("bytes {from}-{}/{}", body.len() - 1, body.len()),
            )],
            ..reply(206, &body[from..])
        },
        None => reply(200, body.clone()),
    })
}

async fn serve(mut stream: TcpStream, handler: Arc<Handler>, log: Arc<Mutex<Vec<Request>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        // A TLS greeting is no request.
        if stream.read_exact(&mut byte).await.is_err() || byte[0] == 0x16 && head.is_empty() {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ').map(str::to_owned);
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let mut request = Request {
        method,
        path,
        headers: headers.collect(),
        ..Request::default()
    };
    if let Some(length) = request.headers.get("content-length") {
        request.body = vec![0; length.parse().unwrap()];
        if stream.read_exact(&mut request.body).await.is_err() {
            return;
        }
    }
    {
        let mut log = log.lock().unwrap();
        request.before = log
            .iter()
            .filter(|other| other.path == request.path)
            .count();
        log.push(request.clone());
    }
    let answer = handler(&request).unwrap_or_else(|| reply(404, "{}"));
    let mut text = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
    if !answer.endless {
        text.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let end = answer.cut.unwrap_or(answer.body.len());
    let _ = stream.write_all(text.as_bytes()).await;
    if request.method != "HEAD" {
        let _ = stream.write_all(&answer.body[..end]).await;
    }
    while answer.endless && stream.write_all(&[0; 4096]).await.is_ok() {}
    if answer.silent {
        // Until the other end goes.
        let _ = stream.read(&mut [0]).await;
    }
    let _ = stream.shutdown().await;
}

/// One user of a registry.
struct User {
    _dir: tempfile::TempDir,
    layout: Layout,
    client: Client,
    sink: Arc<Memory>,
}

/// The registry is known by its address; `mirror` is asked before it.
fn user(stub: &Stub, mirror: Option<&Stub>, login: Option<&str>) -> User {
    let dir = tempfile::tempdir().unwrap();
    let mut conf = format!(
        "[[registry]]\nprefix = 'r.test'\nlocation = '{}'\ninsecure = true\n",
        stub.address
    );
    if let Some(mirror) = mirror {
        conf.push_str(&format!(
            "[[registry.mirror]]\nlocation = '{}'\ninsecure = true\n",
            mirror.address
        ));
    }
    let auth: PathBuf = dir.path().join("auth.json");
    if let Some(login) = login {
        use base64::Engine;
        let login = base64::engine::general_purpose::STANDARD.encode(login);
        let text = json!({"auths": {stub.address.to_string(): {"auth": login}}}).to_string();
        host::atomic::write(&auth, text.as_bytes(), 0o600).unwrap();
    }
    let retry = Retry {
        tries: 3,
        delay: Duration::from_millis(1),
        idle: Duration::from_millis(500),
    };
    let client = Client::new(
        Registries::parse(&conf).unwrap(),
        Credentials::load([auth]),
        4,
        retry,
    );
    let layout = Layout::open_or_create(dir.path().join("cache")).unwrap();
    User {
        _dir: dir,
        layout,
        client,
        sink: Arc::default(),
    }
}

impl User {
    async fn pull(&self, name: &str) -> Result<Pulled, PullError> {
        let progress = Progress::new("images", self.sink.clone());
        let result = self
            .client
            .pull(
                &format!("r.test/{name}").parse().unwrap(),
                &self.layout,
                &progress,
            )
            .await;
        progress.finish();
        result
    }

    async fn error(&self, name: &str) -> String {
        let error = self.pull(name).await.unwrap_err().to_string();
        // No half or wrong blob has a name.
        for entry in std::fs::read_dir(self.layout.dir().join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert_eq!(Digest::of(&std::fs::read(path).unwrap()).hex(), name);
        }
        error
    }
}

#[tokio::test]
async fn an_image_is_pulled_once() {
    let stub = Stub::start(|_, _| None).await;
    let user = user(&stub, None, None);
    let pulled = user.pull("team/app:1").await.unwrap();
    assert_eq!(
        pulled.manifest.digest().as_ref(),
        stub.image.manifest.as_str()
    );
    assert_eq!((pulled.layers.len(), pulled.index), (3, None));
    let bytes = user.layout.read_blob(&stub.image.layer, 1 << 20).unwrap();
    assert_eq!(bytes.len(), 800_000);
    let Some(Event::Progress { done, total, .. }) = user.sink.events().pop() else {
        panic!("no progress");
    };
    assert_eq!(Some(done), total);
    assert_eq!(stub.count("/blobs/"), 3);
    // Again: the tag is looked up, nothing is transferred.
    user.pull("team/app:1").await.unwrap();
    assert_eq!(stub.count("/blobs/"), 3);
    assert_eq!(stub.count("/manifests/"), 2);
    // What is pinned needs no registry.
    let asked = stub.count("");
    let pinned = format!("team/app@{}", stub.image.manifest);
    user.pull(&pinned).await.unwrap();
    assert_eq!(stub.count(""), asked);
}

#[tokio::test]
async fn an_index_leads_to_the_platform() {
    let stub = Stub::start(|_, _| None).await;
    let user = user(&stub, None, None);
    let pulled = user.pull("team/app:multi").await.unwrap();
    assert_eq!(
        pulled.manifest.digest().as_ref(),
        stub.image.manifest.as_str()
    );
    assert_eq!(pulled.index, Some(stub.image.index.clone()));

    let other = Stub::with(image("s390x"), |_, _| None).await;
    let user = self::user(&other, None, None);
    let error = user.error("team/app:multi").await;
    assert!(
        error.contains("only for linux/arm64, linux/s390x"),
        "{error}"
    );
    let error = user.error("team/app:1").await;
    assert!(error.contains("its architecture is s390x"), "{error}");
}

#[tokio::test]
async fn a_refused_login_names_the_file() {
    let stub = Stub::start(|request, _| {
        let denied = Reply {
            headers: vec![("www-authenticate", "Basic realm=\"r\"".into())],
            ..reply(401, "")
        };
        let good =
            request.headers.get("authorization").map(String::as_str) == Some("Basic bWU6cGFzcw==");
        (request.path.len() > 4 && !good).then_some(denied)
    })
    .await;
    user(&stub, None, Some("me:pass"))
        .pull("team/app:1")
        .await
        .unwrap();
    let error = user(&stub, None, Some("me:wrong"))
        .error("team/app:1")
        .await;
    assert!(
        error.contains("access denied (401)") && error.contains("auth.json has a login"),
        "{error}"
    );
    assert!(!error.contains("wrong"), "{error}");
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("auth.json is not there"), "{error}");
}

#[tokio::test]
async fn a_token_is_fetched_and_sent() {
    let stub = Stub::start(|request, _| {
        if request.path.starts_with("/token") {
            let scope = "/token?service=s&scope=repository%3Ateam%2Fapp%3Apull";
            assert_eq!(request.path, scope);
            assert_eq!(request.headers["authorization"], "Basic bWU6cGFzcw==");
            return Some(reply(200, r#"{"token": "t0"}"#));
        }
        let good = request.headers.get("authorization").map(String::as_str) == Some("Bearer t0");
        let realm = format!(
            "Bearer realm=\"http://{}/token\",service=\"s\"",
            request.headers["host"]
        );
        (request.path.len() > 4 && !good).then(|| Reply {
            headers: vec![("www-authenticate", realm)],
            ..reply(401, "")
        })
    })
    .await;
    user(&stub, None, Some("me:pass"))
        .pull("team/app:1")
        .await
        .unwrap();
    assert_eq!(stub.count("/token"), 1);
}

#[tokio::test]
async fn what_is_not_there_is_not_tried_again() {
    let stub = Stub::start(|_, _| None).await;
    let error = user(&stub, None, None).error("team/app:2").await;
    assert!(
        error.starts_with("cannot pull r.test/team/app:2: http://127.0.0.1:"),
        "{error}"
    );
    assert!(
        error.ends_with("/v2/team/app/manifests/2: not found (404)"),
        "{error}"
    );
    assert_eq!(stub.count("/manifests/"), 1);
}

#[tokio::test]
async fn a_passing_fault_is_overcome_and_a_lasting_one_told() {
    let stub = Stub::start(|request, _| {
        (request.path.len() > 4 && request.before < 2).then(|| reply(503, "busy\n now"))
    })
    .await;
    user(&stub, None, None).pull("team/app:1").await.unwrap();
    let stub = Stub::start(|r, _| (r.path.len() > 4).then(|| reply(500, "no\ndisk"))).await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(
        error.ends_with("answered 500: no disk (tried 3 times)"),
        "{error}"
    );
    assert_eq!(stub.count("/manifests/"), 3);
}

#[tokio::test]
async fn half_a_blob_goes_on_where_it_stopped() {
    let half = |request: &Request, image: &Image, always: bool| {
        let big = request.path.ends_with(image.layer.as_str());
        let body = &image.blobs[image.layer.as_str()];
        (big && (always || request.before == 0)).then(|| Reply {
            cut: Some(500_000),
            ..reply(200, body.clone())
        })
    };
    let stub = Stub::start(move |request, image| half(request, image, false)).await;
    let user = user(&stub, None, None);
    user.pull("team/app:1").await.unwrap();
    user.layout.read_blob(&stub.image.layer, 1 << 20).unwrap();
    let asked = stub.asked.lock().unwrap().clone();
    let range = |r: &Request| r.headers.get("range").cloned();
    let ranges: Vec<_> = asked.iter().filter_map(range).collect();
    assert_eq!(ranges, ["bytes=500000-"]);
    let Some(Event::Progress { done, total, .. }) = user.sink.events().pop() else {
        panic!("no progress");
    };
    assert_eq!(Some(done), total);

    // One that takes no ranges and always breaks off.
    let stub = Stub::start(move |request, image| half(request, image, true)).await;
    let error = self::user(&stub, None, None).error("team/app:1").await;
    assert!(
        error.ends_with("ended after 500000 of 800000 bytes (tried 3 times)"),
        "{error}"
    );
}

#[tokio::test]
async fn other_content_is_refused() {
    let stub = Stub::start(|request, image| {
        let big = request.path.ends_with(image.layer.as_str());
        big.then(|| reply(200, vec![0; 800_000]))
    })
    .await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(
        error.contains(&format!("expected {}", stub.image.layer)),
        "{error}"
    );

    let stub = Stub::start(|request, image| {
        let big = request.path.ends_with(image.layer.as_str());
        big.then(|| reply(200, vec![0; 800_001]))
    })
    .await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("larger than 800000 bytes"), "{error}");

    let stub = Stub::start(|request, _| {
        request
            .path
            .contains("/manifests/")
            .then(|| reply(200, r#"{"layers":[],"config":1}"#))
    })
    .await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("manifest is malformed"), "{error}");
    let pinned = format!("team/app@{}", stub.image.manifest);
    assert!(user(&stub, None, None).pull(&pinned).await.is_err());

    let stub = Stub::start(|request, _| {
        request
            .path
            .contains("/manifests/")
            .then(|| reply(200, vec![b' '; 5 << 20]))
    })
    .await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("larger than 4194304 bytes"), "{error}");
}

#[tokio::test]
async fn a_mirror_comes_first_and_may_fail() {
    let stub = Stub::start(|_, _| None).await;
    let mirror = Stub::start(|_, _| None).await;
    user(&stub, Some(&mirror), None)
        .pull("team/app:1")
        .await
        .unwrap();
    assert_eq!((stub.count("team"), mirror.count("team")), (0, 4));

    let broken = Stub::start(|r, _| r.path.contains("/blobs/").then(|| reply(500, ""))).await;
    user(&stub, Some(&broken), None)
        .pull("team/app:1")
        .await
        .unwrap();
    let empty = Stub::start(|r, _| (r.path.len() > 4).then(|| reply(404, ""))).await;
    user(&stub, Some(&empty), None)
        .pull("team/app:1")
        .await
        .unwrap();
    let error = user(&empty, Some(&broken), None).error("team/app:9").await;
    assert_eq!(error.matches("not found (404)").count(), 2, "{error}");
}

#[tokio::test]
async fn web_addresses_are_fetched_within_a_limit() {
    let stub = Stub::start(|r, _| (r.path == "/logo.png").then(|| reply(200, "12345"))).await;
    let user = user(&stub, None, None);
    let url = format!("http://{}/logo.png", stub.address);
    assert_eq!(user.client.fetch(&url, 5).await.unwrap(), b"12345");
    assert!(user.client.fetch(&url, 4).await.is_err());
    let error = user
        .client
        .fetch(&format!("http://{}/none", stub.address), 5)
        .await
        .unwrap_err();
    assert!(error.to_string().ends_with("not found (404)"), "{error}");
}

fn layer(request: &Request, image: &Image) -> bool {
    request.path.ends_with(image.layer.as_str())
}

#[tokio::test]
async fn a_login_does_not_follow_to_another_host() {
    let elsewhere = Stub::start(|request, image| {
        layer(request, image).then(|| reply(200, image.blobs[image.layer.as_str()].clone()))
    })
    .await;
    let address = elsewhere.address;
    let stub = Stub::start(move |request, image| {
        if !request.headers.contains_key("authorization") && request.path.len() > 4 {
            let challenge = ("www-authenticate", "Basic realm=\"x\"".to_owned());
            return Some(Reply {
                headers: vec![challenge],
                ..reply(401, "")
            });
        }
        layer(request, image).then(|| Reply {
            headers: vec![("location", format!("http://{address}{}", request.path))],
            ..reply(307, "")
        })
    })
    .await;
    let user = user(&stub, None, Some("me:secret"));
    user.pull("team/app:1").await.unwrap();
    let asked = elsewhere.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].headers.contains_key("authorization"));
    let asked = stub.asked.lock().unwrap().clone();
    assert!(
        asked
            .iter()
            .any(|r| r.headers.contains_key("authorization"))
    );

    // A loop of redirects ends.
    let stub = Stub::start(|request, image| {
        layer(request, image).then(|| Reply {
            headers: vec![("location", request.path.clone())],
            ..reply(307, "")
        })
    })
    .await;
    let error = self::user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("redirect"), "{error}");
}

#[tokio::test]
async fn a_registry_without_end_is_left() {
    let endless = |what: &'static str| {
        Stub::start(move |request, _| {
            request.path.contains(what).then(|| Reply {
                endless: true,
                ..reply(200, "")
            })
        })
    };
    let stub = endless("/manifests/").await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("larger than 4194304 bytes"), "{error}");
    let stub = endless("/blobs/").await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("larger than"), "{error}");

    let stub = Stub::start(|request, image| {
        layer(request, image).then(|| Reply {
            cut: Some(1000),
            silent: true,
            ..reply(200, vec![0; 800_000])
        })
    })
    .await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(
        error.contains("ended after 1000 of 800000 bytes"),
        "{error}"
    );
    let stub = Stub::start(|request, _| {
        request.path.contains("/manifests/").then(|| Reply {
            cut: Some(0),
            silent: true,
            ..reply(200, "{}")
        })
    })
    .await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("(tried 3 times)"), "{error}");

    // An index that leads to an index.
    let inner = json!({"schemaVersion": 2, "manifests": []}).to_string();
    let outer = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": Digest::of(inner.as_bytes()), "size": inner.len(),
        "platform": {"os": "linux", "architecture": "amd64"},
    }]});
    let stub = Stub::start(move |request, _| match request.path.rsplit_once('/') {
        Some((_, "1")) => Some(reply(200, outer.to_string())),
        Some((_, name)) if name == Digest::of(inner.as_bytes()).as_str() => {
            Some(reply(200, inner.clone()))
        }
        _ => None,
    })
    .await;
    let error = user(&stub, None, None).error("team/app:1").await;
    assert!(error.contains("lists another index"), "{error}");
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_gets_it() {
    let stub = Stub::start(|request, _| {
        (request.path.contains("/manifests/") && request.before == 0).then(|| Reply {
            headers: vec![("retry-after", "1".into())],
            ..reply(429, "slow down")
        })
    })
    .await;
    let begun = std::time::Instant::now();
    user(&stub, None, None).pull("team/app:1").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let asked = stub.asked.lock().unwrap();
    let manifests = asked.iter().filter(|r| r.path.contains("/manifests/"));
    assert_eq!(manifests.count(), 2);
}

/// What a registry that takes uploads has.
#[derive(Default)]
struct Store {
    upload: Vec<u8>,
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
}

fn located(status: u16) -> Reply {
    Reply {
        // Relative, and with a query of its own.
        headers: vec![("location", "/v2/team/app/blobs/uploads/1?state=x".into())],
        ..reply(status, "")
    }
}

/// Takes what is pushed.
fn take(request: &Request, store: &mut Store) -> Reply {
    let name = request.path.rsplit('/').next().unwrap().to_owned();
    match request.method.as_str() {
        "HEAD" => reply(
            if store.blobs.contains_key(&name) {
                200
            } else {
                404
            },
            "",
        ),
        "POST" => {
            store.upload.clear();
            located(202)
        }
        "PATCH" => {
            let from = format!("{}-", store.upload.len());
            if !request.headers["content-range"].starts_with(&from) {
                return reply(416, "");
            }
            store.upload.extend(&request.body);
            located(202)
        }
        "PUT" if request.path.contains("/uploads/") => {
            store.upload.extend(&request.body);
            let (_, digest) = request.path.split_once("digest=").unwrap();
            let digest = digest.replace("%3A", ":");
            if Digest::of(&store.upload).as_str() != digest {
                return reply(400, "DIGEST_INVALID");
            }
            store
                .blobs
                .insert(digest, std::mem::take(&mut store.upload));
            reply(201, "")
        }
        "PUT" => {
            store.manifests.insert(name, request.body.clone());
            reply(201, "")
        }
        "GET" if request.path.contains("/uploads/") => {
            let mut answer = located(204);
            let last = store.upload.len().saturating_sub(1);
            answer.headers.push(("range", format!("0-{last}")));
            answer
        }
        "GET" if request.path.ends_with("/v2/") => reply(200, "{}"),
        _ => reply(404, ""),
    }
}

/// A registry that takes uploads; `fault` answers first.
async fn taking(
    fault: impl Fn(&Request, &mut Store) -> Option<Reply> + Send + Sync + 'static,
) -> (Stub, Arc<Mutex<Store>>) {
    let store = Arc::new(Mutex::new(Store::default()));
    let shared = store.clone();
    let stub = Stub::start(move |request, _| {
        let mut store = shared.lock().unwrap();
        Some(fault(request, &mut store).unwrap_or_else(|| take(request, &mut store)))
    })
    .await;
    (stub, store)
}

/// Pushes one blob of 20 MB that begins within a file.
async fn push(stub: &Stub) -> (Result<Moved, HubError>, Digest) {
    let user = user(stub, None, None);
    let bytes = b"0123456789abcdef".repeat(1_250_000);
    let path = user.layout.dir().join("file");
    host::atomic::write(&path, &bytes, 0o600).unwrap();
    let content = Content {
        digest: Digest::of(&bytes[100..]),
        path,
        offset: 100,
        size: bytes.len() as u64 - 100,
    };
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = gravity_oci::layout::descriptor(Digest::of(b"{}"), 2, kind).unwrap();
    let hub = format!("http://{}/team", stub.address);
    let hub = Hub::open(Some(&hub), &user.client, false).unwrap();
    let progress = Progress::new("push", user.sink.clone());
    let contents = std::slice::from_ref(&content);
    let moved = hub
        .push("App", "1", (b"{}", &manifest), contents, false, &progress)
        .await;
    if moved.is_ok() {
        assert_eq!(progress.done(), content.size);
    }
    (moved, content.digest)
}

#[tokio::test]
async fn an_upload_goes_on_where_the_registry_has_got_to() {
    // The second piece is half there when the registry falls over.
    let (stub, store) = taking(|request, store| {
        let first = !store.manifests.contains_key("fallen") && request.method == "PATCH";
        (first && !store.upload.is_empty()).then(|| {
            store.manifests.insert("fallen".into(), Vec::new());
            store.upload.extend(&request.body[..1_000_000]);
            reply(502, "")
        })
    })
    .await;
    let (moved, digest) = push(&stub).await;
    let sent = Moved {
        sent: 19_999_900,
        ..Moved::default()
    };
    assert_eq!(moved.unwrap(), sent);
    let asked = stub.asked.lock().unwrap().clone();
    let bodies: usize = asked
        .iter()
        .filter(|r| r.path.contains("/uploads/") && r.path.contains("state"))
        .map(|r| r.body.len())
        .sum();
    assert_eq!(bodies, 19_999_900 + (8 << 20) - 1_000_000);
    assert!(store.lock().unwrap().blobs.contains_key(digest.as_str()));
    assert!(store.lock().unwrap().manifests.contains_key("1"));

    // The upload is lost: it begins again.
    let (stub, store) = taking(|request, store| {
        let first = !store.manifests.contains_key("lost");
        (first && request.path.contains("digest=")).then(|| {
            store.manifests.insert("lost".into(), Vec::new());
            store.upload.clear();
            reply(404, "")
        })
    })
    .await;
    assert_eq!(push(&stub).await.0.unwrap(), sent);
    assert!(store.lock().unwrap().blobs.contains_key(digest.as_str()));

    // A registry that never gets on is given up, without a name for the image.
    let (stub, store) = taking(|r, _| (r.method == "PATCH").then(|| reply(503, "full"))).await;
    let error = push(&stub).await.0.unwrap_err().to_string();
    assert!(
        error.ends_with("answered 503: full (tried 3 times)"),
        "{error}"
    );
    assert!(store.lock().unwrap().manifests.is_empty());

    // One that says it has more than there is, and one that hangs up.
    let (stub, _) = taking(|r, _| match r.method.as_str() {
        "PATCH" => Some(reply(503, "")),
        "GET" if r.path.contains("/uploads/") => Some(Reply {
            headers: vec![("range", "0-99999999999".into())],
            ..reply(204, "")
        }),
        _ => None,
    })
    .await;
    let error = push(&stub).await.0.unwrap_err().to_string();
    assert!(error.contains("more than was sent"), "{error}");
    let (stub, _) = taking(|r, _| (r.method == "POST").then(|| reply(202, ""))).await;
    let error = push(&stub).await.0.unwrap_err().to_string();
    assert!(error.contains("no address for an upload"), "{error}");
}

#[tokio::test]
async fn what_is_there_is_not_sent() {
    let (stub, _) = taking(|r, _| (r.method == "HEAD").then(|| reply(200, ""))).await;
    let moved = push(&stub).await.0.unwrap();
    assert_eq!((moved.present, moved.sent), (19_999_900, 0));
    assert_eq!(stub.count("/uploads/"), 0);

    // A sibling has it: nothing but the request to mount it is sent.
    let (stub, _) = taking(|request, _| {
        let path = request.path.as_str();
        match request.method.as_str() {
            "HEAD" if path.contains("/team/other/") => Some(reply(200, "")),
            "GET" if path.contains("_catalog") => Some(reply(
                200,
                r#"{"repositories":["team/app","team/other","x"]}"#,
            )),
            "POST" if path.contains("mount=sha256:") && path.ends_with("&from=team/other") => {
                Some(reply(201, ""))
            }
            _ => None,
        }
    })
    .await;
    let moved = push(&stub).await.0.unwrap();
    assert_eq!((moved.mounted, moved.sent), (19_999_900, 0));

    // Lists that never end, and such that lead away, are left.
    let (stub, _) = taking(|request, _| {
        let path = request.path.as_str();
        path.contains("tags/list").then(|| Reply {
            headers: vec![(
                "link",
                "</v2/team/app/tags/list?last=x>; rel=\"next\"".into(),
            )],
            ..reply(200, r#"{"tags":["x"]}"#)
        })
    })
    .await;
    let error = push(&stub).await.0.unwrap_err().to_string();
    assert!(error.contains("the list has no end"), "{error}");
}
