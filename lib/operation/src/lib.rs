//! A plan as data and the engine that runs it. Knows no Kubernetes.
//!
//! In: a [`Plan`], an immutable tree of phases, and an [`Executor`] that can
//! execute one of them. Out: every phase executed once, after what it requires,
//! each step recorded in a [`Journal`] before and after. The state of a plan is
//! never stored: it is derived by [`replay`] from the journal, so that any end
//! of the process leaves a state from which the engine goes on.

mod engine;
mod journal;
mod plan;
mod state;
mod view;

pub use engine::{Engine, Executor, PhaseError, RunError};
pub use journal::{Journal, JournalError, Record};
pub use plan::{Phase, Plan, PlanError, VERSION};
pub use state::{PlanState, State, replay};
pub use view::{PhaseView, PlanView, render, view};
