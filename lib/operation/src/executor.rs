//! Who does what a leaf phase says.

use std::sync::Arc;

use async_trait::async_trait;
use event::Sink;

use crate::Phase;

/// Executes leaf phases. Every phase checks, executes and verifies by itself,
/// and can be executed or undone again after any end, a `kill -9` included.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Does what the phase says. What is done already is left.
    async fn execute(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError>;

    /// Does it again although it is done: somebody has asked for that.
    async fn execute_again(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError>;

    /// Takes back what the phase has done, also where it did only a part.
    async fn undo(&self, phase: &Phase, sink: Arc<dyn Sink>) -> Result<(), PhaseError>;
}

/// Why a phase failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PhaseError {
    /// What happened, with the measured value and what to do.
    pub message: String,
    /// Whether trying again may help.
    pub transient: bool,
}

impl PhaseError {
    /// A failure that trying again may mend.
    pub fn transient(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            transient: true,
        }
    }

    /// A failure that stays until somebody does something.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            transient: false,
        }
    }
}
