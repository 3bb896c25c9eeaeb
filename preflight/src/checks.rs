//! The registry of checks, in the order in which a person reads them.

mod address;
mod cpu;
mod kernel;
mod networks;
mod os;
pub(crate) mod ports;
mod ram;
mod root;
mod space;
mod volumes;

use crate::{Finding, Input};

type Check = fn(&Input<'_>) -> Vec<Finding>;

/// All checks.
pub(crate) const ALL: &[Check] = &[
    root::check,
    os::check,
    kernel::check,
    cpu::check,
    ram::check,
    volumes::check,
    space::check,
    address::check,
    networks::check,
    ports::check,
];
