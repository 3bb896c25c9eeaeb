//! What the checks found.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Fix, checks};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Info,
    /// Somebody should know; the operation may go on.
    Warning,
    /// The operation must not go on.
    Failure,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// What one check found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable id of the check.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at.
    pub title: String,
    /// What there is.
    pub measured: String,
    /// What there should be.
    pub wanted: String,
    /// What to do; empty where nothing has to be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// What `--autofix` would do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
    /// What a program wrote that was run for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Somebody decided that a failure doesn't count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
}

impl Finding {
    /// The same, but not as it should be.
    pub(crate) fn fails(self, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Failure,
            remedy: remedy.into(),
            ..self
        }
    }

    /// The same, but somebody should know.
    pub(crate) fn warns(self, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            remedy: remedy.into(),
            ..self
        }
    }

    /// Fails unless `good`.
    pub(crate) fn unless(self, good: bool, remedy: impl Into<String>) -> Self {
        if good { self } else { self.fails(remedy) }
    }

    /// Warns unless `good`.
    pub(crate) fn rather(self, good: bool, remedy: impl Into<String>) -> Self {
        if good { self } else { self.warns(remedy) }
    }

    /// The same, and `--autofix` can mend it.
    pub(crate) fn mended_by(self, fixes: Vec<Fix>) -> Self {
        Self { fixes, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, wanted: {}",
            self.title, self.measured, self.wanted
        )?;
        match self.remedy.as_str() {
            "" => Ok(()),
            remedy => write!(f, "; {remedy}"),
        }
    }
}

/// A check that somebody wants to ignore, but can't.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// There is none of that id.
    #[error("there is no check `{0}`; `gravity check --explain all` lists them")]
    Unknown(String),
    /// Without it the operation would surely fail.
    #[error("check `{0}` can't be ignored: without it the operation would fail half-way")]
    Strict(String),
}

/// Everything that was looked at, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// The findings, good ones included.
    pub findings: Vec<Finding>,
}

impl Report {
    /// What the operation must not go on with.
    pub fn failures(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Failure)
            .filter(|finding| !finding.ignored)
    }

    /// Failures that somebody ignores.
    pub fn ignored(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.ignored)
    }

    /// What somebody should know.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Warning)
    }

    /// What is as it should be.
    pub fn passed(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Info)
    }

    /// What `--autofix` would do.
    pub fn fixes(&self) -> Vec<Fix> {
        let mut fixes = Vec::new();
        for fix in self.findings.iter().flat_map(|finding| &finding.fixes) {
            if !fixes.contains(fix) {
                fixes.push(fix.clone());
            }
        }
        fixes
    }

    /// Has failures of these checks not count. They stay in the report.
    ///
    /// # Errors
    /// When there is no such check, or it can't be ignored.
    pub fn ignore(&mut self, ids: &[String]) -> Result<(), IgnoreError> {
        for id in ids {
            match checks::ALL.iter().find(|check| check.id == id) {
                None => return Err(IgnoreError::Unknown(id.clone())),
                Some(check) if check.strict => return Err(IgnoreError::Strict(id.clone())),
                Some(_) => {}
            }
        }
        for finding in &mut self.findings {
            finding.ignored |= finding.severity == Severity::Failure && ids.contains(&finding.id);
        }
        Ok(())
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.severity == severity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{facts, report, requirements};

    #[test]
    fn ignored_failures_stay_and_strict_ones_count() {
        let mut facts = facts();
        facts.uid = 1;
        facts.network.localhost = Some(vec![[10, 0, 0, 1].into()]);
        let mut report = report(&requirements(), &facts);
        assert_eq!(report.failures().count(), 2);
        report.ignore(&["localhost".into()]).unwrap();
        assert_eq!(report.failures().count(), 1);
        assert_eq!(report.ignored().count(), 1);
        let strict = report.ignore(&["root".into()]).unwrap_err();
        assert_eq!(strict, IgnoreError::Strict("root".into()));
        assert!(report.ignore(&["no-such".into()]).is_err());
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
