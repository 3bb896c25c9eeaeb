//! Terminal, plain and JSON output, progress and exit codes: the only crate that prints
