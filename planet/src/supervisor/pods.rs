//! Containers of pods, and how they end with the planet.
//!
//! In: the directories that containerd's shims keep, and the processes that are in the
//! groups of pods. Out: containers that have been ended as kubelet does it, in the time
//! of their pods: by their `preStop` hook, then by the signal that their image asks for.
//! The processes that hold a pod's namespaces are no containers: whoever is left needs
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::probe;
use crate::process::ProcessId;
use crate::{files, sys};

/// One directory a container: its `config.json`, and its process in `init.pid`.
pub(super) const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
/// Where runc, called by the shims, keeps its containers.
const RUNC_ROOT: &str = "/run/containerd/runc/k8s.io";
/// What Kubernetes gives a pod that asks for no other time, in seconds.
const USUAL: u64 = 30;
/// No pod gets more: the planet has to stop in time.
const LONGEST: u64 = 60;
/// What kubelet gives a container whose hook took all of the time.
const SHORTEST: Duration = Duration::from_secs(2);
/// How long containerd may take to answer before it is done without it, for the last
/// container, too.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many programs of containerd run at one moment.
const AT_ONCE: usize = 4;
/// Annotations, by the runtime and, as its configuration lets them pass, by kubelet.
const KIND: &str = "io.kubernetes.cri.container-type";
const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
const PORTS: &str = "io.kubernetes.container.ports";

/// A container that runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Container {
    id: String,
    /// Its first process, which alone is told to end.
    pid: i32,
    /// How long it may take to end.
    grace: Duration,
    /// What it wants to be done before.
    pre_stop: Option<Handler>,
    /// Names of its ports.
    ports: Vec<Port>,
}

