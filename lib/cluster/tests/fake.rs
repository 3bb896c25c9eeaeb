//! Against an API that answers what the test says and remembers what it was asked.

#![expect(clippy::unwrap_used, reason = "a test: whatever is wrong ends it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use gravity_cluster::Client;
use gravity_cluster::hooks::{HookError, HookRun, begin, follow};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Requests, line and headers and body.
type Asked = Arc<Mutex<Vec<String>>>;

/// A client of an API that answers by `answer`: a status and a body to a method and
/// a path.
async fn fake<A>(answer: A) -> (Client, Asked)
where
    A: Fn(&str, &str) -> (u16, String) + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Asked::default();
    let (remembered, answer) = (asked.clone(), Arc::new(answer));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, remembered.clone(), answer.clone()));
        }
    });
    let kubeconfig = json!({
        "clusters": [{"name": "x", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    });
    let client = Client::from_kubeconfig(&kubeconfig.to_string()).await;
    (client.unwrap(), asked)
}

/// Answers one request.
async fn serve<A>(mut stream: TcpStream, asked: Asked, answer: Arc<A>)
where
    A: Fn(&str, &str) -> (u16, String),
{
    let mut text = String::new();
    while !is_whole(&text) {
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).await.unwrap();
        if length == 0 {
            return;
        }
        text += &String::from_utf8_lossy(&bytes[..length]);
    }
    let mut words = text.split(['?', ' ']);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let (status, body) = answer(method, path);
    asked.lock().unwrap().push(text.clone());
    let answer = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
}

fn is_whole(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("content-length: ")?
            .parse()
            .ok()
    });
    body.len() >= length.unwrap_or(0)
}

fn failure(code: u16) -> (u16, String) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "no", "reason": "Reason", "code": code,
    });
    (code, status.to_string())
}

fn list(kind: &str, version: &str, items: &Value) -> (u16, String) {
    let list = json!({
        "kind": format!("{kind}List"), "apiVersion": version, "metadata": {}, "items": items,
    });
    (200, list.to_string())
}

/// An object of an operation, which nobody has used since `until`.
fn right(name: &str, namespace: Option<&str>, operation: &str, until: Timestamp) -> Value {
    json!({ "metadata": {
        "name": name,
        "namespace": namespace,
        "resourceVersion": format!("of-{name}"),
        "labels": { "gravitational.io/operation": operation },
        "annotations": { "gravitational.io/until": until.to_string() },
    }})
}

fn job(operation: &str, conditions: &Value) -> Value {
    json!({
        "metadata": {
            "name": operation, "namespace": "shop",
            "labels": { "gravitational.io/operation": operation },
        },
        "status": { "conditions": conditions },
    })
}

