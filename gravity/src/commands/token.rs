//! `gravity token`: with what nodes join.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use console::{ExitCode, render};
use jiff::{SignedDuration, Timestamp};
use pki::JoinToken;
use serde::Serialize;
use spec::ClusterSpec;

use super::{Session, WrongUsage, copy_of_this, require_root};
use crate::cli::Token;

/// Largest file that a token is read from, in bytes.
const MAX_FILE: u64 = 4096;

/// What `token create --output json` prints.
#[derive(Debug, Serialize)]
struct Created {
    name: String,
    token: String,
    expires: Timestamp,
    join: String,
}

/// What `token list --output json` prints.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    expires: Timestamp,
    expired: bool,
}

pub(crate) async fn run(session: &Session, arguments: &Token) -> Result<ExitCode> {
    require_root()?;
    match arguments {
        Token::Create { ttl, token_file } => create(session, *ttl, token_file.as_deref()).await,
        Token::List => list(session).await,
        Token::Remove { name } => remove(session, name).await,
    }
}

/// Addresses of the masters, as `gravity join` takes them.
pub(crate) fn masters(cluster: &ClusterSpec) -> String {
    let masters: Vec<_> = cluster.masters().map(|master| master.to_string()).collect();
    masters.join(",")
}

/// The token of `--token` or `--token-file`.
pub(crate) fn chosen(text: Option<&str>, file: Option<&Path>) -> Result<Option<JoinToken>> {
    match (text, file) {
        (Some(text), _) => parse(text).map(Some),
        (None, Some(path)) => read(path).map(Some),
        (None, None) => Ok(None),
    }
}

/// A token as the cluster keeps it from now on.
pub(crate) fn stored(token: &JoinToken, ttl: SignedDuration) -> Result<cluster::StoredToken> {
    let name = match token.id.as_str() {
        "" => pki::token(4)?,
        id => id.to_owned(),
    };
    Ok(cluster::StoredToken {
        name,
        text: token.text(),
        expires: Timestamp::now().checked_add(ttl).context("add the time")?,
    })
}

/// Makes a token; `own` is one that the user chose.
pub(crate) async fn make(
    session: &Session,
    client: &cluster::Client,
    ttl: SignedDuration,
    own: Option<JoinToken>,
) -> Result<cluster::StoredToken> {
    let token = match own {
        Some(token) => token,
        None => {
            let path = session.layout.rpc_authority();
            let authority = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            JoinToken::generate(pki::tls::fingerprint(&authority)?)?
        }
    };
    let stored = stored(&token, ttl)?;
    client.add_join_token(&stored).await?;
    Ok(stored)
}

/// The token that is good the longest, `life` at least, of those that may be
/// shown: one of a user's own choice may not.
pub(crate) async fn valid(
    client: &cluster::Client,
    life: SignedDuration,
) -> Result<Option<cluster::StoredToken>> {
    let until = Timestamp::now().checked_add(life).context("add the time")?;
    let tokens = client.join_tokens().await?.into_iter();
    let generated = |token: &cluster::StoredToken| {
        JoinToken::parse(&token.text).is_some_and(|token| token.fingerprint.is_some())
    };
    Ok(tokens
        .filter(|token| token.expires > until && generated(token))
        .max_by_key(|token| token.expires))
}

async fn create(session: &Session, ttl: SignedDuration, file: Option<&Path>) -> Result<ExitCode> {
    let own = file.map(read).transpose()?;
    let client = session.administrator().await?;
    let stored = make(session, &client, ttl, own).await?;
    let masters = masters(&installer::controller::description(&client).await?);
    // One of the user's own choice is not shown again.
    let shown = match file {
        Some(_) => "TOKEN".to_owned(),
        None => stored.text.clone(),
    };
    let join = format!("{} join {masters} --token={shown}", copy_of_this());
    if session.console.is_json() {
        session.console.print_json(&Created {
            name: stored.name,
            token: shown,
            expires: stored.expires,
            join,
        })?;
    } else {
        session.console.print(&format!(
            "Token {} is good until {}. On the node that is to join, in the directory of the cluster image:\n  {join}",
            stored.name,
            render::log_timestamp(stored.expires)
        ));
    }
    Ok(ExitCode::Ok)
}

async fn list(session: &Session) -> Result<ExitCode> {
    let client = session.administrator().await?;
    let now = Timestamp::now();
    let tokens: Vec<_> = client
        .join_tokens()
        .await?
        .into_iter()
        .map(|token| Listed {
            expired: token.expires <= now,
            name: token.name,
            expires: token.expires,
        })
        .collect();
    if session.console.is_json() {
        session.console.print_json(&tokens)?;
        return Ok(ExitCode::Ok);
    }
    if tokens.is_empty() {
        session
            .console
            .print("There are no tokens; `gravity token create` makes one");
    }
    for token in &tokens {
        session.console.print(&line(token));
    }
    Ok(ExitCode::Ok)
}

fn line(token: &Listed) -> String {
    let state = if token.expired { "expired" } else { "valid" };
    let expires = render::log_timestamp(token.expires);
    format!("{}  {state:<7}  until {expires}", token.name)
}

async fn remove(session: &Session, name: &str) -> Result<ExitCode> {
    let client = session.administrator().await?;
    if !client.remove_join_token(name).await? {
        bail!("there is no token {name}; `gravity token list` shows all");
    }
    Ok(ExitCode::Ok)
}

/// A token from a file or, for `-`, standard input.
pub(crate) fn read(path: &Path) -> Result<JoinToken> {
    let mut text = String::new();
    let limited = |from: &mut dyn Read, text: &mut String| from.take(MAX_FILE).read_to_string(text);
    match path.to_str() {
        Some("-") => limited(&mut std::io::stdin(), &mut text),
        _ => std::fs::File::open(path).and_then(|mut file| limited(&mut file, &mut text)),
    }
    .with_context(|| format!("read the token from {}", path.display()))?;
    parse(&text)
}

/// A token as it was typed.
pub(crate) fn parse(text: &str) -> Result<JoinToken> {
    use pki::join_token::{CHOSEN_MAX, CHOSEN_MIN};
    let wrong = || {
        WrongUsage(format!(
            "what was given as token has not {CHOSEN_MIN} to {CHOSEN_MAX} printable characters \
             without spaces"
        ))
    };
    Ok(JoinToken::parse(text).ok_or_else(wrong)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_listed_with_whole_seconds() {
        let token = Listed {
            name: "0c7bc97f".into(),
            expires: Timestamp::from_millisecond(1_700_000_000_123).unwrap(),
            expired: false,
        };
        let expected = "0c7bc97f  valid    until 2023-11-14T22:13:20Z";
        assert_eq!(line(&token), expected);
    }
}
