//! Scripts of the manifest.
//!
//! In: their text. Out: how they ended and what they wrote, within limits of
//! time and output. A script is never executed itself but given to the program
//! that its first line names, so it also runs where the directory of temporary
//! files is noexec.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use host::causes::causes;
use host::command::{Cmd, CommandError, Ended};
use manifest::CustomCheck;
use serde::{Deserialize, Serialize};

use crate::Effort;

/// How much of each output is kept, in bytes.
const MAX_OUTPUT: usize = 64 << 10;

/// How a script ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// What it is for.
    pub title: String,
    /// Whether it ended well.
    pub passed: bool,
    /// How it ended: `exit code 3`.
    pub end: String,
    /// What it wrote, standard error last.
    pub output: String,
}

/// Name of a script for people.
pub(crate) fn title(number: usize, check: &CustomCheck) -> String {
    match &check.description {
        Some(description) => description.clone(),
        None => format!("custom check {}", number + 1),
    }
}

/// Runs all scripts, one after the other.
pub(crate) fn run(checks: &[CustomCheck], effort: &Effort) -> Vec<Script> {
    let one = |(number, check): (usize, &CustomCheck)| {
        let title = title(number, check);
        match run_one(&check.script, effort) {
            Ok(ended) => Script {
                title,
                passed: ended.status.is_some_and(|status| status.success()),
                end: match ended.status {
                    Some(status) => describe(status),
                    None => format!("killed after {} s", effort.script_timeout.as_secs_f32()),
                },
                output: output(&ended),
            },
            Err(error) => Script {
                title,
                passed: false,
                end: causes(&error),
                output: String::new(),
            },
        }
    };
    checks.iter().enumerate().map(one).collect()
}

fn run_one(script: &str, effort: &Effort) -> Result<Ended, CommandError> {
    let (program, argument) = interpreter(script);
    let start = |source| CommandError::Start {
        what: "write the script".into(),
        program: program.to_owned(),
        source,
    };
    let mut file = tempfile::NamedTempFile::with_prefix("gravity-check-").map_err(start)?;
    file.write_all(script.as_bytes()).map_err(start)?;
    Cmd::new(program)
        .args(argument)
        .arg(file.path())
        .directory(&effort.directory)
        .timeout(effort.script_timeout)
        .max_output(MAX_OUTPUT)
        .describe("run the script")
        .end()
}

/// The program of the first line, and its argument: one, as the kernel reads
/// it. Scripts without are for bash.
fn interpreter(script: &str) -> (&str, Option<&str>) {
    let first = script.lines().next().unwrap_or_default();
    let Some(line) = first
        .strip_prefix("#!")
        .map(str::trim)
        .filter(|line| !line.is_empty())
    else {
        return ("bash", None);
    };
    match line.split_once([' ', '\t']) {
        Some((program, argument)) => (program, Some(argument.trim())),
        None => (line, None),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn output(ended: &Ended) -> String {
    let part = |text: &str, cut: bool| match (text.trim_end(), cut) {
        ("", _) => String::new(),
        (text, false) => format!("{text}\n"),
        (text, true) => format!("{text}\n(it wrote more than {MAX_OUTPUT} bytes)\n"),
    };
    part(&ended.stdout, ended.stdout_cut) + &part(&ended.stderr, ended.stderr_cut)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn end(script: &str) -> Script {
        let effort = Effort {
            disks: false,
            scripts: true,
            network: false,
            script_timeout: Duration::from_millis(2000),
            directory: "/".into(),
        };
        let check = CustomCheck {
            description: None,
            script: script.into(),
        };
        run(&[check], &effort).remove(0)
    }

    #[test]
    fn the_first_line_names_the_program() {
        assert_eq!(interpreter("#!/bin/bash\nx"), ("/bin/bash", None));
        assert_eq!(
            interpreter("#! /usr/bin/env  python3 -u\n"),
            ("/usr/bin/env", Some("python3 -u"))
        );
        assert_eq!(interpreter("#!\necho"), ("bash", None));
        assert_eq!(interpreter("echo\n#!/bin/sh"), ("bash", None));
        assert_eq!(interpreter(""), ("bash", None));
    }

    #[test]
    fn scripts_pass_fail_and_are_told() {
        let script = end("echo out; echo err >&2; pwd\n[[ 1 == 1 ]]");
        assert!(script.passed, "{script:?}");
        assert_eq!(script.output, "out\n/\nerr\n");
        let script = end("#!/bin/sh -e\nfalse\nexit 0\n");
        assert_eq!((script.passed, script.end.as_str()), (false, "exit code 1"));
        let script = end("kill -9 $$");
        assert_eq!(
            (script.passed, script.end.as_str()),
            (false, "killed by signal 9")
        );
        let script = end("#!/no/such/program\n");
        assert!(
            !script.passed && script.end.contains("not installed"),
            "{script:?}"
        );
        assert_eq!(script.title, "custom check 1");
    }

    #[test]
    fn much_output_is_cut() {
        let script = end("head -c 1000000 /dev/zero | tr '\\0' x");
        assert!(script.passed && script.output.contains("more than 65536 bytes"));
        assert!(script.output.len() < 66_000);
    }

    #[test]
    fn a_script_that_hangs_is_killed() {
        let effort = Effort {
            disks: false,
            scripts: true,
            network: false,
            script_timeout: Duration::from_millis(20),
            directory: "/".into(),
        };
        let check = CustomCheck {
            description: Some("hang".into()),
            script: "sleep 60 & wait".into(),
        };
        let script = run(&[check], &effort).remove(0);
        assert_eq!(script.end, "killed after 0.02 s");
    }
}
