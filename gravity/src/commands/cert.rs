//! `gravity cert`: the certificates of this node.

use std::path::Path;

use anyhow::{Context, Result, bail};
use console::{ExitCode, render};
use event::Sink;
use host::lock::Lock;
use jiff::Timestamp;
use serde::Serialize;

use super::{Session, require_root};
use crate::cli::Cert;

/// Largest certificate or kubeconfig in bytes.
const MAX_FILE: u64 = 1 << 20;
/// State of a certificate that was made while a clock was ahead.
const NOT_YET_VALID: &str = "not yet valid";

/// One certificate.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// File below the directory of secrets.
    file: String,
    /// Whom it names.
    common_name: String,
    /// Who signed it.
    issuer: String,
    /// Until when it is good.
    expires: Timestamp,
    /// Half of its life is over then.
    half_life: Timestamp,
    /// `good`, `due` after half of its life, `expired`, `not yet valid`.
    state: &'static str,
}

impl Row {
    /// What should have been done about it: when only a quarter of its life is left
    /// it is renewed on every node, and some time later it wasn't.
    pub(crate) fn warning(&self) -> Option<String> {
        let file = &self.file;
        if self.state == NOT_YET_VALID {
            return Some(format!(
                "certificate {file} is not yet valid: set the clock right; where it is, \
                 `gravity cert renew` makes a new one"
            ));
        }
        let late = self.half_life.duration_until(self.expires) * 2 / 3;
        let is_late = self.state == "due" && Timestamp::now() > self.half_life + late;
        (self.state == "expired" || is_late).then(|| {
            let expires = render::timestamp(self.expires);
            let ends = if is_late { "ends" } else { "has ended" };
            format!("certificate {file} {ends} {expires}; the log of service care says why")
        })
    }
}

pub(crate) async fn run(session: &Session, arguments: &Cert) -> Result<ExitCode> {
    require_root()?;
    match arguments {
        Cert::List => show(session),
        Cert::Renew { all } => renew(session, *all).await,
    }
}

/// Replaces certificates whose half-life is over, or all, and has the services
/// take them up, one after the other.
async fn renew(session: &Session, all: bool) -> Result<ExitCode> {
    let layout = &session.layout;
    let _lock = Lock::acquire(&layout.operation_lock())?;
    let care = agent::care::configured(layout)?;
    if care.etcd {
        // Certificates that have ended may be why it can't be had.
        match super::etcd::before(session, "the renewal of certificates") {
            Ok(snapshot) => session
                .console
                .info(&format!("Took snapshot {}", snapshot.name)),
            Err(error) => session.console.warning(&format!("{error:#}")),
        }
    }
    let now = Timestamp::now().as_second();
    let due = |found: &pki::Inspected| all || found.half_life() <= now || found.not_before > now;
    let planet = planet::client::Client::new(&layout.planet_socket());
    let renewed = agent::care::renew(layout, &care, &planet, due, &*session.console).await?;
    match session.console.is_json() {
        true => session.console.print_json(&renewed)?,
        false if renewed.is_empty() => session.console.info("No certificate is due"),
        false => session
            .console
            .info(&format!("Renewed {}", renewed.join(", "))),
    }
    Ok(ExitCode::Ok)
}

fn show(session: &Session) -> Result<ExitCode> {
    let rows = list(&session.layout.secrets(), Timestamp::now())?;
    if rows.is_empty() {
        bail!("there are no certificates on this node; `gravity install` makes them");
    }
    if session.console.is_json() {
        session.console.print_json(&rows)?;
        return Ok(ExitCode::Ok);
    }
    let lines: Vec<_> = rows
        .into_iter()
        .map(|row| {
            vec![
                row.file,
                row.common_name,
                row.issuer,
                render::timestamp(row.expires),
                row.state.to_owned(),
            ]
        })
        .collect();
    let header = ["File", "Name", "Signed by", "Good until", "State"];
    session.console.table(&header, &lines);
    Ok(ExitCode::Ok)
}

