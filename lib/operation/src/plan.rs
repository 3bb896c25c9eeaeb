//! What an operation consists of.
//!
//! In: phases that somebody planned. Out: a tree that can be stored and checked.
//! Ids are paths: a child's id is its parent's, a slash and a name. A plan that
//! [`Plan::validate`] accepts can be run to its end.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::graph::Graph;

/// Version of the format of plans. A reader refuses a later one.
pub const PLAN_VERSION: u32 = 1;

/// Most levels of phases, and most phases, of a plan: more is a mistake.
const MAX_DEPTH: usize = 16;
const MAX_PHASES: usize = 100_000;

/// An operation as a tree of phases. It never changes once it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the writer.
    pub version: u32,
    /// Id of the operation.
    pub operation_id: String,
    /// What it does, such as `install`.
    pub kind: String,
    /// Version of the program that planned it.
    pub created_by_version: String,
    /// Phases, executed one after the other.
    pub phases: Vec<Phase>,
}

/// One phase: a leaf does something, one with phases below groups them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Path, such as `/planet/node-1`.
    pub id: String,
    /// What it does, for people.
    pub description: String,
    /// Name of the node that executes it; `None` for a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Ids of phases that have to be complete before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// How many leaves below may run at once, in any order that `requires`
    /// allows. Without it, phases below run one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_parallel: Option<usize>,
    /// What the executor needs to know; `null` for a group.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub payload: serde_json::Value,
    /// Phases below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
}

/// Why a plan can't be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// It was written by a later program.
    #[error(
        "the plan has format version {found}, known are versions up to {PLAN_VERSION}; use the version of gravity that made it"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// An id that isn't a path below its parent's.
    #[error("`{id}` is no id for a phase below `{parent}`, expected `{parent}/name`")]
    Id {
        /// The id.
        id: String,
        /// Id of the phase above; empty at the top.
        parent: String,
    },
    /// Two phases of one id.
    #[error("two phases are called {0}")]
    Duplicate(String),
    /// It is too deep or too large.
    #[error("the plan has more than {MAX_DEPTH} levels or {MAX_PHASES} phases")]
    TooLarge,
    /// A required phase doesn't exist.
    #[error("phase {phase} requires {missing}, which is not in the plan")]
    Missing {
        /// The phase.
        phase: String,
        /// What it requires.
        missing: String,
    },
    /// Phases wait for each other.
    #[error("these phases wait for each other: {}", .0.join(", "))]
    Cycle(Vec<String>),
    /// A limit of nothing at once.
    #[error("phase {0} has a parallel limit of 0")]
    NoParallel(String),
}

impl Phase {
    /// A phase without anything else; the other fields can be set afterwards.
    pub fn new(id: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            description: description.into(),
            ..Self::default()
        }
    }

    /// Whether it does something itself.
    pub(crate) fn is_leaf(&self) -> bool {
        self.phases.is_empty()
    }

    /// The last part of its id.
    pub fn name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or(&self.id)
    }
}

impl Plan {
    /// A plan of this version of the program. `kind` is what it does, such as `install`,
    /// `operation` the operation's id.
    pub fn new(kind: impl Into<String>, operation: impl Into<String>, phases: Vec<Phase>) -> Self {
        Self {
            version: PLAN_VERSION,
            operation_id: operation.into(),
            kind: kind.into(),
            created_by_version: env!("CARGO_PKG_VERSION").into(),
            phases,
        }
    }

    /// Checks that the plan can be run: known version, unique ids, requirements
    /// that exist and that some order satisfies.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.version > PLAN_VERSION {
            return Err(PlanError::Version {
                found: self.version,
            });
        }
        check(&self.phases, "", 1, &mut HashSet::new())?;
        let graph = Graph::new(self)?;
        match graph.stuck() {
            stuck if stuck.is_empty() => Ok(()),
            stuck => Err(PlanError::Cycle(stuck)),
        }
    }

    /// The phase of an id, a group or a leaf.
    pub fn phase(&self, id: &str) -> Option<&Phase> {
        find(&self.phases, id)
    }

    /// All leaves, in the order of the tree.
    pub fn leaves(&self) -> Vec<&Phase> {
        let mut leaves = Vec::new();
        collect_leaves(&self.phases, &mut leaves);
        leaves
    }
}

