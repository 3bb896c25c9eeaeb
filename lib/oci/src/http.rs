//! HTTP with logins, tokens and second tries.
//!
//! In: addresses. Out: answers that mean success, or a [`Failure`]. Secure
//! endpoints are asked over verified TLS only, redirects included; insecure
//! ones over TLS without verification, else over plain HTTP. A password goes
//! only to the registry it is for and to the token service that this names.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use crate::certificates::Certificates;
use crate::credentials::{Credentials, Login};
use crate::failure::Failure;
use crate::registries::Endpoint;

pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
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
    /// Longest silence within an answer; a registry that is slow but sends is
    /// waited for.
    pub idle: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 5,
            delay: Duration::from_millis(300),
            idle: Duration::from_secs(60),
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
        match failure.is_transient() {
            true => self.anyway(failure).await,
            false => Err(failure.tried(self.made + 1)),
        }
    }

    /// The same when another try may help though the failure doesn't look so.
    pub(crate) async fn anyway(&mut self, failure: Failure) -> Result<(), Failure> {
        self.made += 1;
        if self.made >= self.retry.tries {
            return Err(failure.tried(self.made));
        }
        tracing::debug!(%failure, "trying again");
        let delay = self.retry.delay * 2u32.saturating_pow(self.made - 1);
        tokio::time::sleep(delay.max(failure.retry_after().unwrap_or_default())).await;
        Ok(())
    }
}

/// The connections and what was learnt of registries.
#[derive(Debug)]
pub(crate) struct Http {
    /// By host and whether its certificate is not verified. All hosts without
    /// certificates of their own share the one of the empty name.
    clients: Mutex<HashMap<(String, bool), reqwest::Client>>,
    idle: Duration,
    credentials: Credentials,
    certificates: Certificates,
    /// Value of the authorization header by host and repository.
    granted: Mutex<HashMap<(String, String), String>>,
    /// Hosts of insecure endpoints that speak plain HTTP, or don't.
    plain: Mutex<HashMap<String, bool>>,
}

/// One request to a registry.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) to: To<'a>,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) body: Option<&'a [u8]>,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum To<'a> {
    /// A path below the repository.
    Repository(&'a str),
    /// A path below the host.
    Host(&'a str),
    /// An address that the registry gave.
    Address(Url),
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, to: To<'a>) -> Self {
        Self {
            method,
            to,
            headers: Vec::new(),
            body: None,
        }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, body: &'a [u8]) -> Self {
        self.body = Some(body);
        self
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Http {
    pub(crate) fn new(
        credentials: Credentials,
        certificates: Certificates,
        idle: Duration,
    ) -> Self {
        Self {
            clients: Mutex::default(),
            idle,
            credentials,
            certificates,
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
        let mut call = Call::new(Method::GET, To::Repository(path));
        if let Some(accept) = accept {
            call = call.header(ACCEPT, accept);
        }
        if from > 0 {
            call = call.header(RANGE, format!("bytes={from}-"));
        }
        self.call(endpoint, call).await
    }

    /// Makes a request; logs in where it must. Credentials go to the
    /// endpoint's host alone: not behind a redirect to another one, and not to
    /// an address elsewhere.
    pub(crate) async fn call(
        &self,
        endpoint: &Endpoint,
        call: Call<'_>,
    ) -> Result<Response, Failure> {
        let scheme = self.scheme(endpoint).await;
        let text = match &call.to {
            To::Repository(path) => format!(
                "{scheme}://{}/v2/{}/{path}",
                endpoint.host, endpoint.repository
            ),
            To::Host(path) => format!("{scheme}://{}{path}", endpoint.host),
            To::Address(url) => url.to_string(),
        };
        let malformed = |_| Failure::Malformed {
            url: text.clone(),
            reason: "the address is malformed".into(),
        };
        let url = Url::parse(&text).map_err(malformed)?;
        let home = Url::parse(&format!("{scheme}://{}", endpoint.host)).map_err(malformed)?;
        let ours = home.origin() == url.origin();
        let host = match ours {
            true => endpoint.host.clone(),
            false => authority(&url),
        };
        let client = self.client(&host, endpoint.insecure, &text)?;
        let key = (endpoint.host.clone(), endpoint.repository.clone());
        let mut granted = lock(&self.granted).get(&key).filter(|_| ours).cloned();
        let mut asked = !ours;
        loop {
            let mut request = client.request(call.method.clone(), url.clone());
            for (name, value) in &call.headers {
                request = request.header(name, value);
            }
            if let Some(body) = call.body {
                request = request.body(body.to_vec());
            }
            if let Some(value) = &granted {
                request = request.header(AUTHORIZATION, value);
            }
            let response = request.send().await.map_err(|e| transport(&text, &e))?;
            if response.status() != StatusCode::UNAUTHORIZED || asked {
                return self.checked(endpoint, &text, response).await;
            }
            // Also when a token was sent: it may have expired, or not suffice.
            asked = true;
            let Some(value) = self
                .log_in(endpoint, scheme, &text, response.headers())
                .await?
            else {
                return self.checked(endpoint, &text, response).await;
            };
            lock(&self.granted).insert(key.clone(), value.clone());
            granted = Some(value);
        }
    }

    /// Fetches any web address over verified TLS or plain HTTP, at most `max`
    /// bytes.
    pub(crate) async fn fetch(&self, url: &str, max: u64) -> Result<Vec<u8>, Failure> {
        let insecure = url.starts_with("http://");
        let host = Url::parse(url)
            .map(|url| authority(&url))
            .unwrap_or_default();
        let client = self.client(&host, insecure, url)?;
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
                let retry_after = retry_after(response.headers());
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
                    retry_after,
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
        let ours = match endpoint.repository.as_str() {
            "" => "registry:catalog:*".to_owned(),
            repository => format!("repository:{repository}:pull"),
        };
        {
            let mut query = address.query_pairs_mut();
            if let Some(service) = bearer.get("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", bearer.get("scope").unwrap_or(&ours));
        }
        let client = self.client(&authority(&address), endpoint.insecure, realm)?;
        let mut request = client.get(address);
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
        let Ok(client) = self.client(&endpoint.host, true, &probe("https")) else {
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

    fn client(&self, host: &str, insecure: bool, url: &str) -> Result<reqwest::Client, Failure> {
        let malformed = |reason| Failure::Malformed {
            url: url.to_owned(),
            reason,
        };
        let known = |host: &str| {
            lock(&self.clients)
                .get(&(host.to_owned(), insecure))
                .cloned()
        };
        let keep = |host: &str, client: &reqwest::Client| {
            lock(&self.clients).insert((host.to_owned(), insecure), client.clone());
        };
        if let Some(client) = known(host) {
            return Ok(client);
        }
        let own = self.certificates.of(host).map_err(malformed)?;
        let shared = own.is_none();
        if shared && let Some(client) = known("") {
            keep(host, &client);
            return Ok(client);
        }
        // Another crate may have installed the same provider before.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("gravity/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(self.idle);
        builder = match insecure {
            true => builder.tls_danger_accept_invalid_certs(true),
            false => builder.https_only(true),
        };
        if let Some(own) = own {
            builder = builder.tls_certs_merge(own.authorities);
            if let Some(identity) = own.identity {
                builder = builder.identity(identity);
            }
        }
        let client = builder.build().map_err(|error| {
            malformed(format!(
                "TLS can't be set up: {}: is the package ca-certificates installed?",
                chain(&error)
            ))
        })?;
        keep(host, &client);
        if shared {
            keep("", &client);
        }
        Ok(client)
    }
}

/// Host and, unless it is the scheme's own, port.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
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
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
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