#[tokio::test]
async fn rights_of_hooks_end_when_nothing_of_their_operation_runs() {
    let now = Timestamp::now();
    let (past, future) = (
        now - SignedDuration::from_secs(1),
        now + SignedDuration::from_secs(1),
    );
    let (client, asked) = fake(move |method, path| match (method, path) {
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings") => list(
            "ClusterRoleBinding",
            "rbac.authorization.k8s.io/v1",
            &json!([
                right("gravity-hook-killed-shop", None, "killed", past),
                right("gravity-hook-running-shop", None, "running", past),
                right("gravity-hook-new-shop", None, "new", future),
                right("of-the-vendor", None, "killed", past),
            ]),
        ),
        ("GET", "/api/v1/serviceaccounts") => list(
            "ServiceAccount",
            "v1",
            &json!([
                right("gravity-hook-killed", Some("shop"), "killed", past),
                right("gravity-hook-gone", Some("shop"), "gone", past),
                right("gravity-hook-again", Some("shop"), "again", past),
                right("gravity-hook-running", Some("shop"), "running", past),
            ]),
        ),
        ("GET", "/api/v1/secrets") => list(
            "Secret",
            "v1",
            &json!([right(
                "gravity-helm-values-killed",
                Some("shop"),
                "killed",
                past
            )]),
        ),
        ("GET", "/apis/batch/v1/jobs") => list(
            "Job",
            "batch/v1",
            &json!([
                job("killed", &json!([{"type": "Failed", "status": "True"}])),
                job("running", &json!([])),
            ]),
        ),
        ("DELETE", path) if path.ends_with("-gone") => failure(404),
        // It was allowed anew meanwhile.
        ("DELETE", path) if path.ends_with("-again") => failure(409),
        ("DELETE", _) => (
            200,
            json!({"kind": "Status", "status": "Success"}).to_string(),
        ),
        _ => failure(403),
    })
    .await;
    assert_eq!(client.revoke_forgotten_hooks(now).await.unwrap(), 3);
    let asked = asked.lock().unwrap().clone();
    let deleted: Vec<_> = asked
        .iter()
        .filter_map(|request| request.strip_prefix("DELETE "))
        .map(|request| {
            let name = request.split(['?', ' ']).next().unwrap();
            let name = name.rsplit('/').next().unwrap().to_owned();
            assert!(
                request.contains(&format!("\"resourceVersion\":\"of-{name}\"")),
                "{request}"
            );
            name
        })
        .collect();
    assert_eq!(
        deleted,
        [
            "gravity-hook-killed-shop",
            "gravity-hook-killed",
            "gravity-hook-gone",
            "gravity-hook-again",
            "gravity-helm-values-killed",
        ]
    );
}

#[tokio::test]
async fn nothing_is_asked_of_jobs_when_no_right_is_over() {
    let (client, asked) = fake(|method, path| match (method, path) {
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings") => list(
            "ClusterRoleBinding",
            "rbac.authorization.k8s.io/v1",
            &json!([]),
        ),
        ("GET", "/api/v1/serviceaccounts") => list("ServiceAccount", "v1", &json!([])),
        ("GET", "/api/v1/secrets") => list("Secret", "v1", &json!([])),
        _ => failure(403),
    })
    .await;
    let ended = client.revoke_forgotten_hooks(Timestamp::now()).await;
    assert_eq!(ended.unwrap(), 0);
    assert_eq!(asked.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn nodes_are_told_in_order_without_their_pods() {
    let (client, asked) = fake(|method, path| match (method, path) {
        ("GET", "/api/v1/nodes") => list(
            "Node",
            "v1",
            &json!([
                { "metadata": { "name": "b" } },
                {
                    "metadata": { "name": "a" },
                    "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
                },
            ]),
        ),
        _ => failure(403),
    })
    .await;
    let nodes = client.nodes().await.unwrap();
    let told: Vec<_> = nodes.iter().map(|node| (&*node.name, node.ready)).collect();
    assert_eq!(told, [("a", true), ("b", false)]);
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn logs_of_a_node_are_read_at_their_end_unless_they_are_old() {
    let (client, asked) = fake(|_, path| match path {
        "/api/v1/nodes/b/proxy/logs/planet/" => (
            200,
            "<pre>\n<a href=\"etcd.log\">etcd.log</a>\n</pre>\n".into(),
        ),
        "/api/v1/nodes/b/proxy/logs/planet/etcd.log" => (206, "elected\n".into()),
        "/api/v1/nodes/b/proxy/logs/planet/old.log" => (304, String::new()),
        _ => failure(404),
    })
    .await;
    let names = client.node_log_names("b", "planet/").await.unwrap();
    assert_eq!(names, ["etcd.log"]);
    let since = "1994-11-06T08:49:37Z".parse().unwrap();
    let read = async |name: &str| {
        client
            .node_log("b", &format!("planet/{name}"), 5, since)
            .await
    };
    // Also a server that gives all of it fills no memory.
    assert_eq!(read("etcd.log").await.unwrap(), "elect");
    assert_eq!(read("old.log").await.unwrap(), "");
    let error = read("none.log").await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("reading log planet/none.log of node b: no"),
        "{error}"
    );
    let asked = asked.lock().unwrap().concat().to_lowercase();
    assert!(asked.contains("range: bytes=-5"), "{asked}");
    assert!(
        asked.contains("if-modified-since: sun, 06 nov 1994 08:49:37 gmt"),
        "{asked}"
    );
}

/// Where the Jobs of [`hook`] are made.
const JOBS: &str = "/apis/batch/v1/namespaces/shop/jobs";

/// An API with these nodes that makes Jobs and lets nobody see them.
async fn with_nodes(nodes: Value) -> (Client, Asked) {
    let secrets = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1",
        "resources": [{
            "name": "secrets", "singularName": "secret", "namespaced": true, "kind": "Secret",
            "verbs": ["patch"],
        }],
    });
    fake(move |method, path| match (method, path) {
        ("GET", "/api/v1") => (200, secrets.to_string()),
        ("GET", "/api/v1/nodes") => list("Node", "v1", &nodes),
        ("GET", path) if path.starts_with(JOBS) => failure(403),
        // Whatever it is, it is there or made.
        _ => (200, json!({ "metadata": { "name": "x" } }).to_string()),
    })
    .await
}

