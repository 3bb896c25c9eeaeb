//! From Helm 2's command line to Helm 3's: pure.
//!
//! In: arguments. Out: an [`Action`]. What only Helm 3 can mean stays as it is.

/// What becomes of a command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// helm is run.
    Run(Vec<String>),
    /// helm is run in the namespace in which the release is.
    RunWhereItIs {
        release: String,
        arguments: Vec<String>,
    },
    /// Helm 3 has no need of it: why.
    Nothing(&'static str),
}

/// Flags that take a value, of both versions. A flag that is not listed is
/// taken as one without.
const WITH_VALUE: &[&str] = &[
    "--ca-file",
    "--cert-file",
    "--col-width",
    "--description",
    "--filter",
    "--history-max",
    "--home",
    "--host",
    "--key-file",
    "--keyring",
    "--kube-apiserver",
    "--kube-as-group",
    "--kube-as-user",
    "--kube-ca-file",
    "--kube-context",
    "--kube-token",
    "--kubeconfig",
    "--labels",
    "--max",
    "--name",
    "--name-template",
    "--namespace",
    "--offset",
    "--output",
    "--password",
    "--post-renderer",
    "--post-renderer-args",
    "--registry-config",
    "--repo",
    "--repository-cache",
    "--repository-config",
    "--revision",
    "--selector",
    "--set",
    "--set-file",
    "--set-json",
    "--set-literal",
    "--set-string",
    "--show-only",
    "--tiller-connection-timeout",
    "--tiller-namespace",
    "--timeout",
    "--tls-ca-cert",
    "--tls-cert",
    "--tls-hostname",
    "--tls-key",
    "--username",
    "--values",
    "--version",
    "-f",
    "-l",
    "-m",
    "-n",
    "-o",
    "-x",
];

/// Flags that have no meaning without Tiller, or that Helm 3 has dropped.
const DROPPED: &[&str] = &[
    "--home",
    "--host",
    "--no-crd-hook",
    "--tiller-connection-timeout",
    "--tiller-namespace",
    "--tls",
    "--tls-ca-cert",
    "--tls-cert",
    "--tls-hostname",
    "--tls-key",
    "--tls-verify",
];

#[derive(Debug, Clone)]
enum Token {
    Word(String),
    Flag {
        name: String,
        value: Option<String>,
        /// Whether it was written as `name=value`.
        joined: bool,
    },
}

/// Translates the arguments behind `helm`.
pub(crate) fn translate(arguments: &[String]) -> Action {
    let mut line = Line::parse(arguments);
    line.drop(DROPPED);
    line.seconds();
    let words = line.words();
    let Some(command) = words.first().cloned() else {
        return Action::Run(line.arguments());
    };
    match command.as_str() {
        "init" | "reset" | "home" => {
            return Action::Nothing("helm: nothing to do, there is no Tiller in this cluster");
        }
        "install"
            if words.len() == 2 && !line.has(&["-g", "--generate-name", "--name-template"]) =>
        {
            match line.take(&["--name", "-n"]) {
                Some(name) => line.insert_word(1, name),
                None => line.add("--generate-name"),
            }
            line.create_namespace();
            line.rename("--dep-up", "--dependency-update");
        }
        "upgrade" => {
            line.drop(&["--recreate-pods"]);
            if line.has(&["-i", "--install"]) {
                line.create_namespace();
            }
        }
        "delete" | "del" | "uninstall" if line.has(&["--purge"]) => {
            line.drop(&["--purge"]);
            if let [_, release] = &words[..]
                && !line.has(&["-n", "--namespace"])
                && is_name(release)
            {
                return Action::RunWhereItIs {
                    release: release.clone(),
                    arguments: line.arguments(),
                };
            }
        }
        "list" | "ls" => {
            line.drop(&["-c", "--chart-name", "--col-width"]);
            line.rename("--deleted", "--uninstalled");
            line.rename("--deleting", "--uninstalling");
        }
        "version" => line.drop(&["-c", "--client", "-s", "--server"]),
        "get" | "inspect" if words.len() == 2 => line.insert_word(1, "all".into()),
        "template" => {
            if let (Some(name), 2) = (line.take(&["--name"]), words.len()) {
                line.insert_word(1, name);
            }
            line.rename("-x", "--show-only");
        }
        "test" => line.drop(&["--cleanup"]),
        _ => {}
    }
    Action::Run(line.arguments())
}

