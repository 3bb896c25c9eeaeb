//! A plan as data and the engine that runs it.
//!
//! In: a [`Plan`], which never changes, a [`Journal`] and an [`Executor`]. Out:
//! every phase executed once and in order, each state on disk before anything
//! depends on it. The state of an operation is what [`replay`] makes of plan
//! and journal, so that any process can find it out and any can go on. Knows
//! nothing of what phases do.

mod engine;
mod executor;
mod graph;
mod journal;
mod plan;
mod state;
mod view;

pub use engine::{Engine, RunError, to_roll_back};
pub use executor::{Executor, PhaseError};
pub use journal::{Journal, JournalError, Record};
pub use plan::{PLAN_VERSION, Phase, Plan, PlanError};
pub use state::{PhaseState, PlanState, State, replay};
pub use view::{PhaseView, PlanView, view};
