//! HTTP with logins, tokens and second tries.
//!
//! In: addresses. Out: answers that mean success, or a [`Failure`]. Secure
//! endpoints are asked over verified TLS only, redirects included; insecure
//! ones over TLS without verification, else over plain HTTP. A password goes
//! only to the registry it is for and to the token service that this names.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use crate::credentials::{Credentials, Login};
use crate::failure::Failure;
use crate::registries::Endpoint;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_TOKEN: u64 = 256 << 10;
/// Longest wait that a registry may ask for.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// How transient failures are met.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Tries, the first included.
    pub tries: u32,
    /// Wait before the second try; it doubles with each further one.
    pub delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 5,
            delay: Duration::from_millis(300),
        }
    }
}

/// Counts the tries of one thing.
pub(crate) struct Tries {
    retry: Retry,
    made: u32,
}

impl Tries {
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, made: 0 }
    }

    /// Waits before the next try, or gives the failure back when it is final.
    pub(crate) async fn next(&mut self, failure: Failure) -> Result<(), Failure> {
        self.made += 1;
        if !failure.is_transient() || self.made >= self.retry.tries {
            return Err(failure.tried(self.made));
        }
        tracing::debug!(%failure, "trying again");
        tokio::time::sleep(self.retry.delay * 2u32.saturating_pow(self.made - 1)).await;
        Ok(())
    }
}

/// The connections and what was learnt of registries.
#[derive(Debug)]
pub(crate) struct Http {
    secure: OnceLock<reqwest::Client>,
    insecure: OnceLock<reqwest::Client>,
    credentials: Credentials,
    /// Value of the authorization header by host and repository.
    granted: Mutex<HashMap<(String, String), String>>,
    /// Hosts of insecure endpoints that speak plain HTTP, or don't.
    plain: Mutex<HashMap<String, bool>>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Http {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self {
            secure: OnceLock::new(),
            insecure: OnceLock::new(),
            credentials,
            granted: Mutex::default(),
            plain: Mutex::default(),
        }
    }

    /// Asks a registry for `path` below the repository; logs in where it must.
    pub(crate) async fn get(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response, Failure> {
        let scheme = self.scheme(endpoint).await;
        let url = format!(
            "{scheme}://{}/v2/{}/{path}",
            endpoint.host, endpoint.repository
        );
        let client = self.client(endpoint.insecure, &url)?;
        let key = (endpoint.host.clone(), endpoint.repository.clone());
        let mut granted = lock(&self.granted).get(&key).cloned();
        let mut asked = false;
        loop {
            let mut request = client.get(&url);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(value) = &granted {
                request = request.header(AUTHORIZATION, value);
            }
            let response = request.send().await.map_err(|e| transport(&url, &e))?;
            if response.status() != StatusCode::UNAUTHORIZED || asked {
                return self.checked(endpoint, &url, response).await;
            }
            // Also when a token was sent: it may have expired.
            asked = true;
            let Some(value) = self
                .log_in(endpoint, scheme, &url, response.headers())
                .await?
            else {
                return self.checked(endpoint, &url, response).await;
            };
            lock(&self.granted).insert(key.clone(), value.clone());
            granted = Some(value);
        }
    }

    /// Fetches any web address over verified TLS or plain HTTP, at most `max`
    /// bytes.
    pub(crate) async fn fetch(&self, url: &str, max: u64) -> Result<Vec<u8>, Failure> {
        let insecure = url.starts_with("http://");
        let client = self.client(insecure, url)?;
        let response = client
            .get(url)
            .send()
            .await
            .map_err(|e| transport(url, &e))?;
        let host = response.url().host_str().unwrap_or_default().to_owned();
        let endpoint = Endpoint {
            host,
            repository: String::new(),
            insecure,
        };
        let response = self.checked(&endpoint, url, response).await?;
        body(response, max, url).await
    }

    async fn checked(
        &self,
        endpoint: &Endpoint,
        url: &str,
        response: Response,
    ) -> Result<Response, Failure> {
        let status = response.status();
        let url = url.to_owned();
        match status.as_u16() {
            200..=299 => Ok(response),
            404 => Err(Failure::NotFound { url }),
            status @ (401 | 403) => Err(Failure::Denied {
                url,
                status,
                looked_at: self.credentials.looked_at(&endpoint.host),
            }),
            status => {
                if let Some(wait) = retry_after(response.headers()) {
                    tokio::time::sleep(wait).await;
                }
                let text = body(response, 4096, &url).await.unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let body = text
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
                    .chars()
                    .take(200)
                    .collect();
                Err(Failure::Status {
                    url,
                    status,
                    body,
                    tries: 1,
                })
            }
        }
    }

    /// The header that the registry asks for, if we can give one.
    async fn log_in(
        &self,
        endpoint: &Endpoint,
        scheme: &str,
        url: &str,
        headers: &HeaderMap,
    ) -> Result<Option<String>, Failure> {
        let login = self.credentials.login(&endpoint.host, &endpoint.repository);
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().and_then(challenge))
            .collect();
        if let Some(bearer) = challenges
            .iter()
            .find(|challenge| challenge.scheme == "bearer")
        {
            return self
                .token(endpoint, scheme, url, bearer, login)
                .await
                .map(Some);
        }
        let basic = challenges
            .iter()
            .any(|challenge| challenge.scheme == "basic");
        Ok(login.filter(|_| basic).map(|login| basic_header(&login)))
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        scheme: &str,
        url: &str,
        bearer: &Challenge,
        login: Option<Login>,
    ) -> Result<String, Failure> {
        let malformed = |reason: String| Failure::Malformed {
            url: url.to_owned(),
            reason,
        };
        let Some(realm) = bearer.get("realm") else {
            return Err(malformed(
                "asks for a token without saying where from".into(),
            ));
        };
        let mut address: reqwest::Url = realm
            .parse()
            .map_err(|_| malformed("asks for a token from a malformed address".into()))?;
        if scheme == "https" && address.scheme() != "https" {
            return Err(malformed(format!(
                "asks for a token over plain HTTP, from {realm}"
            )));
        }
        let ours = format!("repository:{}:pull", endpoint.repository);
        {
            let mut query = address.query_pairs_mut();
            if let Some(service) = bearer.get("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", bearer.get("scope").unwrap_or(&ours));
        }
        let mut request = self.client(endpoint.insecure, realm)?.get(address);
        if let Some(login) = &login {
            request = request.header(AUTHORIZATION, basic_header(login));
        }
        let response = request.send().await.map_err(|e| transport(realm, &e))?;
        let response = self.checked(endpoint, realm, response).await?;
        let token = body(response, MAX_TOKEN, realm).await?;
        let malformed = || Failure::Malformed {
            url: realm.to_owned(),
            reason: "gave no token".into(),
        };
        let token: Token = serde_json::from_slice(&token).map_err(|_| malformed())?;
        let token = token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(malformed)?;
        Ok(format!("Bearer {token}"))
    }

