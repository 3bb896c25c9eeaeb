//! The Vagrantfile, without machines.

#[test]
fn both_providers_know_all_settings() {
    let directory = tempfile::tempdir().unwrap();
    gravity_tests::vm::vagrant::validate(directory.path()).unwrap();
}
