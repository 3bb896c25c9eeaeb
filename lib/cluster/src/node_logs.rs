//! Logs of a node, as its kubelet serves them.
//!
//! In: a node, a path below its planet's `/var/log`. Out: names and ends of files.
//! Nothing is asked twice: who wants many files of a node that doesn't answer would
//! wait for each.

use std::time::Duration;

use futures::AsyncReadExt;
use http::header::{IF_MODIFIED_SINCE, RANGE};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::time::timeout;

use crate::client::{Client, Error, request};

/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest list of names that is read, in bytes.
const MAX_LIST: u64 = 1 << 20;

impl Client {
    /// What is in a directory, such as `planet/`; names of directories end with a
    /// slash. Names that no log of ours has are left out.
    ///
    /// # Errors
    /// When the node doesn't answer, or has no such directory.
    pub async fn node_log_names(&self, node: &str, directory: &str) -> Result<Vec<String>, Error> {
        let list = self.node_file(node, directory, MAX_LIST, None).await?;
        Ok(names(&list))
    }

    /// The end of a log, at most `most` bytes of it; nothing when it hasn't changed
    /// after `since`.
    ///
    /// # Errors
    /// When the node doesn't answer, or has no such file.
    pub async fn node_log(
        &self,
        node: &str,
        path: &str,
        most: u64,
        since: Timestamp,
    ) -> Result<String, Error> {
        self.node_file(node, path, most, Some(since)).await
    }

    async fn node_file(
        &self,
        node: &str,
        path: &str,
        most: u64,
        since: Option<Timestamp>,
    ) -> Result<String, Error> {
        let what = format!("reading log {path} of node {node}");
        let mut get = http::Request::get(format!("/api/v1/nodes/{node}/proxy/logs/{path}"));
        if let Some(since) = since {
            get = get.header(RANGE, format!("bytes=-{most}"));
            if let Ok(since) = DateTimePrinter::new().timestamp_to_rfc9110_string(&since) {
                get = get.header(IF_MODIFIED_SINCE, since);
            }
        }
        let get = get
            .body(Vec::new())
            .map_err(|error| request(&what, kube::Error::HttpError(error)))?;
        let reading = async {
            let stream = self.0.request_stream(get).await?;
            let mut bytes = Vec::new();
            let read = stream.take(most).read_to_end(&mut bytes).await;
            read.map_err(kube::Error::ReadEvents)?;
            Ok(bytes)
        };
        match timeout(ANSWER, reading).await {
            Ok(Ok(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(Err(error)) => Err(request(&what, error)),
            Err(_) => Err(Error::NoAnswer {
                what,
                seconds: ANSWER.as_secs(),
            }),
        }
    }
}

/// The links of a directory's page that lead to what is in it.
fn names(page: &str) -> Vec<String> {
    let links = page.split("href=\"").skip(1);
    let names = links.filter_map(|rest| Some(rest.split_once('"')?.0));
    let is_plain = |name: &&str| {
        let name = name.strip_suffix('/').unwrap_or(name);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !name.starts_with('.') && !name.is_empty() && name.chars().all(plain)
    };
    names.filter(is_plain).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files_beside_each_other() {
        let page = "<!doctype html>\n<pre>\n<a href=\"audit/\">audit/</a>\n\
                    <a href=\"etcd.log\">etcd.log</a>\n<a href=\"etcd.log.1\">etcd.log.1</a>\n\
                    <a href=\"../\">..</a>\n<a href=\"/etc/passwd\">x</a>\n\
                    <a href=\"a%2fb\">x</a>\n<a href=\"/\">x</a><a href=\"cut";
        assert_eq!(names(page), ["audit/", "etcd.log", "etcd.log.1"]);
        assert!(names("").is_empty());
    }
}
