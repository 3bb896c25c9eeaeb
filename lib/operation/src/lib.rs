//! A plan as data and the engine that runs it
