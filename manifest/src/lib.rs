//! The Image Manifest: types, units, validation, diagnostics.
//!
//! In: the text of a manifest. Out: a [`Manifest`] whose references resolve and
//! whose values are in range, or every error at once with file, line and
//! column. No I/O: values that are URIs are fetched by the caller through
//! [`Manifest::inline`].
//!
//! What always holds: [`Manifest::to_json`] of a parsed manifest parses to the
//! same manifest.

mod decode;
mod diagnostic;
mod fields;
mod hook;
mod inline;
mod schema;
pub mod service_user;
mod system_options;
mod types;
mod units;
mod unsupported;
mod validate;
pub mod yaml;

pub use diagnostic::{Diagnostic, Severity};
pub use hook::{Failure, HookName, Trigger};
pub use inline::{Location, MAX_CONTENT, Uri};
pub use schema::schema;
pub use semver::Version;
pub use system_options::ServiceOptions;
pub use types::{
    Aws, BaseImage, Cpu, CustomCheck, Dependencies, Device, Docker, Enabled, Encryption, Endpoint,
    Etcd, Eula, ExpandPolicy, Extension, Extensions, Flavor, FlavorNode, Flavors, Generic,
    HairpinMode, IamPolicy, Ingress, Installer, Kind, Kubelet, License, LicenseKind, Locator,
    Manifest, Metadata, Network, NetworkType, NodeProfile, Os, Port, Ports, ProfileAws,
    ProfileProviders, Protocol, Provider, ProviderNetwork, Providers, Ram, Requirements, Runtime,
    ServiceRole, Storage, StorageDriver, SystemDependencies, SystemOptions, Taint, TaintEffect,
    Terraform, Volume,
};
pub use units::{Bytes, Mode, PortRange, Rate, ValueError};
pub use validate::is_dns_name;
pub use yaml::{MAX_SIZE, parse, parse_bytes};
