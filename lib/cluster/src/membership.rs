//! What the nodes of a cluster share: its description and join tokens.
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

use crate::client::{Client, DEADLINE, Error, is_conflict, is_missing, retry};

/// Namespace of all that nodes share.
pub(crate) const NAMESPACE: &str = "kube-system";
/// ConfigMap with the description.
pub const DESCRIPTION: &str = "gravity-cluster";
/// Key in it.
pub const DESCRIPTION_KEY: &str = "cluster.json";
/// Label of Secrets that are join tokens.
const KIND_LABEL: &str = "gravitational.io/kind";
const TOKEN_KIND: &str = "join-token";
const TOKEN_PREFIX: &str = "gravity-join-token-";
const TOKEN_KEY: &str = "token";
const EXPIRES: &str = "gravitational.io/expires";

/// A cluster's description as it was read.
#[derive(Debug, Clone)]
pub struct Description {
    /// JSON.
    pub text: String,
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
    pub(crate) fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.0.clone(), NAMESPACE)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.0.clone(), NAMESPACE)
    }

    /// What the cluster is.
    ///
    /// # Errors
    /// When the API doesn't answer, or there is no description.
    pub async fn description(&self) -> Result<Description, Error> {
        let api = self.maps();
        let what = "reading the cluster's description";
        let map = retry(what, DEADLINE, || api.get(DESCRIPTION)).await?;
        let text = map.data.as_ref().and_then(|data| data.get(DESCRIPTION_KEY));
        let text = text.cloned().ok_or_else(|| Error::Incomplete {
            object: DESCRIPTION.into(),
            field: DESCRIPTION_KEY,
        })?;
        Ok(Description { text, map })
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

    /// Replaces what was read; `false` where somebody else was faster.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn replace_description(
        &self,
        read: Description,
        text: String,
    ) -> Result<bool, Error> {
        let mut map = read.map;
        map.data
            .get_or_insert_default()
            .insert(DESCRIPTION_KEY.into(), text);
        self.keep("changing the cluster's description", &map).await
    }

    /// Keeps a ConfigMap as it is after a change of what was read, or of nothing;
    /// `false` where somebody else was faster.
    pub(crate) async fn keep(&self, what: &str, map: &ConfigMap) -> Result<bool, Error> {
        let api = self.maps();
        let params = PostParams::default();
        retry(what, DEADLINE, || async {
            let kept = match map.metadata.resource_version {
                None => api.create(&params, map).await,
                Some(_) => api.replace(&map.name_any(), &params, map).await,
            };
            match kept {
                Ok(_) => Ok(true),
                Err(error) if is_conflict(&error) => Ok(false),
                Err(error) => Err(error),
            }
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
            match api.create(&params, &secret).await {
                // Made by a request whose answer was lost.
                Err(error) if is_conflict(&error) => Ok(()),
                other => other.map(drop),
            }
        })
        .await
    }

    /// Ends a join token; `false` where there is none of that name.
    ///
    /// # Errors
    /// When the API doesn't answer or refuses us.
    pub async fn remove_join_token(&self, name: &str) -> Result<bool, Error> {
        let (api, params) = (self.secrets(), DeleteParams::default());
        let name = format!("{TOKEN_PREFIX}{name}");
        retry("ending a join token", DEADLINE, || async {
            match api.delete(&name, &params).await {
                Ok(_) => Ok(true),
                Err(error) if is_missing(&error) => Ok(false),
                Err(error) => Err(error),
            }
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
