//! Sends content to a registry, and lists and removes what is there.
//!
//! In: blobs as parts of files. Out: how each came to be there. A blob that is
//! there is not sent; one that a sibling repository has is mounted; any other
//! goes in pieces, and after a failure on where the registry has got to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::failure::Failure;
use crate::http::{Call, To, Tries, body};
use crate::layout::{LayoutError, MAX_DOCUMENT};
use crate::registries::Endpoint;
use crate::registry::Client;
use event::Progress;

/// Bytes of one piece, held in memory. Registries that keep blobs in object
/// stores want at least 5 MiB.
const PIECE: u64 = 8 << 20;
/// Most pages of a list.
const MAX_PAGES: usize = 100;
/// Names that one page shall have.
const PAGE: usize = 1000;
const OCTETS: &str = "application/octet-stream";

/// A blob: a part of a file, of which the digest is known.
#[derive(Debug, Clone)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// The file.
    pub path: PathBuf,
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is in bytes.
    pub size: u64,
}

/// How a blob came to be in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It was there.
    Present,
    /// Another repository of the registry had it.
    Mounted,
    /// It was sent.
    Sent,
}

/// An upload that has begun.
struct Session {
    address: Url,
    /// Bytes that the registry has.
    at: u64,
}

impl Client {
    /// Whether the repository has the blob.
    pub(crate) async fn has(&self, place: &Endpoint, digest: &Digest) -> Result<bool, Failure> {
        let path = format!("blobs/{digest}");
        let answer = self
            .again(place, || Call::new(Method::HEAD, To::Repository(&path)))
            .await;
        match answer {
            Ok(_) => Ok(true),
            Err(Failure::NotFound { .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Sends a blob that is not there, unless it can be mounted from the
    /// repository `from`.
    pub(crate) async fn send(
        &self,
        place: &Endpoint,
        content: &Content,
        from: Option<&str>,
        progress: &Progress,
    ) -> Result<Arrival, Failure> {
        let _permit = self.0.transfers.acquire().await;
        let file = File::open(&content.path).map_err(|source| LayoutError::Io {
            action: "open",
            path: content.path.clone(),
            source,
        })?;
        let file = Arc::new(file);
        let mut tries = Tries::new(self.0.retry);
        let mut session = None;
        loop {
            let failure = match self
                .send_once(place, content, &file, from, &mut session, progress)
                .await
            {
                Ok(arrival) => return Ok(arrival),
                Err(failure) => failure,
            };
            // The registry has lost the upload, or counts otherwise.
            let lost = match &failure {
                Failure::NotFound { .. } => session.is_some(),
                Failure::Status { status: 416, .. } => true,
                _ => false,
            };
            if lost && let Some(Session { at, .. }) = session.take() {
                progress.take_back(at);
                tries.anyway(failure).await?;
            } else if let Err(failure) = tries.next(failure).await {
                progress.take_back(session.map_or(0, |session| session.at));
                return Err(failure);
            }
        }
    }

    async fn send_once(
        &self,
        place: &Endpoint,
        content: &Content,
        file: &Arc<File>,
        from: Option<&str>,
        session: &mut Option<Session>,
        progress: &Progress,
    ) -> Result<Arrival, Failure> {
        let http = &self.0.http;
        match session {
            None => {
                let path = match from {
                    Some(from) => format!("blobs/uploads/?mount={}&from={from}", content.digest),
                    None => "blobs/uploads/".to_owned(),
                };
                let call = Call::new(Method::POST, To::Repository(&path))
                    .header(CONTENT_LENGTH, "0")
                    .body(&[]);
                let answer = http.call(place, call).await?;
                if answer.status() == StatusCode::CREATED {
                    progress.add(content.size);
                    return Ok(Arrival::Mounted);
                }
                let address = location(&answer)?;
                *session = Some(Session { address, at: 0 });
            }
            Some(session) => {
                let call = Call::new(Method::GET, To::Address(session.address.clone()));
                let answer = http.call(place, call).await?;
                if answer.headers().contains_key(LOCATION) {
                    session.address = location(&answer)?;
                }
                let at = received(&answer);
                if at > content.size {
                    let url = answer.url().to_string();
                    return Err(malformed(url, "says it has more than was sent"));
                }
                progress.take_back(session.at);
                progress.add(at);
                session.at = at;
            }
        }
        let Some(session) = session else {
            return Err(malformed(String::new(), "has no upload"));
        };
        while content.size - session.at > PIECE {
            let end = session.at + PIECE;
            let bytes = piece(file, content, session.at, end).await?;
            let call = Call::new(Method::PATCH, To::Address(session.address.clone()))
                .header(CONTENT_TYPE, OCTETS)
                .header(CONTENT_RANGE, format!("{}-{}", session.at, end - 1))
                .body(&bytes);
            let answer = http.call(place, call).await?;
            session.address = location(&answer)?;
            session.at = end;
            progress.add(PIECE);
        }
        let bytes = piece(file, content, session.at, content.size).await?;
        let mut address = session.address.clone();
        address
            .query_pairs_mut()
            .append_pair("digest", content.digest.as_str());
        let mut call = Call::new(Method::PUT, To::Address(address))
            .header(CONTENT_TYPE, OCTETS)
            .body(&bytes);
        if session.at > 0 && session.at < content.size {
            let range = format!("{}-{}", session.at, content.size - 1);
            call = call.header(CONTENT_RANGE, range);
        }
        http.call(place, call).await?;
        progress.add(content.size - session.at);
        Ok(Arrival::Sent)
    }

    /// Gives a manifest its name. All that it refers to was sent before.
    pub(crate) async fn put_manifest(
        &self,
        place: &Endpoint,
        tag: &str,
        bytes: &[u8],
        media_type: &str,
    ) -> Result<(), Failure> {
        let path = format!("manifests/{tag}");
        self.again(place, || {
            Call::new(Method::PUT, To::Repository(&path))
                .header(CONTENT_TYPE, media_type)
                .body(bytes)
        })
        .await
        .map(|_| ())
    }

    /// Takes a tag away.
    pub(crate) async fn delete_tag(&self, place: &Endpoint, tag: &str) -> Result<(), Failure> {
        let path = format!("manifests/{tag}");
        self.again(place, || Call::new(Method::DELETE, To::Repository(&path)))
            .await
            .map(|_| ())
    }

    /// The tags of a repository; none when there is no such repository.
    pub(crate) async fn tags(&self, place: &Endpoint) -> Result<Vec<String>, Failure> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let path = format!("/v2/{}/tags/list?n={PAGE}", place.repository);
        let pages = self.pages::<Page>(place, path).await;
        match pages {
            Ok(pages) => Ok(pages
                .into_iter()
                .filter_map(|page| page.tags)
                .flatten()
                .collect()),
            Err(Failure::NotFound { .. }) => Ok(Vec::new()),
            Err(failure) => Err(failure),
        }
    }

    /// The repositories of a registry.
    pub(crate) async fn catalog(&self, place: &Endpoint) -> Result<Vec<String>, Failure> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let root = Endpoint {
            repository: String::new(),
            ..place.clone()
        };
        let pages = self
            .pages::<Page>(&root, format!("/v2/_catalog?n={PAGE}"))
            .await?;
        Ok(pages
            .into_iter()
            .filter_map(|page| page.repositories)
            .flatten()
            .collect())
    }

    /// Asks whether the registry lets us in.
    pub(crate) async fn greet(&self, place: &Endpoint) -> Result<(), Failure> {
        let root = Endpoint {
            repository: String::new(),
            ..place.clone()
        };
        self.again(&root, || Call::new(Method::GET, To::Host("/v2/")))
            .await
            .map(|_| ())
    }

    async fn pages<T: DeserializeOwned>(
        &self,
        place: &Endpoint,
        mut path: String,
    ) -> Result<Vec<T>, Failure> {
        let mut pages = Vec::new();
        loop {
            let answer = self
                .again(place, || Call::new(Method::GET, To::Host(&path)))
                .await?;
            let url = answer.url().to_string();
            let next = answer
                .headers()
                .get(LINK)
                .and_then(|link| link.to_str().ok())
                .and_then(next);
            let bytes = body(answer, MAX_DOCUMENT, &url).await?;
            let page = serde_json::from_slice(&bytes).map_err(|error| {
                malformed(url.clone(), &format!("the list is malformed: {error}"))
            })?;
            pages.push(page);
            match next {
                None => return Ok(pages),
                Some(_) if pages.len() >= MAX_PAGES => {
                    return Err(malformed(url, "the list has no end"));
                }
                Some(next) => path = next,
            }
        }
    }

    /// A request without effects that add up, tried again after passing faults.
    async fn again<'a>(
        &self,
        place: &Endpoint,
        call: impl Fn() -> Call<'a>,
    ) -> Result<Response, Failure> {
        let mut tries = Tries::new(self.0.retry);
        loop {
            match self.0.http.call(place, call()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => tries.next(failure).await?,
            }
        }
    }
}

/// Reads a piece of the content.
async fn piece(
    file: &Arc<File>,
    content: &Content,
    from: u64,
    to: u64,
) -> Result<Vec<u8>, Failure> {
    let (file, offset) = (Arc::clone(file), content.offset + from);
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; (to - from) as usize];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes)
    });
    let read = read.await.map_err(std::io::Error::other).flatten();
    read.map_err(|source| {
        LayoutError::Io {
            action: "read",
            path: content.path.clone(),
            source,
        }
        .into()
    })
}