/// Certificates in files of their own, and those in kubeconfigs.
pub(crate) fn list(secrets: &Path, now: Timestamp) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for directory in [secrets.to_owned(), secrets.join("planet")] {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Some(pem) = certificate(&path)? else {
                continue;
            };
            let found = pki::inspect(&pem).with_context(|| format!("read {}", path.display()))?;
            let time = |seconds| Timestamp::from_second(seconds).context("read a certificate");
            let (begins, expires) = (time(found.not_before)?, time(found.not_after)?);
            let half_life = time(found.half_life())?;
            let file = path.strip_prefix(secrets).unwrap_or(&path);
            rows.push(Row {
                file: file.display().to_string(),
                common_name: found.common_name,
                issuer: found.issuer,
                expires,
                half_life,
                state: match now {
                    _ if now >= expires => "expired",
                    _ if now < begins => NOT_YET_VALID,
                    // Authorities are replaced with a plan, not by the way.
                    _ if now >= half_life && !found.is_authority => "due",
                    _ => "good",
                },
            });
        }
    }
    Ok(rows)
}

/// The certificate in a file, where it holds one.
fn certificate(path: &Path) -> Result<Option<String>> {
    let extension = path.extension().and_then(std::ffi::OsStr::to_str);
    if !matches!(extension, Some("crt" | "kubeconfig")) {
        return Ok(None);
    }
    let text = host::bounded::string(path, MAX_FILE)
        .with_context(|| format!("read {}", path.display()))?;
    if extension == Some("crt") {
        return Ok(Some(text));
    }
    pki::kubeconfig_certificate(&text)
        .map(Some)
        .with_context(|| format!("{} holds no client certificate", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pki::{Authority, Leaf};

    use super::*;

    fn put(path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> std::io::Result<()> {
        host::atomic::write(path.as_ref(), text.as_ref(), 0o600).map_err(|error| error.source)
    }

    #[test]
    fn certificates_of_files_and_kubeconfigs_are_listed_with_their_state() {
        let directory = tempfile::tempdir().unwrap();
        let planet = directory.path().join("planet");
        let hour = Duration::from_secs(3600);
        let authority = Authority::generate("kubernetes-ca", hour * 1000).unwrap();
        authority.save(&planet, "kubernetes-ca").unwrap();
        let leaf = Leaf::client("node-1", &[], hour * 9);
        let issued = authority.issue(&leaf).unwrap();
        put(planet.join("a.crt"), &issued.certificate_pem).unwrap();
        let data = pki::base64(issued.certificate_pem.as_bytes());
        let config = format!(r#"{{"users":[{{"user":{{"client-certificate-data":"{data}"}}}}]}}"#);
        put(planet.join("b.kubeconfig"), config).unwrap();
        put(directory.path().join("x.key"), "no certificate").unwrap();

        let states = |hours: i64| {
            let now = Timestamp::now() + jiff::SignedDuration::from_hours(hours);
            let rows = list(directory.path(), now).unwrap();
            let states: Vec<_> = rows
                .into_iter()
                .map(|row| (row.file, row.common_name, row.state))
                .collect();
            states
        };
        let row = |file: &str, name: &str, state| (file.to_owned(), name.to_owned(), state);
        for (hours, state) in [(0, "good"), (6, "due"), (10, "expired")] {
            assert_eq!(
                states(hours),
                [
                    row("planet/a.crt", "node-1", state),
                    row("planet/b.kubeconfig", "node-1", state),
                    row("planet/kubernetes-ca.crt", "kubernetes-ca", "good"),
                ]
            );
        }
        // They are good from an hour before they were made on.
        let earlier = Timestamp::now() - jiff::SignedDuration::from_hours(2);
        for row in list(directory.path(), earlier).unwrap() {
            assert_eq!(row.state, NOT_YET_VALID);
            assert!(row.warning().unwrap().contains("cert renew"));
        }
        put(planet.join("a.crt"), "damaged").unwrap();
        let error = list(directory.path(), Timestamp::now()).unwrap_err();
        assert!(error.to_string().contains("a.crt"), "{error}");
    }
}