fn hook(name: &str) -> HookRun {
    HookRun {
        name: name.into(),
        job_yaml: json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": { "name": "gone", "namespace": "shop" },
            "spec": { "template": { "spec": {
                "serviceAccountName": "own",
                "containers": [{ "name": "c", "image": "c" }],
            }}},
        })
        .to_string(),
        env: BTreeMap::new(),
        resources_host_path: "/resources".into(),
        service_user_uid: 980,
        operation_id: "5f6a".into(),
        avoid: None,
    }
}

#[tokio::test]
async fn a_hook_that_has_begun_has_its_job_whoever_follows_it() {
    let (client, asked) = with_nodes(json!([])).await;
    let hook = hook("postNodeRemove");
    let made = || {
        let asked = asked.lock().unwrap();
        let jobs = asked.iter().filter(|text| text.contains(JOBS));
        let lines = jobs.map(|text| text.split(['?', ' ']).next().unwrap().to_owned());
        lines.collect::<Vec<_>>()
    };
    let begun = begin(&client, &hook, &event::Discard).await.unwrap();
    // Nobody waits for it yet.
    assert_eq!(made(), ["POST"]);
    let followed = follow(&client, &hook, begun, Arc::new(event::Discard)).await;
    assert!(matches!(followed, Err(HookError::Cluster { .. })));
    assert_eq!(made().iter().filter(|method| *method == "POST").count(), 1);
}

#[tokio::test]
async fn a_hook_keeps_away_from_nodes_that_do_not_work() {
    let node = |name: &str, ready: &str, cordoned: bool| {
        json!({
            "metadata": { "name": name },
            "spec": { "unschedulable": cordoned },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        })
    };
    let nodes = json!([
        node("works", "True", false),
        node("dead", "Unknown", false),
        node("cordoned", "True", true),
    ]);
    let (client, asked) = with_nodes(nodes).await;
    // What the second one brings makes nodes ready.
    for name in ["status", "networkInstall"] {
        begin(&client, &hook(name), &event::Discard).await.unwrap();
    }
    let asked = asked.lock().unwrap().clone();
    let made = asked
        .iter()
        .filter(|text| text.starts_with(&format!("POST {JOBS}")));
    let terms = made.map(|request| {
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        let job: Value = serde_json::from_str(body).unwrap();
        let affinity = &job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
        affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].clone()
    });
    let not = |node: &str| json!({ "key": "metadata.name", "operator": "NotIn", "values": [node] });
    let elsewhere = json!([{ "matchFields": [not("dead"), not("cordoned")] }]);
    assert_eq!(terms.collect::<Vec<_>>(), [elsewhere, Value::Null]);
}