/// Whether a word can be a release's name, which is put into a pattern.
fn is_name(word: &str) -> bool {
    word.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The first text of a field in JSON whose texts have no escapes, as names.
pub(crate) fn field(json: &str, name: &str) -> Option<String> {
    let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
    let (text, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
    is_name(text).then(|| text.to_owned())
}

struct Line {
    tokens: Vec<Token>,
    /// What follows `--`.
    rest: Vec<String>,
}

impl Line {
    fn parse(arguments: &[String]) -> Self {
        let mut tokens = Vec::new();
        let mut arguments = arguments.iter().cloned();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                let rest = std::iter::once(argument).chain(arguments).collect();
                return Self { tokens, rest };
            }
            if !argument.starts_with('-') || argument == "-" {
                tokens.push(Token::Word(argument));
                continue;
            }
            let joined = argument
                .split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
            tokens.push(match joined {
                Some((name, value)) => Token::Flag {
                    name,
                    value: Some(value),
                    joined: true,
                },
                None => Token::Flag {
                    value: WITH_VALUE
                        .contains(&argument.as_str())
                        .then(|| arguments.next())
                        .flatten(),
                    name: argument,
                    joined: false,
                },
            });
        }
        Self {
            tokens,
            rest: Vec::new(),
        }
    }

    fn words(&self) -> Vec<String> {
        let word = |token: &Token| match token {
            Token::Word(word) => Some(word.clone()),
            Token::Flag { .. } => None,
        };
        self.tokens.iter().filter_map(word).collect()
    }

    fn has(&self, flags: &[&str]) -> bool {
        self.tokens.iter().any(|token| token.is(flags))
    }

    fn drop(&mut self, flags: &[&str]) {
        self.tokens.retain(|token| !token.is(flags));
    }

    fn add(&mut self, flag: &str) {
        self.tokens.push(Token::Flag {
            name: flag.into(),
            value: None,
            joined: false,
        });
    }

    /// Takes a flag away and returns its value.
    fn take(&mut self, flags: &[&str]) -> Option<String> {
        let position = self.tokens.iter().position(|token| token.is(flags))?;
        match self.tokens.remove(position) {
            Token::Flag { value, .. } => value,
            Token::Word(_) => None,
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        for token in &mut self.tokens {
            if let Token::Flag { name, .. } = token
                && name == from
            {
                *name = to.into();
            }
        }
    }

    /// Puts a word before the word number `index`.
    fn insert_word(&mut self, index: usize, word: String) {
        let words = self.tokens.iter().enumerate();
        let mut words = words.filter(|(_, token)| matches!(token, Token::Word(_)));
        let position = words.nth(index).map_or(self.tokens.len(), |(at, _)| at);
        self.tokens.insert(position, Token::Word(word));
    }

    /// Helm 2 made the namespaces that it was asked for.
    fn create_namespace(&mut self) {
        if self.has(&["--namespace"]) && !self.has(&["--create-namespace"]) {
            self.add("--create-namespace");
        }
    }

    /// Helm 2 took a number of seconds.
    fn seconds(&mut self) {
        for token in &mut self.tokens {
            if let Token::Flag { name, value, .. } = token
                && name == "--timeout"
                && let Some(value) = value
                && !value.is_empty()
                && value.bytes().all(|byte| byte.is_ascii_digit())
            {
                value.push('s');
            }
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for token in self.tokens.clone() {
            match token {
                Token::Word(word) => arguments.push(word),
                Token::Flag {
                    name,
                    value: Some(value),
                    joined: true,
                } => arguments.push(format!("{name}={value}")),
                Token::Flag { name, value, .. } => {
                    arguments.push(name);
                    arguments.extend(value);
                }
            }
        }
        arguments.extend(self.rest.clone());
        arguments
    }
}

impl Token {
    fn is(&self, flags: &[&str]) -> bool {
        matches!(self, Self::Flag { name, .. } if flags.contains(&name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Vec<String> {
        line.split_whitespace().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn lines_of_helm_2_become_lines_of_helm_3() {
        for (two, three) in [
            // As the documentation of cluster images has it.
            (
                "install /var/lib/gravity/resources/charts/example --set registry=leader.telekube.local:5000/",
                "install /var/lib/gravity/resources/charts/example --set registry=leader.telekube.local:5000/ --generate-name",
            ),
            ("install --name web ./chart", "install web ./chart"),
            (
                "install ./chart -n web -f v.yaml",
                "install web ./chart -f v.yaml",
            ),
            (
                "install --name=web --namespace=shop ./chart --timeout 300 --tls",
                "install --namespace=shop web ./chart --timeout 300s --create-namespace",
            ),
            (
                "--tiller-namespace kube-system install c --dep-up --wait",
                "install c --dependency-update --wait --generate-name",
            ),
            (
                "upgrade --install web c --namespace shop --recreate-pods",
                "upgrade --install web c --namespace shop --create-namespace",
            ),
            (
                "upgrade web c --namespace shop",
                "upgrade web c --namespace shop",
            ),
            (
                "delete --purge web --namespace shop",
                "delete web --namespace shop",
            ),
            ("delete --purge a b", "delete a b"),
            (
                "ls --deleted -c web --col-width 9 -q",
                "ls --uninstalled web -q",
            ),
            ("version --client --short", "version --short"),
            ("get web", "get all web"),
            ("get values web", "get values web"),
            ("inspect c", "inspect all c"),
            (
                "template --name x c -x templates/a.yaml",
                "template x c --show-only templates/a.yaml",
            ),
            ("test web --cleanup", "test web"),
        ] {
            assert_eq!(translate(&split(two)), Action::Run(split(three)), "{two}");
        }
        for line in [
            "init --client-only",
            "init",
            "reset --force",
            "--debug init --upgrade",
        ] {
            assert!(
                matches!(translate(&split(line)), Action::Nothing(_)),
                "{line}"
            );
        }
    }

    #[test]
    fn lines_of_helm_3_stay() {
        for line in [
            "",
            "--help",
            "install web ./chart -n shop",
            "install ./chart -g -n shop",
            "install ./chart --generate-name",
            "upgrade --install web ./chart --set a=b --atomic",
            "uninstall web -n shop",
            "delete web",
            "list -A --output json",
            "template ./chart -n shop",
            "template web ./chart --timeout 5m",
            "plugin run -- --purge --tls",
        ] {
            assert_eq!(translate(&split(line)), Action::Run(split(line)), "{line}");
        }
    }

    #[test]
    fn a_release_is_purged_where_it_is() {
        assert_eq!(
            translate(&split("delete web --purge --timeout=9")),
            Action::RunWhereItIs {
                release: "web".into(),
                arguments: split("delete web --timeout=9s"),
            }
        );
        // No name that could be part of a pattern.
        assert!(matches!(
            translate(&split("delete --purge .*")),
            Action::Run(_)
        ));
        let json = r#"[{"name":"web","namespace":"shop","revision":"1"}]"#;
        assert_eq!(field(json, "namespace").as_deref(), Some("shop"));
        assert_eq!(field("[]", "namespace"), None);
        assert_eq!(field(r#"{"namespace":"a b"}"#, "namespace"), None);
    }
}