    /// TLS unless the endpoint is insecure and speaks plain HTTP.
    async fn scheme(&self, endpoint: &Endpoint) -> &'static str {
        let name = |plain: bool| if plain { "http" } else { "https" };
        if !endpoint.insecure {
            return "https";
        }
        if let Some(plain) = lock(&self.plain).get(&endpoint.host) {
            return name(*plain);
        }
        let probe = |scheme: &str| format!("{scheme}://{}/v2/", endpoint.host);
        let Ok(client) = self.client(true, &probe("https")) else {
            return "http";
        };
        let plain = match client.get(probe("https")).send().await {
            Ok(_) => false,
            Err(_) => match client.get(probe("http")).send().await {
                Ok(_) => true,
                // Neither answers: nothing was learnt.
                Err(_) => return "http",
            },
        };
        lock(&self.plain).insert(endpoint.host.clone(), plain);
        name(plain)
    }

    fn client(&self, insecure: bool, url: &str) -> Result<&reqwest::Client, Failure> {
        let slot = if insecure {
            &self.insecure
        } else {
            &self.secure
        };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        // Another crate may have installed the same provider before.
        drop(rustls::crypto::ring::default_provider().install_default());
        let builder = reqwest::Client::builder()
            .user_agent(concat!("gravity/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        let builder = match insecure {
            true => builder.tls_danger_accept_invalid_certs(true),
            false => builder.https_only(true),
        };
        let client = builder.build().map_err(|error| Failure::Malformed {
            url: url.to_owned(),
            reason: format!(
                "TLS can't be set up: {}: is the package ca-certificates installed?",
                chain(&error)
            ),
        })?;
        Ok(slot.get_or_init(|| client))
    }
}

/// All bytes of an answer, at most `max`.
pub(crate) async fn body(mut response: Response, max: u64, url: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| transport(url, &e))? {
        if bytes.len() as u64 + chunk.len() as u64 > max {
            return Err(Failure::TooLarge {
                url: url.to_owned(),
                limit: max,
            });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

pub(crate) fn transport(url: &str, error: &reqwest::Error) -> Failure {
    Failure::Transport {
        url: url.to_owned(),
        reason: chain(error),
        tries: 1,
    }
}

/// The innermost causes say what happened; the outer ones repeat the address.
fn chain(error: &dyn std::error::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if parts.last().is_none_or(|last| !last.ends_with(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    match parts.is_empty() {
        true => error.to_string(),
        false => parts.join(": "),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_WAIT))
}

fn basic_header(login: &Login) -> String {
    let text = format!("{}:{}", login.user, login.password);
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(text)
    )
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a registry wants of who asks.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads one challenge: a scheme and `name=value` pairs, quoted or not.
fn challenge(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let mut parameters = Vec::new();
    while let Some((name, value)) = rest.trim_start_matches([',', ' ']).split_once('=') {
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_once(',').unwrap_or((value, "")),
        };
        parameters.push((name.trim().to_ascii_lowercase(), value.to_owned()));
        rest = after;
    }
    (!scheme.is_empty()).then(|| Challenge {
        scheme: scheme.to_ascii_lowercase(),
        parameters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.io/token",service="a, b",scope="repository:x/y:pull,push""#;
        let bearer = challenge(text).unwrap();
        assert_eq!(bearer.scheme, "bearer");
        assert_eq!(bearer.get("realm"), Some("https://auth.io/token"));
        assert_eq!(bearer.get("service"), Some("a, b"));
        assert_eq!(bearer.get("scope"), Some("repository:x/y:pull,push"));
        let basic = challenge("Basic realm=registry, charset=UTF-8").unwrap();
        assert_eq!(
            (basic.scheme.as_str(), basic.get("charset")),
            ("basic", Some("UTF-8"))
        );
        assert_eq!(challenge("Negotiate").unwrap().parameters, []);
        assert_eq!(challenge(""), None);
        assert_eq!(challenge("Bearer realm=\"open"), None);
    }
}
