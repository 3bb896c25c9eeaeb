//! What `planet-init` does with signals, as an ordinary process.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn send(signal: &str, child: &Child) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args([signal, &pid]).status().unwrap();
    assert!(status.success(), "kill {signal}");
}

#[test]
fn who_was_stopped_for_a_while_goes_on_and_ends_only_when_told() {
    let supervisor = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let mut init = Command::new(env!("CARGO_BIN_EXE_planet-init"))
        .args(["sh", "-c", supervisor])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(init.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    for _ in 0..3 {
        send("-STOP", &init);
        std::thread::sleep(Duration::from_millis(50));
        send("-CONT", &init);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(init.try_wait().unwrap(), None);
    }
    send("-TERM", &init);
    assert!(init.wait().unwrap().success());
}
