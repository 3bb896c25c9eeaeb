//! Against a real etcd, API server and controller manager, on loopback.
//!
//! In: `GRAVITY_TEST_BIN`, a directory with `etcd` and `kubernetes`; without it
//! the test says that it is skipped. There is no kubelet: the test sets the
//! state of pods itself, and serves their logs, breaking the first connection.

#![expect(clippy::unwrap_used, reason = "a test: whatever is wrong ends it")]

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event::{Event, Memory, Sink};
use gravity_cluster::hooks::{HookError, HookRun, run};
use gravity_cluster::{Client, Endpoint, Error, documents};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Server {
    _processes: Vec<Process>,
    dir: tempfile::TempDir,
    kubeconfig: PathBuf,
    kubelet: u16,
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn write(path: &Path, text: &str) {
    std::fs::File::create(path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

fn certificate(authority: &pki::Authority, dir: &Path, name: &str, group: &str) {
    let issued = authority
        .issue(&pki::Leaf {
            server: true,
            dns_names: vec!["localhost".into()],
            ip_addresses: vec![Ipv4Addr::LOCALHOST.into()],
            ..pki::Leaf::client(name, &[group.into()], DAY)
        })
        .unwrap();
    write(&dir.join(format!("{name}.crt")), &issued.certificate_pem);
    write(&dir.join(format!("{name}.key")), &issued.key_pem);
}

fn start(bin: &Path, kubelet: u16) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let authority = pki::Authority::generate("test", DAY).unwrap();
    write(&dir.path().join("ca.crt"), authority.certificate_pem());
    certificate(&authority, dir.path(), "server", "servers");
    certificate(&authority, dir.path(), "admin", "system:masters");
    let accounts = pki::key_pair().unwrap();
    write(&dir.path().join("accounts.key"), &accounts.key_pem);
    write(&dir.path().join("accounts.pub"), &accounts.public_pem);
    for name in ["kube-apiserver", "kube-controller-manager"] {
        symlink(bin.join("kubernetes"), dir.path().join(name)).unwrap();
    }
    let (etcd, peer, api) = (free_port(), free_port(), free_port());
    let kubeconfig = dir.path().join("admin.kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {
            "server": format!("https://127.0.0.1:{api}"), "certificate-authority": path("ca.crt")}}],
        "users": [{"name": "x", "user": {
            "client-certificate": path("admin.crt"), "client-key": path("admin.key")}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    write(&kubeconfig, &config.to_string());

    let spawn = |program: &Path, name: &str, arguments: &[String]| {
        let log = std::fs::File::create(dir.path().join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Process(command.spawn().unwrap())
    };
    let etcd_arguments = [
        format!("--data-dir={}", path("etcd")),
        format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
        format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
        "--unsafe-no-fsync".into(),
    ];
    let api_arguments = [
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=10.255.255.1".into(),
        format!("--secure-port={api}"),
        "--endpoint-reconciler-type=none".into(),
        "--authorization-mode=RBAC".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://test".into(),
        format!("--service-account-key-file={}", path("accounts.pub")),
        format!(
            "--service-account-signing-key-file={}",
            path("accounts.key")
        ),
        format!("--client-ca-file={}", path("ca.crt")),
        format!("--tls-cert-file={}", path("server.crt")),
        format!("--tls-private-key-file={}", path("server.key")),
    ];
    let manager_arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!(
            "--service-account-private-key-file={}",
            path("accounts.key")
        ),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
        "--controllers=job,serviceaccount,garbagecollector,root-ca-cert-publisher,namespace".into(),
    ];
    let processes = vec![
        spawn(&bin.join("etcd"), "etcd", &etcd_arguments),
        spawn(
            &dir.path().join("kube-apiserver"),
            "apiserver",
            &api_arguments,
        ),
        spawn(
            &dir.path().join("kube-controller-manager"),
            "manager",
            &manager_arguments,
        ),
    ];
    Server {
        _processes: processes,
        dir,
        kubeconfig,
        kubelet,
    }
}

/// Serves `three lines` of every container, but breaks the first connection
/// after two of them. The second repeats the second.
async fn serve_logs(listener: tokio::net::TcpListener, dir: PathBuf) {
    let certificate = CertificateDer::from_pem_file(dir.join("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let attempts = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, attempts) = (acceptor.clone(), attempts.clone());
        tokio::spawn(async move {
            let mut stream = acceptor.accept(stream).await.ok()?;
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.ok()?;
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(['?', ' ']).nth(1)?.to_owned();
            let attempt = {
                let mut attempts = attempts.lock().unwrap();
                let count = attempts.entry(path).or_default();
                *count += 1;
                *count
            };
            let line = |n: u32, text: &str| {
                let text = format!("2026-01-01T00:00:0{n}.5Z {text}\n");
                format!("{:x}\r\n{text}\r\n", text.len())
            };
            let mut answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
            if attempt == 1 {
                answer += &line(1, "one");
                answer += &line(2, "two");
            } else {
                answer += &line(2, "two");
                answer += &line(3, "three");
                answer += "0\r\n\r\n";
            }
            stream.write_all(answer.as_bytes()).await.ok()?;
            stream.flush().await.ok()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            Some(())
        });
    }
}

fn hook(name: &str) -> HookRun {
    HookRun {
        name: name.into(),
        job_yaml: format!(
            "\
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
  namespace: hooks
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      nodeName: node-1
      containers:
      - name: c
        image: c
        resources: {{requests: {{cpu: 1}}}}
"
        ),
        env: BTreeMap::new(),
        resources_host_path: "/var/lib/gravity/resources".into(),
        service_user_uid: 980,
        operation_id: "5f6a".into(),
        avoid: None,
    }
}

/// Waits until the sink has a line that contains `text`.
async fn seen(sink: &Memory, text: &str) {
    for _ in 0..2400 {
        let found = sink
            .events()
            .iter()
            .any(|event| format!("{event:?}").contains(text));
        if found {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no {text} in {:#?}", sink.events());
}

async fn set_status(pods: &Api<Pod>, name: &str, phase: &str, state: Value) {
    let patch = json!({ "status": { "phase": phase, "containerStatuses": [{
        "name": "c", "image": "c", "imageID": "c", "ready": false, "restartCount": 0,
        "state": state,
    }]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

/// Plays the kubelet for the pod of a hook that has not ended: runs it, lets its logs
/// be read, ends it.
async fn play(pods: &Api<Pod>, hook: &str, sink: &Memory, exit_code: i32) {
    seen(sink, "Created Pod").await;
    let labels = format!("gravitational.io/hook={hook}");
    let list = pods
        .list(&ListParams::default().labels(&labels))
        .await
        .unwrap();
    let pod = list
        .items
        .iter()
        .find(|pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            pod.metadata.deletion_timestamp.is_none()
                && !matches!(phase, Some("Succeeded" | "Failed"))
        })
        .unwrap();
    let name = pod.name_any();
    set_status(
        pods,
        &name,
        "Running",
        json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
    )
    .await;
    seen(sink, "\"three\"").await;
    let phase = if exit_code == 0 {
        "Succeeded"
    } else {
        "Failed"
    };
    let ended = json!({"running": null, "terminated": {"exitCode": exit_code, "reason": "Error"}});
    set_status(pods, &name, phase, ended).await;
}

fn logged(sink: &Memory) -> Vec<String> {
    let line = |event| match event {
        Event::Log { line, .. } => Some(line),
        _ => None,
    };
    sink.events().into_iter().filter_map(line).collect()
}

#[test]
fn a_real_api_server() {
    let Some(bin) = std::env::var_os("GRAVITY_TEST_BIN").map(PathBuf::from) else {
        let _ = writeln!(std::io::stderr(), "skipped: GRAVITY_TEST_BIN is not set");
        return;
    };
    let test = move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(against(&bin));
    };
    // Unoptimized it takes more than the stack that a test has.
    let thread = std::thread::Builder::new().stack_size(32 << 20);
    thread.spawn(test).unwrap().join().unwrap();
}

/// All of it, against the programs in `bin`.
async fn against(bin: &Path) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let server = start(bin, listener.local_addr().unwrap().port());
    let client = Client::connect(&server.kubeconfig).await.unwrap();
    client.wait_api(Duration::from_secs(60)).await.unwrap();
    let kubelet = tokio::spawn(serve_logs(listener, server.dir.path().into()));
    let api = other_client(&server).await;

    objects_are_applied(&client, &api).await;
    nodes_are_made_and_awaited(&client, &api, server.kubelet).await;
    hooks_are_run(&client, &api).await;
    services_are_found(&client).await;
    kubelet.abort();
}

/// A plain client, to look with.
async fn other_client(server: &Server) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(&server.kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    kube::Client::try_from(config).unwrap()
}

async fn objects_are_applied(client: &Client, api: &kube::Client) {
    let text = "
apiVersion: example.com/v1
kind: Basket
metadata: {name: b, namespace: shop}
spec: {apples: 3}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: shop}
data: {a: b}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: kube-system}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: baskets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Basket, plural: baskets, singular: basket}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
";
    let objects = documents(text).unwrap();
    client.apply(&objects).await.unwrap();
    client.apply(&objects).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(api.clone(), "shop");
    assert_eq!(maps.get("c").await.unwrap().data.unwrap()["a"], "b");
    let unknown = documents("{apiVersion: example.net/v1, kind: X, metadata: {name: x}}").unwrap();
    let error = client.apply(&unknown).await.unwrap_err();
    assert!(matches!(error, Error::UnknownKind { .. }), "{error:?}");
    let invalid = "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ports: 7}}";
    let invalid = documents(invalid).unwrap();
    let error = client.apply(&invalid).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("applying Service \"x\": "), "{text}");
    assert!(
        !text.contains("ErrorResponse") && !text.contains("Status {"),
        "{text}"
    );
}

async fn nodes_are_made_and_awaited(client: &Client, api: &kube::Client, kubelet: u16) {
    let labels = BTreeMap::from([("role".to_owned(), "master".to_owned())]);
    let cidrs = ["10.244.0.0/24".to_owned()];
    for _ in 0..2 {
        client
            .ensure_node("node-1", &labels, &[], &cidrs)
            .await
            .unwrap();
    }
    let error = client
        .ensure_node("node-1", &labels, &[], &["10.9.0.0/24".into()])
        .await
        .unwrap_err();
    assert!(matches!(error, Error::PodNetwork { .. }), "{error:?}");
    let error = client
        .wait_node_ready("node-1", Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("the kubelet has not registered"),
        "{error}"
    );

    let nodes: Api<Node> = Api::all(api.clone());
    assert_eq!(
        nodes
            .get("node-1")
            .await
            .unwrap()
            .spec
            .unwrap()
            .pod_cidrs
            .unwrap(),
        cidrs
    );
    let ready = json!({ "status": {
        "conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "DiskPressure", "status": "True"},
        ],
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet}},
    }});
    let later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let patch = Patch::Merge(&ready);
        nodes
            .patch_status("node-1", &PatchParams::default(), &patch)
            .await
            .unwrap();
    };
    let (waited, ()) = tokio::join!(
        client.wait_node_ready("node-1", Duration::from_secs(30)),
        later
    );
    let short = waited.unwrap();
    assert_eq!(short.len(), 1, "{short:?}");
    let status = client.status().await.unwrap();
    assert!(
        status.nodes.len() == 1 && status.nodes[0].ready && status.nodes[0].pressure == short,
        "{status:?}"
    );
    cordons_are_taken_back(client, &nodes).await;
}

