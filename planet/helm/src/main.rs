//! `helm` in the containers of hooks: takes what Helm 2 took.
//!
//! In: a command line of Helm 2 or 3. Out: this process has become the real
//! helm, mounted beside it as `helm3`, with a command line of Helm 3. It needs
//! nothing of its container's image, which may be empty.

mod translate;

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use translate::{Action, translate};

/// The real helm.
const HELM: &str = "/usr/local/bin/helm3";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let texts: Option<Vec<String>> = arguments
        .iter()
        .map(|argument| argument.to_str().map(ToOwned::to_owned))
        .collect();
    match texts.map(|texts| translate(&texts)) {
        // Not text, so no line that we know.
        None => become_helm(&arguments),
        Some(Action::Run(arguments)) => become_helm(&arguments),
        Some(Action::RunWhereItIs { release, arguments }) => {
            let namespace = namespace(&release).map(|name| format!("--namespace={name}"));
            become_helm(&[arguments, namespace.into_iter().collect()].concat())
        }
        Some(Action::Nothing(reason)) => {
            let _ = writeln!(std::io::stdout(), "{reason}");
            ExitCode::SUCCESS
        }
    }
}

fn become_helm<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> ExitCode {
    let error = Command::new(HELM).args(arguments).exec();
    let _ = writeln!(std::io::stderr(), "helm: starting {HELM}: {error}");
    ExitCode::FAILURE
}

/// The namespace of a release, wherever it is: Helm 2 knew each name once.
fn namespace(release: &str) -> Option<String> {
    let output = Command::new(HELM)
        .args(["list", "--all-namespaces", "--all", "--output=json"])
        .arg(format!("--filter=^{release}$"))
        .output()
        .ok()?;
    translate::field(&String::from_utf8_lossy(&output.stdout), "namespace")
}
