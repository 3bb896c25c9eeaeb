//! The Image Manifest: types, units, validation, diagnostics