/// Ours, and nobody else's.
async fn cordons_are_taken_back(client: &Client, nodes: &Api<Node>) {
    let second = Duration::from_secs(1);
    let unschedulable = async || {
        let spec = nodes.get("node-1").await.unwrap().spec.unwrap();
        spec.unschedulable == Some(true)
    };
    for _ in 0..2 {
        client.drain("node-1", second).await.unwrap();
    }
    assert!(unschedulable().await);
    client.uncordon("node-1").await.unwrap();
    assert!(!unschedulable().await);
    let set = async |value: Value| {
        let patch = Patch::Merge(json!({ "spec": { "unschedulable": value } }));
        let params = PatchParams::default();
        nodes.patch("node-1", &params, &patch).await.unwrap();
    };
    set(json!(true)).await;
    client.drain("node-1", second).await.unwrap();
    client.uncordon("node-1").await.unwrap();
    assert!(unschedulable().await);
    set(Value::Null).await;
    client.uncordon("gone").await.unwrap();
}

async fn hooks_are_run(client: &Client, api: &kube::Client) {
    let pods: Api<Pod> = Api::namespaced(api.clone(), "hooks");
    let jobs: Api<Job> = Api::namespaced(api.clone(), "hooks");
    let accounts: Api<ServiceAccount> = Api::namespaced(api.clone(), "hooks");
    let once = async |hook: &HookRun, exit_code| {
        let sink = Arc::new(Memory::default());
        let running = run(client, hook, sink.clone() as Arc<dyn Sink>);
        let (result, ()) = tokio::join!(running, play(&pods, &hook.name, &sink, exit_code));
        (result, sink)
    };

    let (result, sink) = once(&hook("install"), 0).await;
    result.unwrap();
    assert_eq!(logged(&sink), ["one", "two", "three"]);
    seen(
        &sink,
        "has changed state from \\\"Pending\\\" to \\\"Running\\\"",
    )
    .await;
    seen(&sink, "has completed, ").await;
    let ours = async || {
        let all = accounts.list(&ListParams::default()).await.unwrap();
        let ours = all
            .iter()
            .filter(|account| account.name_any().starts_with("gravity-hook-"));
        ours.count()
    };
    assert_eq!(ours().await, 1);

    // Once more: it has completed.
    let sink = Arc::new(Memory::default());
    run(client, &hook("install"), sink.clone()).await.unwrap();
    seen(&sink, "has completed before").await;

    // A run that was interrupted is taken up.
    let sink = Arc::new(Memory::default());
    let resumed = hook("resumed");
    let interrupted = run(client, &resumed, sink.clone());
    let waiting = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::select! { _ = interrupted => panic!("ended"), () = seen(&sink, "Created Pod") => {} }
    });
    waiting.await.unwrap();
    let (result, sink) = once(&resumed, 0).await;
    result.unwrap();
    seen(&sink, "is running already").await;
    assert_eq!(logged(&sink), ["one", "two", "three"]);

    // A failed one tells why, and is run again.
    let (result, _) = once(&hook("update"), 3).await;
    let error = result.unwrap_err();
    assert!(matches!(error, HookError::Failed { .. }), "{error:?}");
    let text = error.to_string();
    for part in [
        "hook update failed: Job \"update-",
        "BackoffLimitExceeded",
        "/c: exit code 3",
        "    three",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let first = jobs.list(&ListParams::default()).await.unwrap().items.len();
    let (result, sink) = once(&hook("update"), 0).await;
    result.unwrap();
    seen(&sink, "failed before and is run again").await;
    assert_eq!(
        jobs.list(&ListParams::default()).await.unwrap().items.len(),
        first
    );

    client.revoke_hooks("5f6a").await.unwrap();
    client.revoke_hooks("5f6a").await.unwrap();
    assert_eq!(ours().await, 0);

    // The process of another is killed: its rights last as long as its Job.
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let killed = HookRun {
        operation_id: "by-hand-0".into(),
        ..hook("dump")
    };
    let sink = Arc::new(Memory::default());
    let running = run(client, &killed, sink.clone());
    tokio::select! { _ = running => panic!("ended"), () = seen(&sink, "Created Pod") => {} }
    assert_eq!(client.revoke_forgotten_hooks(later).await.unwrap(), 0);
    once(&killed, 0).await.0.unwrap();
    let now = jiff::Timestamp::now();
    assert_eq!(client.revoke_forgotten_hooks(now).await.unwrap(), 0);
    assert_eq!(client.revoke_forgotten_hooks(later).await.unwrap(), 3);
    assert_eq!(ours().await, 0);

    // Of those that are run again and again the last five stay.
    for number in 1..=6 {
        let again = HookRun {
            operation_id: format!("by-hand-{number}"),
            ..hook("dump")
        };
        once(&again, 0).await.0.unwrap();
    }
    let count = async |hook: &str| {
        let labels = format!("gravitational.io/hook={hook}");
        let params = ListParams::default().labels(&labels);
        let listed = jobs.list(&params).await.unwrap();
        let stay = |job: &&Job| job.metadata.deletion_timestamp.is_none();
        listed.items.iter().filter(stay).count()
    };
    assert_eq!(count("dump").await, 5);
    assert_eq!(count("install").await, 1);
}

async fn services_are_found(client: &Client) {
    let service = documents(
        "{apiVersion: v1, kind: Service, metadata: {name: web, labels: {app: web}}, \
         spec: {type: NodePort, ports: [{port: 80, nodePort: 30080}]}}",
    );
    client.apply(&service.unwrap()).await.unwrap();
    let by_name = Endpoint {
        service: Some("web".into()),
        ..Endpoint::default()
    };
    let selector = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let by_labels = Endpoint {
        selector,
        ..Endpoint::default()
    };
    for endpoint in [by_name, by_labels] {
        let urls = client.endpoints(&endpoint).await.unwrap();
        let texts: Vec<_> = urls.iter().map(|url| url.text.as_str()).collect();
        assert_eq!(texts, ["http://127.0.0.1:30080"]);
    }
    let none = Endpoint {
        service: Some("none".into()),
        ..Endpoint::default()
    };
    assert!(client.endpoints(&none).await.unwrap().is_empty());
}