/// Where to go on. A registry behind a proxy may not know its own scheme.
fn location(answer: &Response) -> Result<Url, Failure> {
    let bad = || malformed(answer.url().to_string(), "gave no address for an upload");
    let text = answer
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let mut address = answer
        .url()
        .join(text.ok_or_else(bad)?)
        .map_err(|_| bad())?;
    if address.host_str() == answer.url().host_str() && address.port() == answer.url().port() {
        address
            .set_scheme(answer.url().scheme())
            .map_err(|()| bad())?;
    }
    Ok(address)
}

/// How many bytes of an upload have arrived: `0-99` are a hundred. Nothing is
/// told as `0-0`.
fn received(answer: &Response) -> u64 {
    let last = answer.headers().get(RANGE).and_then(|range| {
        let (_, last) = range.to_str().ok()?.rsplit_once('-')?;
        last.parse::<u64>().ok()
    });
    match last {
        None | Some(0) => 0,
        Some(last) => last + 1,
    }
}

/// The path of `</v2/_catalog?last=x>; rel="next"`. An address elsewhere is
/// not followed.
fn next(link: &str) -> Option<String> {
    let (address, relation) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !relation.contains("next") {
        return None;
    }
    match Url::parse(address) {
        Ok(url) => Some(format!(
            "{}?{}",
            url.path(),
            url.query().unwrap_or_default()
        )),
        Err(_) => address.starts_with('/').then(|| address.to_owned()),
    }
}

fn malformed(url: String, reason: &str) -> Failure {
    Failure::Malformed {
        url,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_of_the_same_host() {
        assert_eq!(
            next("</v2/_catalog?last=b&n=2>; rel=\"next\"").as_deref(),
            Some("/v2/_catalog?last=b&n=2")
        );
        assert_eq!(
            next("<https://evil.io/v2/x?last=b>; rel=\"next\"").as_deref(),
            Some("/v2/x?last=b")
        );
        assert_eq!(next("<v2>; rel=\"next\""), None);
        assert_eq!(next("</v2/x>; rel=\"prev\""), None);
        assert_eq!(next("x"), None);
    }
}
