//! Certificate authorities, certificates and tokens
