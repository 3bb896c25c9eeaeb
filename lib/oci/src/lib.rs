//! Registries, image layouts and credentials: the only HTTP client