fn check<'a>(
    phases: &'a [Phase],
    parent: &str,
    depth: usize,
    ids: &mut HashSet<&'a str>,
) -> Result<(), PlanError> {
    for phase in phases {
        let name = phase
            .id
            .strip_prefix(parent)
            .and_then(|rest| rest.strip_prefix('/'));
        if !name.is_some_and(|name| !name.is_empty() && !name.contains(['/', '\n', '\0'])) {
            return Err(PlanError::Id {
                id: phase.id.clone(),
                parent: parent.to_owned(),
            });
        }
        if !ids.insert(&phase.id) {
            return Err(PlanError::Duplicate(phase.id.clone()));
        }
        if ids.len() > MAX_PHASES || depth > MAX_DEPTH {
            return Err(PlanError::TooLarge);
        }
        if phase.limit_parallel == Some(0) {
            return Err(PlanError::NoParallel(phase.id.clone()));
        }
        check(&phase.phases, &phase.id, depth + 1, ids)?;
    }
    Ok(())
}

fn find<'a>(phases: &'a [Phase], id: &str) -> Option<&'a Phase> {
    phases.iter().find_map(|phase| match phase.id == id {
        true => Some(phase),
        false => find(&phase.phases, id),
    })
}

fn collect_leaves<'a>(phases: &'a [Phase], leaves: &mut Vec<&'a Phase>) {
    for phase in phases {
        match phase.is_leaf() {
            true => leaves.push(phase),
            false => collect_leaves(&phase.phases, leaves),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan(phases: Vec<Phase>) -> Plan {
        Plan::new("install", "op", phases)
    }

    pub(crate) fn leaf(id: &str, requires: &[&str]) -> Phase {
        Phase {
            requires: requires.iter().map(|id| (*id).to_owned()).collect(),
            ..Phase::new(id, format!("Do {id}"))
        }
    }

    pub(crate) fn group(id: &str, limit_parallel: Option<usize>, phases: Vec<Phase>) -> Phase {
        Phase {
            limit_parallel,
            phases,
            ..Phase::new(id, format!("All of {id}"))
        }
    }

    #[test]
    fn good_plans_are_accepted() {
        let good = plan(vec![
            leaf("/a", &[]),
            group(
                "/b",
                Some(2),
                vec![leaf("/b/x", &["/b/y", "/a"]), leaf("/b/y", &[])],
            ),
            leaf("/c", &["/b"]),
        ]);
        good.validate().unwrap();
        assert_eq!(good.phase("/b/y").unwrap().name(), "y");
        let leaves: Vec<_> = good.leaves().iter().map(|p| p.id.clone()).collect();
        assert_eq!(leaves, ["/a", "/b/x", "/b/y", "/c"]);
        let json = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), good);
    }

    #[test]
    fn bad_plans_are_refused_by_name() {
        let error = |phases| plan(phases).validate().unwrap_err().to_string();
        assert_eq!(
            error(vec![leaf("/a", &[]), leaf("/a", &[])]),
            "two phases are called /a"
        );
        assert_eq!(
            error(vec![leaf("/a", &["/x"])]),
            "phase /a requires /x, which is not in the plan"
        );
        assert!(error(vec![group("/a", None, vec![leaf("/b/c", &[])])]).contains("below `/a`"));
        for id in ["", "a", "/", "/a/b"] {
            assert!(error(vec![leaf(id, &[])]).contains("is no id"), "{id}");
        }
        assert!(error(vec![leaf("/a", &["/a"])]).contains("wait for each other: /a"));
        // One after the other, a phase can't wait for a later one.
        let error_text = error(vec![leaf("/a", &["/b"]), leaf("/b", &[])]);
        assert_eq!(error_text, "these phases wait for each other: /a, /b");
        assert!(error(vec![group("/a", None, vec![leaf("/a/b", &["/a"])])]).contains("/a/b"));
        assert!(error(vec![group("/a", Some(0), vec![leaf("/a/b", &[])])]).contains("limit of 0"));
        let later = Plan {
            version: 2,
            ..plan(vec![])
        };
        assert_eq!(later.validate(), Err(PlanError::Version { found: 2 }));
    }
}
