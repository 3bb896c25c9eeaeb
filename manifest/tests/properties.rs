//! Whatever the input: an answer within bounded time, never a panic.

use gravity_manifest as manifest;
use manifest::{Bytes, Manifest, Mode, PortRange, Rate};
use proptest::prelude::*;

const FULL: &str = include_str!("../testdata/full.yaml");
const EXTRA: &str = include_str!("../testdata/extra.yaml");

/// What holds for every input: errors are within the text, and a manifest is
/// the same again when it is written and read.
fn holds(bytes: &[u8]) {
    match manifest::parse_bytes(bytes, "x") {
        Ok(manifest) => same_again(&manifest),
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= 1000);
            let lines = bytes
                .iter()
                .filter(|byte| matches!(byte, b'\n' | b'\r'))
                .count()
                + 2;
            for error in errors {
                assert!(
                    error.line >= 1 && error.column >= 1 && error.line <= lines,
                    "{error}"
                );
            }
        }
    }
}

fn same_again(manifest: &Manifest) {
    let Ok(json) = manifest.to_json() else {
        panic!("{manifest:?} is no JSON");
    };
    let again = manifest::parse(&json, "x").unwrap_or_else(|errors| panic!("{errors:?} in {json}"));
    assert_eq!(&again, manifest);
    assert_eq!(again.unsupported().len(), manifest.unsupported().len());
}

/// Text that looks like YAML.
fn noise() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "\n",
        "\n  ",
        "\n    - ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "!!str ",
        "'",
        "\"",
        "|\n",
        ">-\n",
        "# ",
        "---\n",
        "...\n",
        "? ",
        "%YAML 1.2\n",
        "<<",
        "~",
        "0755",
        "\t",
        "\r\n",
        "\u{feff}",
        "é",
        "metadata",
        "name",
        "hooks",
        "install",
        "job",
        "nodeProfiles",
        "requirements",
        "volumes",
        "path",
        "/a",
        "installer",
        "flavors",
        "items",
        "nodes",
    ]);
    prop::collection::vec(words, 0..120).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        holds(&bytes);
    }

    #[test]
    fn text_never_panics(text in noise()) {
        holds(text.as_bytes());
        let _ = manifest::service_user::translate(&format!("runAsUser: -1\n{text}"), 7, 8);
    }

    #[test]
    fn changed_samples_never_panic(at in 0..FULL.len(), cut in 0_usize..30, new in noise(), extra in any::<bool>()) {
        let sample = if extra { EXTRA } else { FULL };
        let at = at.min(sample.len());
        let end = (at + cut).min(sample.len());
        let bytes = [&sample.as_bytes()[..at], new.as_bytes(), &sample.as_bytes()[end..]].concat();
        holds(&bytes);
    }

    #[test]
    fn values_read_back(bytes in any::<u64>(), first in 1_u16.., length in 0_u16..100, bits in 0_u32..0o10000) {
        prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        prop_assert_eq!(Rate(bytes).to_string().parse(), Ok(Rate(bytes)));
        let range = PortRange { first, last: first.saturating_add(length) };
        prop_assert_eq!(range.to_string().parse(), Ok(range));
        let mode: Mode = format!("{bits:04o}").parse().unwrap();
        prop_assert_eq!((mode.bits(), mode.to_string().parse()), (bits, Ok(mode)));
    }

    #[test]
    fn units_never_panic(text in "[0-9.]{0,12} ?[kKMGi]{0,3}[bB]?(/s)?|\\PC{0,20}") {
        let _ = (text.parse::<Bytes>(), text.parse::<Rate>(), text.parse::<Mode>(), text.parse::<PortRange>());
    }
}

/// What fuzzing starts from, and what it has found.
#[test]
fn the_corpus_holds() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/manifest");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        holds(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{count} files in {dir}");
}
