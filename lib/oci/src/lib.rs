//! Registries, image layouts and credentials: the only HTTP client.
//!
//! - [`digest`]: digests, and how content is compared with them;
//! - [`layout`]: a directory in OCI image layout, with tags;
//! - [`hub`]: where the layout with base images is.
//!
//! All that is read is bounded, and content has its digest or is refused.

pub mod digest;
pub mod hub;
pub mod layout;

pub use digest::Digest;
pub use layout::Layout;
pub use oci_spec::image as spec;
