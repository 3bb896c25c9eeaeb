//! Plans.
//!
//! In: phases. Out: a [`Plan`] that was checked: identities are unique, what is
//! required exists, nothing requires itself in a circle.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// Version of the stored form of plans and journals.
pub const VERSION: u32 = 1;

/// What an operation consists of. Immutable once it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Identity of the operation.
    pub operation_id: String,
    /// What it is: `install`, ...
    pub kind: String,
    /// Version of the program that planned it.
    pub created_by: String,
    /// Top of the tree, in the order in which it is shown.
    pub phases: Vec<Phase>,
}

/// A node of the tree: a leaf is executed, others group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Path, such as `/planet/node-1`.
    pub id: String,
    /// What it does, for people.
    pub description: String,
    /// Host name of the node it runs on.
    pub node: Option<String>,
    /// Phases that must be complete before.
    #[serde(default)]
    pub requires: Vec<String>,
    /// How many of its children run at a time; all where none is given.
    #[serde(default)]
    pub limit_parallel: Option<usize>,
    /// What the executor needs to know. `null` for groups.
    #[serde(default)]
    pub payload: serde_json::Value,
    /// Children of a group.
    #[serde(default)]
    pub phases: Vec<Phase>,
}

/// Why phases are no plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// Written by a later version.
    #[error("the plan has version {found}, this program reads up to {VERSION}; use the program that made it")]
    Version {
        /// Its version.
        found: u32,
    },
    /// Two phases have one identity.
    #[error("there are two phases {0}")]
    Duplicate(String),
    /// A phase requires one that is not there.
    #[error("phase {phase} requires {required}, which is not in the plan")]
    Missing {
        /// The phase.
        phase: String,
        /// What it requires.
        required: String,
    },
    /// Phases wait for each other.
    #[error("phase {0} requires itself in a circle")]
    Circle(String),
}

impl Plan {
    /// Makes a plan of this version.
    pub fn new(operation_id: &str, kind: &str, phases: Vec<Phase>) -> Self {
        Self {
            version: VERSION,
            operation_id: operation_id.to_owned(),
            kind: kind.to_owned(),
            created_by: env!("CARGO_PKG_VERSION").to_owned(),
            phases,
        }
    }

    /// All leaves, in order, each with all that must be complete before it: its
    /// own requirements and those of the groups around it, resolved to leaves.
    ///
    /// # Errors
    /// When this is no plan.
    pub fn leaves(&self) -> Result<Vec<Leaf<'_>>, PlanError> {
        if self.version > VERSION {
            return Err(PlanError::Version { found: self.version });
        }
        let mut ids = HashMap::new();
        index(&self.phases, &mut ids)?;
        let mut leaves = Vec::new();
        for phase in &self.phases {
            collect(phase, &[], None, &ids, &mut leaves)?;
        }
        acyclic(&leaves)?;
        Ok(leaves)
    }
}

/// A phase that is executed.
#[derive(Debug, Clone)]
pub struct Leaf<'a> {
    /// The phase.
    pub phase: &'a Phase,
    /// Leaves that must be complete before.
    pub requires: HashSet<&'a str>,
    /// The group that limits how many run at a time, with its limit.
    pub limit: Option<(&'a str, usize)>,
}

fn index<'a>(
    phases: &'a [Phase],
    ids: &mut HashMap<&'a str, &'a Phase>,
) -> Result<(), PlanError> {
    for phase in phases {
        if ids.insert(&phase.id, phase).is_some() {
            return Err(PlanError::Duplicate(phase.id.clone()));
        }
        index(&phase.phases, ids)?;
    }
    Ok(())
}

fn collect<'a>(
    phase: &'a Phase,
    outer: &[&'a str],
    limit: Option<(&'a str, usize)>,
    ids: &HashMap<&'a str, &'a Phase>,
    leaves: &mut Vec<Leaf<'a>>,
) -> Result<(), PlanError> {
    let mut requires = outer.to_vec();
    for required in &phase.requires {
        let target = ids.get(required.as_str()).ok_or_else(|| PlanError::Missing {
            phase: phase.id.clone(),
            required: required.clone(),
        })?;
        leaf_ids(target, &mut requires);
    }
    if phase.phases.is_empty() {
        leaves.push(Leaf { phase, requires: requires.into_iter().collect(), limit });
        return Ok(());
    }
    let limit = phase.limit_parallel.map(|limit| (phase.id.as_str(), limit.max(1))).or(limit);
    for child in &phase.phases {
        collect(child, &requires, limit, ids, leaves)?;
    }
    Ok(())
}

fn leaf_ids<'a>(phase: &'a Phase, ids: &mut Vec<&'a str>) {
    if phase.phases.is_empty() {
        ids.push(&phase.id);
    }
    for child in &phase.phases {
        leaf_ids(child, ids);
    }
}

/// Takes away what requires nothing that is left, until all is gone.
fn acyclic(leaves: &[Leaf<'_>]) -> Result<(), PlanError> {
    let mut done = HashSet::new();
    loop {
        let before = done.len();
        for leaf in leaves {
            if leaf.requires.iter().all(|required| done.contains(required)) {
                done.insert(leaf.phase.id.as_str());
            }
        }
        if done.len() == leaves.len() {
            return Ok(());
        }
        if done.len() == before {
            let stuck = leaves.iter().find(|leaf| !done.contains(leaf.phase.id.as_str()));
            let id = stuck.map(|leaf| leaf.phase.id.clone()).unwrap_or_default();
            return Err(PlanError::Circle(id));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn leaf(id: &str, requires: &[&str]) -> Phase {
        Phase {
            id: id.into(),
            description: format!("does {id}"),
            node: None,
            requires: requires.iter().map(|id| (*id).into()).collect(),
            limit_parallel: None,
            payload: serde_json::Value::Null,
            phases: Vec::new(),
        }
    }

    pub(crate) fn group(id: &str, requires: &[&str], phases: Vec<Phase>) -> Phase {
        Phase { phases, ..leaf(id, requires) }
    }

    #[test]
    fn requirements_of_groups_reach_their_leaves() {
        let plan = Plan::new(
            "op",
            "install",
            vec![
                group("/a", &[], vec![leaf("/a/1", &[]), leaf("/a/2", &[])]),
                group("/b", &["/a"], vec![leaf("/b/1", &[])]),
            ],
        );
        let leaves = plan.leaves().unwrap();
        assert_eq!(leaves.len(), 3);
        assert_eq!(leaves[2].requires, HashSet::from(["/a/1", "/a/2"]));
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        let check = |phases| Plan::new("op", "install", phases).leaves().unwrap_err();
        assert_eq!(
            check(vec![leaf("/a", &[]), leaf("/a", &[])]),
            PlanError::Duplicate("/a".into())
        );
        assert_eq!(
            check(vec![leaf("/a", &["/z"])]),
            PlanError::Missing { phase: "/a".into(), required: "/z".into() }
        );
        assert_eq!(
            check(vec![leaf("/a", &["/b"]), leaf("/b", &["/a"])]),
            PlanError::Circle("/a".into())
        );
        let later = Plan { version: VERSION + 1, ..Plan::new("op", "install", Vec::new()) };
        assert_eq!(later.leaves().unwrap_err(), PlanError::Version { found: VERSION + 1 });
    }
}
