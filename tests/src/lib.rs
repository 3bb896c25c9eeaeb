//! End to end: test nodes, sample images, benchmarks.
