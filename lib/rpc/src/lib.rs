//! Sessions between the coordinator and agents
