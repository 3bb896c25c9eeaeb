//! Registries, image layouts and credentials: the only client of registries and the web.
//!
//! - [`digest`]: digests, and how content is compared with them;
//! - [`reference`](mod@reference): names of images;
//! - [`layout`]: a directory in OCI image layout, with tags;
//! - [`hub`]: where base images and cluster images are kept;
//! - [`registries`], [`certificates`], [`credentials`]: the user's mirrors,
//!   authorities and logins;
//! - [`environment`]: places that the user's environment names;
//! - [`registry`]: pulls images from registries into a layout;
//! - [`source`]: layouts, archives and engines, which are asked before;
//! - [`push`]: sends content to registries.
//!
//! All that is read is bounded, and content has its digest or is refused.

pub mod certificates;
pub mod credentials;
pub mod digest;
pub mod environment;
mod failure;
mod http;
pub mod hub;
pub mod layout;
mod part;
pub mod push;
pub mod reference;
pub mod registries;
pub mod registry;
pub mod source;

pub use certificates::Certificates;
pub use credentials::Credentials;
pub use digest::Digest;
pub use event::Progress;
pub use failure::{Failure, PullError};
pub use http::Retry;
pub use hub::Hub;
pub use layout::Layout;
pub use oci_spec::image as spec;
pub use push::Content;
pub use reference::Reference;
pub use registries::Registries;
pub use registry::{Client, Pulled};
pub use source::Source;
