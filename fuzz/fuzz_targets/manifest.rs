//! Any bytes as a manifest: errors within the text, or a manifest that reads
//! back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match manifest::parse_bytes(bytes, "x") {
        Ok(manifest) => {
            let json = manifest.to_json().unwrap();
            assert_eq!(manifest::parse(&json, "x").unwrap(), manifest);
        }
        Err(errors) => assert!(!errors.is_empty()),
    }
});
