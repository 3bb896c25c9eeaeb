//! What an operation consists of, and its coordinator
