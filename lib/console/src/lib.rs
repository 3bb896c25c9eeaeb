//! Terminal, plain and JSON output, progress and exit codes: the only crate
//! that prints.
//!
//! In: [`event::Event`]s, results, questions and errors. Out: text. Events and
//! results go to standard output, errors and questions to standard error. What
//! a line looks like is decided by the pure functions of [`render`]; the sinks
//! only decide when and where to. No control character of foreign text
//! reaches a terminal.

mod exit;
mod file;
mod lasting;
mod prompt;
pub mod render;
mod terminal;

pub use exit::ExitCode;
pub use file::{FileSink, Tee};
pub use prompt::PromptError;
pub use terminal::{Console, Format};
