//! In which order phases may run.
//!
//! In: a plan. Out: for every leaf whether it may run now. Groups without a
//! parallel limit, and the top of the plan, run their phases one after the
//! other; groups with one run as many leaves at once, however deep they are.

use std::collections::HashMap;

use crate::plan::{Phase, Plan, PlanError};

/// Index of a phase in the order of the tree.
pub(crate) type Index = usize;

#[derive(Debug)]
struct Node<'a> {
    phase: &'a Phase,
    parent: Option<Index>,
    /// Must be complete before this one starts.
    after: Vec<Index>,
    /// Leaves below, itself included, that are not complete.
    open: usize,
    /// Leaves below, itself included, that run.
    running: usize,
}

/// Whether `id` is `phase` or below it.
pub(crate) fn is_within(id: &str, phase: &str) -> bool {
    id.strip_prefix(phase)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The phases of a plan with what runs and what is complete.
#[derive(Debug)]
pub(crate) struct Graph<'a> {
    nodes: Vec<Node<'a>>,
    by_id: HashMap<&'a str, Index>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Result<Self, PlanError> {
        let mut graph = Self {
            nodes: Vec::new(),
            by_id: HashMap::new(),
        };
        graph.add(&plan.phases, None, true);
        for index in 0..graph.nodes.len() {
            let phase = graph.nodes[index].phase;
            for id in &phase.requires {
                let required =
                    graph
                        .by_id
                        .get(id.as_str())
                        .copied()
                        .ok_or_else(|| PlanError::Missing {
                            phase: phase.id.clone(),
                            missing: id.clone(),
                        })?;
                graph.nodes[index].after.push(required);
            }
        }
        Ok(graph)
    }

    /// Adds phases; returns how many leaves they are.
    fn add(&mut self, phases: &'a [Phase], parent: Option<Index>, in_order: bool) -> usize {
        let mut before = None;
        let mut leaves = 0;
        for phase in phases {
            let index = self.nodes.len();
            let after = before.filter(|_| in_order).into_iter().collect();
            self.nodes.push(Node {
                phase,
                parent,
                after,
                open: 1,
                running: 0,
            });
            self.by_id.insert(&phase.id, index);
            if !phase.is_leaf() {
                let open = self.add(&phase.phases, Some(index), phase.limit_parallel.is_none());
                self.nodes[index].open = open;
            }
            leaves += self.nodes[index].open;
            before = Some(index);
        }
        leaves
    }

    pub(crate) fn phase(&self, index: Index) -> &'a Phase {
        self.nodes[index].phase
    }

    /// Leaves that are neither complete nor running, in the order of the tree.
    pub(crate) fn waiting(&self) -> Vec<Index> {
        let waits = |node: &Node<'_>| node.phase.is_leaf() && node.open > 0 && node.running == 0;
        (0..self.nodes.len())
            .filter(|index| waits(&self.nodes[*index]))
            .collect()
    }

    /// Whether a waiting leaf may start now.
    pub(crate) fn ready(&self, leaf: Index) -> bool {
        self.with_parents(leaf).all(|index| {
            let node = &self.nodes[index];
            let limit = node.phase.limit_parallel.filter(|_| index != leaf);
            node.after
                .iter()
                .all(|before| self.nodes[*before].open == 0)
                && limit.is_none_or(|limit| node.running < limit)
        })
    }

    /// What a leaf waits for, by id.
    pub(crate) fn missing(&self, leaf: Index) -> Vec<String> {
        self.with_parents(leaf)
            .flat_map(|index| &self.nodes[index].after)
            .filter(|before| self.nodes[**before].open > 0)
            .map(|before| self.nodes[*before].phase.id.clone())
            .collect()
    }

    /// Whether a leaf may only run after `phase`, or a part or the whole of it.
    pub(crate) fn follows(&self, leaf: Index, phase: &str) -> bool {
        self.with_parents(leaf)
            .flat_map(|index| &self.nodes[index].after)
            .map(|before| self.nodes[*before].phase.id.as_str())
            .any(|before| is_within(before, phase) || is_within(phase, before))
    }

    /// All leaves, in the order of the tree.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = Index> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].phase.is_leaf())
    }

    pub(crate) fn start(&mut self, leaf: Index) {
        self.change(leaf, |node| node.running += 1);
    }

    pub(crate) fn complete(&mut self, leaf: Index) {
        self.change(leaf, |node| {
            node.running = node.running.saturating_sub(1);
            node.open -= 1;
        });
    }

    fn change(&mut self, leaf: Index, change: impl Fn(&mut Node<'a>)) {
        let mut next = Some(leaf);
        while let Some(index) = next {
            let node = &mut self.nodes[index];
            change(node);
            next = node.parent;
        }
    }

    fn with_parents(&self, leaf: Index) -> impl Iterator<Item = Index> {
        std::iter::successors(Some(leaf), |index| self.nodes[*index].parent)
    }

    /// Leaves that no order ever lets run, by id.
    pub(crate) fn stuck(&self) -> Vec<String> {
        // Each phase begins, then ends. What begins waits for the beginning of
        // its group and the end of what is before it; a group ends with the
        // phases below. Take away what waits for nothing until nothing is left.
        let begin = |index: Index| index * 2;
        let end = |index: Index| index * 2 + 1;
        let count = self.nodes.len() * 2;
        let mut waits = vec![0usize; count];
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
        let mut edge = |from: usize, to: usize| {
            next[from].push(to);
            waits[to] += 1;
        };
        for (index, node) in self.nodes.iter().enumerate() {
            edge(begin(index), end(index));
            for before in &node.after {
                edge(end(*before), begin(index));
            }
            if let Some(parent) = node.parent {
                edge(begin(parent), begin(index));
                edge(end(index), end(parent));
            }
        }
        let mut free: Vec<usize> = (0..count).filter(|vertex| waits[*vertex] == 0).collect();
        while let Some(vertex) = free.pop() {
            for to in &next[vertex] {
                waits[*to] -= 1;
                if waits[*to] == 0 {
                    free.push(*to);
                }
            }
        }
        self.nodes
            .iter()
            .enumerate()
            .filter(|(index, node)| node.phase.is_leaf() && waits[end(*index)] > 0)
            .map(|(_, node)| node.phase.id.clone())
            .collect()
    }
}
