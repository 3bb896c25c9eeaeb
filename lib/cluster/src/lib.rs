//! Everything that speaks Kubernetes
