//! What takes time to find out.
//!
//! In: requirements, what the host is like, and how much trouble to go to. Out:
//! [`Measured`]; what wasn't asked for is `None`. Nothing stays behind.

use std::path::PathBuf;
use std::time::Duration;

use host::facts::HostFacts;
use serde::{Deserialize, Serialize};

use crate::{Places, Requirements};

/// How much trouble to go to.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Measure disks, seconds each.
    pub disks: bool,
    /// Run the manifest's scripts.
    pub scripts: bool,
    /// Try forwarding and name servers.
    pub network: bool,
    /// How long one script may run.
    pub script_timeout: Duration,
    /// Where scripts run: the directory in which the user is.
    pub directory: PathBuf,
}

/// What took time; `None` where it was not measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {}

impl Measured {
    pub(crate) fn collect(
        _requirements: &Requirements,
        _host: &HostFacts,
        _places: &Places,
        _effort: &Effort,
    ) -> Self {
        Self {}
    }
}