/// A hook of a container, as Kubernetes describes it (`LifecycleHandler`).
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Handler {
    Exec {
        #[serde(default)]
        command: Vec<String>,
    },
    HttpGet(HttpGet),
    Sleep {
        seconds: u64,
    },
    /// Kubernetes knows it, and does nothing.
    TcpSocket {},
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct HttpGet {
    #[serde(default)]
    host: Option<String>,
    port: NumberOrName,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(u16),
    Name(String),
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    name: String,
    container_port: u16,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The containers in `bundles` whose process is one of `running`. What can't be read is
/// left out: a container may end at any moment.
pub(super) fn containers(bundles: &Path, running: &[i32]) -> Vec<Container> {
    let directories = fs::read_dir(bundles).into_iter().flatten();
    directories
        .filter_map(|entry| container(&entry.ok()?.path(), running))
        .collect()
}

fn container(bundle: &Path, running: &[i32]) -> Option<Container> {
    let pid = fs::read_to_string(bundle.join("init.pid")).ok()?;
    // The id of one that has ended may be another one's by now.
    let pid = pid
        .trim()
        .parse()
        .ok()
        .filter(|pid| running.contains(pid))?;
    let read: Bundle = files::read_json(&bundle.join("config.json")).ok()?;
    let annotation = |name: &str| read.annotations.get(name).map(String::as_str);
    if annotation(KIND) == Some("sandbox") {
        return None;
    }
    let grace = annotation(GRACE).and_then(|seconds| seconds.parse().ok());
    let pre_stop = annotation(PRE_STOP).and_then(|json| serde_json::from_str(json).ok());
    let ports = annotation(PORTS).and_then(|json| serde_json::from_str(json).ok());
    Some(Container {
        id: bundle.file_name()?.to_str()?.into(),
        pid,
        grace: Duration::from_secs(grace.unwrap_or(USUAL).min(LONGEST)),
        pre_stop,
        ports: ports.unwrap_or_default(),
    })
}

/// What containerd and runc do with a container.
pub(super) trait Runtime {
    /// Runs a command in it to its end.
    async fn execute(&self, container: &str, command: &[String]) -> Result<(), String>;
    /// The signal that it is to be ended by, if it is said.
    async fn stop_signal(&self, container: &str) -> Option<String>;
    /// Sends a signal, by name or number, to its first process.
    async fn signal(&self, container: &str, signal: &str) -> Result<(), String>;
}

/// The programs of the planet.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    /// Each takes a moment of a processor and some 30 MB.
    places: Arc<Semaphore>,
}

impl Programs {
    pub(super) fn new() -> Self {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Self { places }
    }

    fn ctr(arguments: &[&str]) -> Command {
        let mut command = Command::new("/usr/local/bin/ctr");
        command.args(["--namespace", "k8s.io"]).args(arguments);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command.kill_on_drop(true);
        command
    }
}

impl Runtime for Programs {
    async fn execute(&self, container: &str, command: &[String]) -> Result<(), String> {
        let runc = [
            "/usr/local/bin/runc",
            "--root",
            RUNC_ROOT,
            "exec",
            container,
        ];
        let command = [&runc.map(String::from), command].concat();
        probe::run(&command, Stdio::null()).await
    }

    async fn stop_signal(&self, container: &str) -> Option<String> {
        let _place = self.places.acquire().await.ok()?;
        let mut info = Self::ctr(&["containers", "info", container]);
        stop_signal(&info.output().await.ok()?.stdout)
    }

    async fn signal(&self, container: &str, signal: &str) -> Result<(), String> {
        let _place = self.places.acquire().await.map_err(|e| e.to_string())?;
        let mut kill = Self::ctr(&["tasks", "kill", "--signal", signal, container]);
        match kill.stdout(Stdio::null()).status().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(status.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What `ctr containers info` says, of which the part of Kubernetes has the signal of
/// the container's image.
fn stop_signal(info: &[u8]) -> Option<String> {
    let info: serde_json::Value = serde_json::from_slice(info).ok()?;
    let extensions = info.get("Extensions")?.as_object()?;
    let metadata = extensions.get("io.cri-containerd.container.metadata")?;
    let json = STANDARD.decode(metadata.get("value")?.as_str()?).ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&json).ok()?;
    let signal = metadata.get("Metadata")?.get("StopSignal")?.as_str()?;
    (!signal.is_empty()).then(|| signal.into())
}

impl Container {
    /// Has it end, and waits until it has or its time is over.
    ///
    /// # Errors
    /// Why its hook failed, which it ends without.
    pub(super) async fn end(self, runtime: impl Runtime) -> Result<(), String> {
        let opened = ProcessId::of(self.pid).and_then(ProcessId::open);
        let Some(process) = opened.and_then(|process| sys::watch(process).ok()) else {
            // It has ended.
            return Ok(());
        };
        let hook = async {
            let begun = Instant::now();
            (self.before(&runtime).await, begun.elapsed())
        };
        let signal = timeout(PATIENCE, runtime.stop_signal(&self.id));
        let ((hook, took), signal) = tokio::select! {
            before = async { tokio::join!(hook, signal) } => before,
            _ = process.readable() => return Ok(()),
        };
        let told = match signal.ok().flatten().as_deref() {
            None | Some("SIGTERM") => false,
            Some(signal) => {
                let told = timeout(PATIENCE, runtime.signal(&self.id, signal)).await;
                matches!(told, Ok(Ok(())))
            }
        };
        if !told {
            // One that has ended meanwhile needs no signal.
            let _ = sys::pidfd_signal(process.as_fd(), Signal::SIGTERM);
        }
        let left = self.grace.saturating_sub(took).max(SHORTEST);
        let _ = timeout(left, process.readable()).await;
        hook
    }

    /// Does what it wants to be done before it ends.
    async fn before(&self, runtime: &impl Runtime) -> Result<(), String> {
        // As with kubelet, who has no time has no hook.
        let Some(handler) = self.pre_stop.as_ref().filter(|_| !self.grace.is_zero()) else {
            return Ok(());
        };
        let handled = timeout(self.grace, async {
            match handler {
                Handler::Exec { command } => runtime.execute(&self.id, command).await,
                // Kubelet does not look at the answer, either.
                Handler::HttpGet(get) => probe::call(&self.request(get)?).await.map(drop),
                Handler::Sleep { seconds } => {
                    sleep(Duration::from_secs(*seconds)).await;
                    Ok(())
                }
                Handler::TcpSocket {} => Ok(()),
            }
        });
        let handled = handled
            .await
            .unwrap_or_else(|_| Err("it took too long".into()));
        handled.map_err(|error| format!("preStop hook of container {}: {error}", self.id))
    }

    /// The URL of a request.
    fn request(&self, get: &HttpGet) -> Result<String, String> {
        let port = match &get.port {
            NumberOrName::Number(number) => *number,
            NumberOrName::Name(name) => {
                let mut ports = self.ports.iter();
                let port = ports.find(|port| port.name == *name);
                port.ok_or_else(|| format!("no port is called {name}"))?
                    .container_port
            }
        };
        let address: IpAddr = match get.host.as_deref() {
            None | Some("") => pod_address(self.pid)
                .ok_or("the pod has no address")?
                .into(),
            Some(host) => host
                .parse()
                .map_err(|_| format!("{host} is no IP address"))?,
        };
        let scheme = match get.scheme.as_deref() {
            Some("HTTPS") => "https",
            _ => "http",
        };
        let slash = if get.path.starts_with('/') { "" } else { "/" };
        let address = SocketAddr::new(address, port);
        Ok(format!("{scheme}://{address}{slash}{}", get.path))
    }
}

/// The address that a process has in its network.
fn pod_address(pid: i32) -> Option<Ipv4Addr> {
    let trie = fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).ok()?;
    own_address(&trie)
}

/// The first address in the kernel's table of routes that is the network's own, and no
/// loopback.
fn own_address(trie: &str) -> Option<Ipv4Addr> {
    let lines = trie.lines().zip(trie.lines().skip(1));
    let mut own = lines.filter(|(_, kind)| kind.trim() == "/32 host LOCAL");
    own.find_map(|(line, _)| {
        let address: Ipv4Addr = line.trim().strip_prefix("|--")?.trim().parse().ok()?;
        (!address.is_loopback()).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Child;
    use std::sync::Mutex;

    use serde_json::{Value, json};

    use super::*;

    fn bundle(directory: &Path, pid: i32, annotations: Value) {
        let bundle = directory.join(format!("id-{pid}"));
        fs::create_dir(&bundle).unwrap();
        let write = |name: &str, text: String| {
            host::atomic::write(&bundle.join(name), text.as_bytes(), 0o644).unwrap();
        };
        write("init.pid", pid.to_string());
        let json = json!({ "ociVersion": "1.0", "annotations": annotations });
        write("config.json", json.to_string());
    }

    #[test]
    fn containers_get_the_time_of_their_pods_up_to_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = |pid, annotations| bundle(directory.path(), pid, annotations);
        bundle(1, json!({ KIND: "sandbox" }));
        bundle(2, json!({ KIND: "container", GRACE: "7" }));
        bundle(3, json!({ KIND: "container", GRACE: "3600" }));
        bundle(4, json!({ KIND: "container" }));
        bundle(5, json!({ KIND: "container", GRACE: "7" }));
        fs::create_dir(directory.path().join("half-made")).unwrap();
        let mut found = containers(directory.path(), &[1, 2, 3, 4]);
        found.sort_by_key(|container| container.pid);
        let found: Vec<_> = found
            .iter()
            .map(|container| (&*container.id, container.pid, container.grace.as_secs()))
            .collect();
        assert_eq!(found, [("id-2", 2, 7), ("id-3", 3, 60), ("id-4", 4, 30)]);
        assert_eq!(containers(&directory.path().join("none"), &[1]), []);
    }

    /// The hook of a container that says this of it.
    fn hook(pre_stop: &str) -> Option<Handler> {
        let directory = tempfile::tempdir().unwrap();
        bundle(directory.path(), 1, json!({ PRE_STOP: pre_stop }));
        containers(directory.path(), &[1]).remove(0).pre_stop
    }

    #[test]
    fn hooks_are_read_as_kubernetes_writes_them() {
        let exec = hook(r#"{"exec":{"command":["nginx","-s","quit"]}}"#);
        let command = ["nginx", "-s", "quit"].map(String::from).into();
        assert_eq!(exec, Some(Handler::Exec { command }));
        let sleep = hook(r#"{"sleep":{"seconds":5}}"#);
        assert_eq!(sleep, Some(Handler::Sleep { seconds: 5 }));
        let get = r#"{"httpGet":{"path":"/drain","port":"web","scheme":"HTTP"}}"#;
        assert!(matches!(hook(get), Some(Handler::HttpGet(_))));
        let tcp = hook(r#"{"tcpSocket":{"port":80}}"#);
        assert_eq!(tcp, Some(Handler::TcpSocket {}));
        assert_eq!(hook("{}"), None);
    }

    fn container(pid: i32, grace: Duration, pre_stop: Option<Handler>) -> Container {
        Container {
            id: "web".into(),
            pid,
            grace,
            pre_stop,
            ports: serde_json::from_str(r#"[{"name":"http","containerPort":8080}]"#).unwrap(),
        }
    }

    #[test]
    fn a_request_goes_to_the_pod_or_to_whom_it_says() {
        let url = |get: Value| {
            let get: HttpGet = serde_json::from_value(get).unwrap();
            let me = std::process::id().cast_signed();
            let url = container(me, SHORTEST, None).request(&get);
            url.unwrap_or_else(|error| error)
        };
        let named = json!({"host": "10.1.2.3", "port": "http", "path": "drain"});
        assert_eq!(url(named), "http://10.1.2.3:8080/drain");
        let secure = json!({"host": "::1", "port": 1, "path": "/x", "scheme": "HTTPS"});
        assert_eq!(url(secure), "https://[::1]:1/x");
        let unknown = json!({"host": "10.1.2.3", "port": "other"});
        assert_eq!(url(unknown), "no port is called other");
        let name = json!({"host": "example.org", "port": 1});
        assert_eq!(url(name), "example.org is no IP address");
    }

    #[test]
    fn the_address_of_a_pod_is_its_own_and_not_its_loopback() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    \x20    +-- 10.244.3.0/24 2 0 2\n        |-- 10.244.3.0\n           \
                    /24 link UNICAST\n        |-- 10.244.3.7\n           /32 host LOCAL\n";
        let loopback = "        |-- 127.0.0.1\n           /32 host LOCAL\n";
        let own = Some(Ipv4Addr::new(10, 244, 3, 7));
        assert_eq!(own_address(&format!("{loopback}{trie}")), own);
        assert_eq!(own_address(loopback), None);
    }

    #[test]
    fn the_signal_of_an_image_is_found_in_what_containerd_says() {
        let info = |metadata: Value| {
            let value = STANDARD.encode(metadata.to_string());
            let extension = json!({"type_url": "github.com/x", "value": value});
            let info = json!({"ID": "web", "Extensions": {
                "io.cri-containerd.container.metadata": extension}});
            stop_signal(info.to_string().as_bytes())
        };
        let said = json!({"Version": "v1", "Metadata": {"StopSignal": "SIGQUIT"}});
        assert_eq!(info(said).as_deref(), Some("SIGQUIT"));
        let nothing = json!({"Version": "v1", "Metadata": {"StopSignal": ""}});
        assert_eq!(info(nothing), None);
        assert_eq!(stop_signal(b"not found"), None);
    }

    /// Writes down what it is asked for. A command of one word ends never.
    #[derive(Clone, Default)]
    struct Fake {
        asked: Arc<Mutex<Vec<String>>>,
        signal: Option<String>,
    }

    impl Fake {
        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }
    }

    impl Runtime for Fake {
        async fn execute(&self, container: &str, command: &[String]) -> Result<(), String> {
            let asked = format!("{container}: {}", command.join(" "));
            self.asked.lock().unwrap().push(asked);
            match command {
                [program, argument] if program == "kill" => {
                    let pid = argument.parse().map(nix::unistd::Pid::from_raw).unwrap();
                    nix::sys::signal::kill(pid, Signal::SIGUSR1).unwrap();
                    pending().await
                }
                [_] => pending().await,
                _ => Err("exit status 1".into()),
            }
        }

        async fn stop_signal(&self, _: &str) -> Option<String> {
            self.signal.clone()
        }

        async fn signal(&self, container: &str, signal: &str) -> Result<(), String> {
            let asked = format!("{container}: {signal}");
            self.asked.lock().unwrap().push(asked);
            Err("it is not there".into())
        }
    }

    /// A process that any signal ends.
    struct Process(Child);

    impl Process {
        fn start() -> Self {
            let mut command = std::process::Command::new("sleep");
            Self(command.arg("60").spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }

        /// Which signal ended it.
        fn ended_by(mut self) -> Option<i32> {
            self.0.wait().unwrap().signal()
        }
    }

    fn exec(command: &[&str]) -> Option<Handler> {
        let command = command.iter().map(ToString::to_string).collect();
        Some(Handler::Exec { command })
    }

    #[tokio::test]
    async fn a_hook_comes_first_and_the_signal_whatever_it_says() {
        let process = Process::start();
        let fake = Fake::default();
        let hook = exec(&["drain", "now"]);
        let ended = container(process.pid(), SHORTEST, hook).end(fake.clone());
        let error = ended.await.unwrap_err();
        assert_eq!(error, "preStop hook of container web: exit status 1");
        assert_eq!(fake.asked(), ["web: drain now"]);
        assert_eq!(process.ended_by(), Some(Signal::SIGTERM as i32));
    }

    #[tokio::test]
    async fn a_hook_has_no_more_than_the_time_of_its_pod() {
        let process = Process::start();
        let grace = Duration::from_millis(50);
        let ended = container(process.pid(), grace, exec(&["forever"])).end(Fake::default());
        let error = ended.await.unwrap_err();
        assert_eq!(error, "preStop hook of container web: it took too long");
        assert_eq!(process.ended_by(), Some(Signal::SIGTERM as i32));
    }

    #[tokio::test]
    async fn who_has_no_time_has_no_hook() {
        let process = Process::start();
        let fake = Fake::default();
        let ended = container(process.pid(), Duration::ZERO, exec(&["forever"])).end(fake.clone());
        ended.await.unwrap();
        assert!(fake.asked().is_empty());
        assert_eq!(process.ended_by(), Some(Signal::SIGTERM as i32));
    }

    #[tokio::test]
    async fn who_ends_in_its_hook_gets_no_signal() {
        let process = Process::start();
        let hook = exec(&["kill", &process.pid().to_string()]);
        let signal = Some("SIGQUIT".into());
        let fake = Fake {
            signal,
            ..Fake::default()
        };
        let ended = container(process.pid(), Duration::from_mins(1), hook).end(fake.clone());
        ended.await.unwrap();
        assert_eq!(fake.asked().len(), 1);
        assert_eq!(process.ended_by(), Some(Signal::SIGUSR1 as i32));
    }

    #[tokio::test]
    async fn the_signal_of_the_image_goes_by_the_runtime_and_another_one_where_that_fails() {
        let process = Process::start();
        let signal = Some("SIGRTMIN+3".into());
        let fake = Fake {
            signal,
            ..Fake::default()
        };
        let ended = container(process.pid(), SHORTEST, None).end(fake.clone());
        ended.await.unwrap();
        assert_eq!(fake.asked(), ["web: SIGRTMIN+3"]);
        assert_eq!(process.ended_by(), Some(Signal::SIGTERM as i32));
    }

    /// An HTTP server that answers once, after a while, with something else than 200.
    #[tokio::test]
    async fn a_request_is_waited_for_and_its_answer_not_looked_at() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let get = json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": "/drain"}});
        let get = serde_json::from_value(get).unwrap();
        let process = Process::start();
        let ended = container(process.pid(), SHORTEST, Some(get)).end(Fake::default());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            sleep(Duration::from_millis(100)).await;
            let answer = b"HTTP/1.1 503 Draining\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer)
                .await
                .unwrap();
        };
        let (ended, ()) = tokio::join!(ended, server);
        ended.unwrap();
        assert_eq!(process.ended_by(), Some(Signal::SIGTERM as i32));
    }

    #[tokio::test]
    async fn who_does_not_care_is_waited_for_no_longer_than_its_time() {
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", "trap '' TERM; echo; exec sleep 60"]);
        let mut process = sh.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0];
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut line).unwrap();
        let grace = Duration::from_millis(10);
        let ended = container(process.id().cast_signed(), grace, None).end(Fake::default());
        ended.await.unwrap();
        assert_eq!(process.try_wait().unwrap(), None);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
