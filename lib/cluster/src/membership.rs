//! What the nodes of a cluster share: its description, its history and join tokens.
//!
//! In and out: text, which Kubernetes keeps; tokens as Secrets, encrypted at
//! rest. A change is made to what was read, or not at all.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};

use crate::client::{Client, DEADLINE, Error, retry, unless_missing, unless_there};

/// Namespace of all that nodes share.
const NAMESPACE: &str = "kube-system";
/// ConfigMap with the description.
pub const DESCRIPTION: &str = "gravity-cluster";
/// Key in it.
pub const DESCRIPTION_KEY: &str = "cluster.json";
/// ConfigMap with the history, and the key in it.
const HISTORY: &str = "gravity-history";
const HISTORY_KEY: &str = "history.json";
/// Label of Secrets that are join tokens.
const KIND_LABEL: &str = "gravitational.io/kind";
const TOKEN_KIND: &str = "join-token";
const TOKEN_PREFIX: &str = "gravity-join-token-";
const TOKEN_KEY: &str = "token";
const EXPIRES: &str = "gravitational.io/expires";

/// The cluster's description or history as it was read.
#[derive(Debug, Clone)]
pub struct Document {
    /// JSON; empty where nothing was kept yet.
    pub text: String,
    what: &'static str,
    key: &'static str,
    map: ConfigMap,
}

/// A join token as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// Names it.
    pub name: String,
    /// The token as a user types it.
    pub text: String,
    /// Until when it is good.
    pub expires: Timestamp,
}

impl std::fmt::Debug for StoredToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredToken")
            .field("name", &self.name)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl StoredToken {
    /// The Secret that keeps it.
    pub fn secret(&self) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(format!("{TOKEN_PREFIX}{}", self.name)),
                namespace: Some(NAMESPACE.into()),
                labels: Some(BTreeMap::from([(KIND_LABEL.into(), TOKEN_KIND.into())])),
                annotations: Some(BTreeMap::from([(EXPIRES.into(), self.expires.to_string())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(
                TOKEN_KEY.into(),
                ByteString(self.text.clone().into_bytes()),
            )])),
            immutable: Some(true),
            ..Secret::default()
        }
    }
}

impl Client {
    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.0.clone(), NAMESPACE)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.0.clone(), NAMESPACE)
    }

    /// What the cluster is.
    ///
    /// # Errors
    /// When the API doesn't answer, or there is no description.
    pub async fn description(&self) -> Result<Document, Error> {
        let what = "the cluster's description";
        let read = self.read(what, DESCRIPTION, DESCRIPTION_KEY).await?;
        match read.text.is_empty() {
            true => Err(Error::Incomplete {
                object: DESCRIPTION.into(),
                field: DESCRIPTION_KEY,
            }),
            false => Ok(read),
        }
    }

    /// Whether it is said anywhere what the cluster is.
    ///
    /// # Errors
    /// When the API doesn't answer.
    pub async fn has_description(&self) -> Result<bool, Error> {
        let api = self.maps();
        let what = "looking for the cluster's description";
        let map = retry(what, DEADLINE, || api.get_opt(DESCRIPTION)).await?;
        Ok(map.is_some())
    }

    /// What the cluster is, now and after each change. It goes on for ever, also
    /// while the API can't be reached.
    pub fn watch_description(&self) -> impl Stream<Item = String> {
        watcher::watch_object(self.maps(), DESCRIPTION)
            .default_backoff()
            .filter_map(async |change| match change {
                Ok(map) => map?.data?.remove(DESCRIPTION_KEY),
                Err(error) => {
                    tracing::debug!(?error, "watching the cluster's description again");
                    None
                }
            })
    }

    /// What has happened to the cluster.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn history(&self) -> Result<Document, Error> {
        self.read("the cluster's history", HISTORY, HISTORY_KEY)
            .await
    }

    async fn read(
        &self,
        what: &'static str,
        name: &str,
        key: &'static str,
    ) -> Result<Document, Error> {
        let api = self.maps();
        let map = retry(&format!("reading {what}"), DEADLINE, || api.get_opt(name)).await?;
        let map = map.unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        });
        let text = map.data.as_ref().and_then(|data| data.get(key));
        Ok(Document {
            text: text.cloned().unwrap_or_default(),
            what,
            key,
            map,
        })
    }

    /// Replaces what was read; `false` where somebody else was faster.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn replace(&self, read: Document, text: String) -> Result<bool, Error> {
        let mut map = read.map;
        let data = map.data.get_or_insert_default();
        data.insert(read.key.into(), text);
        let (api, params) = (self.maps(), PostParams::default());
        let what = format!("replacing {}", read.what);
        retry(&what, DEADLINE, || async {
            unless_there(match map.metadata.resource_version {
                None => api.create(&params, &map).await,
                Some(_) => api.replace(&map.name_any(), &params, &map).await,
            })
        })
        .await
    }

    /// Join tokens, expired ones too, by name.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn join_tokens(&self) -> Result<Vec<StoredToken>, Error> {
        let params = ListParams::default().labels(&format!("{KIND_LABEL}={TOKEN_KIND}"));
        let secrets = self
            .list("listing join tokens", &self.secrets(), params)
            .await?;
        let mut tokens: Vec<_> = secrets.iter().filter_map(token).collect();
        tokens.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tokens)
    }

    /// Keeps a join token. One of the same name is replaced.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn add_join_token(&self, token: &StoredToken) -> Result<(), Error> {
        self.remove_join_token(&token.name).await?;
        let secret = token.secret();
        let (api, params) = (self.secrets(), PostParams::default());
        retry("keeping a join token", DEADLINE, || async {
            // It is there already where the answer to a request was lost.
            unless_there(api.create(&params, &secret).await)
        })
        .await
        .map(drop)
    }

    /// Ends a join token; `false` where there is none of that name.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn remove_join_token(&self, name: &str) -> Result<bool, Error> {
        let (api, params) = (self.secrets(), DeleteParams::default());
        let name = format!("{TOKEN_PREFIX}{name}");
        retry("ending a join token", DEADLINE, || async {
            unless_missing(api.delete(&name, &params).await)
        })
        .await
    }
}

/// `None` where the Secret is not one of ours, whatever its label says.
fn token(secret: &Secret) -> Option<StoredToken> {
    let text = secret.data.as_ref()?.get(TOKEN_KEY)?;
    Some(StoredToken {
        name: secret.name_any().strip_prefix(TOKEN_PREFIX)?.to_owned(),
        text: String::from_utf8(text.0.clone()).ok()?,
        expires: secret.annotations().get(EXPIRES)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_without_an_end_is_no_token() {
        let mut secret = Secret {
            metadata: ObjectMeta {
                name: Some(format!("{TOKEN_PREFIX}ab")),
                annotations: Some(BTreeMap::from([(
                    EXPIRES.into(),
                    "2026-01-01T00:00:00Z".into(),
                )])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(
                TOKEN_KEY.into(),
                ByteString(b"secret".to_vec()),
            )])),
            ..Secret::default()
        };
        let read = token(&secret).unwrap();
        assert_eq!((read.name.as_str(), read.text.as_str()), ("ab", "secret"));
        assert!(!format!("{read:?}").contains("secret"));
        secret.metadata.annotations = None;
        assert_eq!(token(&secret), None);
    }
}
