use serde_json::{Value, json};
use spec::layout::Layout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::install::tests::planned;

/// Methods and paths that an API was asked for.
pub(super) type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A client of an API that answers by `answer`; it refuses what that has none for.
pub(super) async fn api(
    answer: impl Fn(&str, &str) -> Option<Value>,
) -> (Client, Asked, impl Future) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let kubeconfig = json!({
        "clusters": [{"name": "x", "cluster": {"server": server}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    });
    let client = Client::from_kubeconfig(&kubeconfig.to_string()).await;
    let asked = Asked::default();
    let remembered = asked.clone();
    let serving = async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (method, path) = read(&mut stream).await;
            let (code, body) = match answer(&method, &path) {
                Some(body) => (200, body),
                None => (
                    403,
                    json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "no", "reason": "Forbidden", "code": 403,
                    }),
                ),
            };
            let asked = remembered.lock();
            asked
                .unwrap_or_else(PoisonError::into_inner)
                .push((method, path));
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {code} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await.unwrap();
        }
    };
    (client.unwrap(), asked, serving)
}

/// Reads all of a request; returns its method and its path.
async fn read(stream: &mut TcpStream) -> (String, String) {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    loop {
        let length = stream.read(&mut bytes).await.unwrap();
        text += &String::from_utf8_lossy(&bytes[..length]);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let lower = head.to_lowercase();
        let mut lengths = lower
            .lines()
            .filter_map(|line| line.strip_prefix("content-length: "));
        let whole = lengths.next().map_or(0, |length| length.parse().unwrap());
        if body.len() >= whole {
            let mut words = head.split(['?', ' ']).map(str::to_owned);
            return (words.next().unwrap(), words.next().unwrap());
        }
    }
}

#[test]
fn an_expired_token_is_none_and_goes_a_day_later() {
    let stored = |name: &str, seconds: i64| StoredToken {
        name: name.into(),
        text: format!("the-secret-of-{name}"),
        expires: jiff::Timestamp::from_second(seconds).unwrap(),
    };
    let all = [stored("old", 99), stored("new", 101), stored("ends", 100)];
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    let (good, over) = valid(&all, now);
    let secrets: Vec<_> = good.iter().map(|token| token.secret.as_str()).collect();
    assert_eq!(secrets, ["the-secret-of-new"]);
    assert_eq!(over, [""; 0]);
    let (good, over) = valid(&all, now + EXPIRED);
    assert!(good.is_empty());
    assert_eq!(over, ["old", "ends"]);
}

#[test]
fn who_gets_the_image_is_told_of_others_until_they_are_gone() {
    let at = |last: u8| IpAddr::from([10, 0, 0, last]);
    let (mut fetching, now) = (BTreeMap::new(), Instant::now());
    assert!(others(&mut fetching, at(1), now).is_empty());
    assert_eq!(others(&mut fetching, at(2), now), [at(1)]);
    let later = now + FETCHES / 2;
    assert_eq!(others(&mut fetching, at(1), later), [at(2)]);
    let end = now + FETCHES;
    assert_eq!(others(&mut fetching, at(3), end), [at(1)]);
}

#[tokio::test]
async fn nothing_is_done_for_a_node_that_has_joined() {
    let job = "{kind: Job, metadata: {name: x}, spec: {template: {spec: \
               {serviceAccountName: own, containers: [{name: c, image: c}]}}}}";
    let text = format!(
        "metadata: {{name: a, resourceVersion: 1.0.0}}\n\
         hooks: {{preNodeAdd: {{job: '{job}'}}, postNodeAdd: {{job: '{job}'}}}}"
    );
    for taken_in in [None, Some(7)] {
        let (mut cluster, _) = planned(|_| ());
        cluster.nodes[0].taken_in = taken_in;
        let node = cluster.nodes[0].id;
        let hooks = NodeHooks::of(&cluster, &manifest::parse(&text, "a").unwrap().hooks);
        let description = serde_json::to_string(&cluster).unwrap();
        let (client, asked, serving) = api(move |method, path| {
            let known = method == "GET" && path.ends_with("/configmaps/gravity-cluster");
            known.then(|| {
                json!({
                    "metadata": {"name": "gravity-cluster", "resourceVersion": "1"},
                    "data": {"cluster.json": description},
                })
            })
        })
        .await;
        let site = Site {
            client,
            etcd: Etcd::on_host(Path::new("/nowhere"), &Layout::new("/nowhere")),
            secrets: "/nowhere".into(),
            hooks,
            joining: tokio::sync::Mutex::default(),
            fetching: Mutex::default(),
            listed: tokio::sync::Mutex::default(),
        };
        let asks = async {
            let sink = Arc::new(event::Discard);
            let registered = site.register(node, Uuid::new_v4(), sink.clone()).await;
            let added = site.added(node, Uuid::new_v4(), sink).await;
            (registered.is_ok(), added.is_ok())
        };
        let done = tokio::select! {
            done = asks => done,
            _ = serving => unreachable!("it serves for ever"),
        };
        // Otherwise the hooks are run, which this API refuses.
        assert_eq!(done, (taken_in.is_none(), taken_in.is_none()));
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len() == 2, taken_in.is_none(), "{asked:?}");
    }
}
