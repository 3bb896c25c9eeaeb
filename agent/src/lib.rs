//! Runs on every node: executes phases there
