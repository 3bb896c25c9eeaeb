//! What the checks found.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Info,
    /// Somebody should know; the operation may go on.
    Warning,
    /// The operation must not go on.
    Failure,
}

/// What one check found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable id of the check.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at.
    pub title: String,
    /// What there is.
    pub measured: String,
    /// What there should be.
    pub wanted: String,
    /// What to do; empty where nothing has to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub(crate) fn passed(
        id: &'static str,
        title: impl Into<String>,
        measured: impl Into<String>,
        wanted: impl Into<String>,
    ) -> Self {
        let (title, measured, wanted) = (title.into(), measured.into(), wanted.into());
        Self {
            id,
            severity: Severity::Info,
            title,
            measured,
            wanted,
            remedy: String::new(),
        }
    }

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

/// Everything that was looked at, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// The findings, good ones included.
    pub findings: Vec<Finding>,
}

impl Report {
    /// What the operation must not go on with.
    pub fn failures(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Failure)
    }

    /// What somebody should know.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.of(Severity::Warning)
    }

    /// How many things are as they should be.
    pub fn passed(&self) -> usize {
        self.of(Severity::Info).count()
    }

    fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.severity == severity)
    }
}
