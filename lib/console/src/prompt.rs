//! Questions to a person.
//!
//! In: a question and the answers it takes. Out: one of them. Where nobody can
//! answer, the question fails at once instead of waiting or guessing.

use std::io::{BufRead, IsTerminal, Read, Write};

/// Longest line of input that is read, in bytes.
const MAX_LINE: u64 = 4096;

/// How often a question is asked again after an answer that it doesn't take.
const ATTEMPTS: usize = 5;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// Standard input is no terminal. Who asks says which option gives the answer.
    #[error("can't ask \"{prompt}\": standard input is not a terminal")]
    NotATerminal {
        /// The question.
        prompt: String,
    },
    /// Input ended, or no answer was one of the choices.
    #[error("no answer to \"{prompt}\"")]
    NoAnswer {
        /// The question.
        prompt: String,
    },
    /// The terminal failed.
    #[error("reading the answer to \"{prompt}\"")]
    Io {
        /// The question.
        prompt: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Asks on the process's terminal: question to standard error, answer from
/// standard input.
pub(crate) fn ask(
    prompt: &str,
    choices: &[&str],
    default: Option<&str>,
) -> Result<String, PromptError> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(PromptError::NotATerminal {
            prompt: prompt.into(),
        });
    }
    ask_with(
        &mut input.lock(),
        &mut std::io::stderr(),
        prompt,
        choices,
        default,
    )
}

fn ask_with(
    input: &mut impl BufRead,
    output: &mut impl Write,
    prompt: &str,
    choices: &[&str],
    default: Option<&str>,
) -> Result<String, PromptError> {
    let failed = |source| PromptError::Io {
        prompt: prompt.into(),
        source,
    };
    for _ in 0..ATTEMPTS {
        write!(output, "{} ", question(prompt, choices, default)).map_err(failed)?;
        output.flush().map_err(failed)?;
        let mut line = String::new();
        if input
            .by_ref()
            .take(MAX_LINE)
            .read_line(&mut line)
            .map_err(failed)?
            == 0
        {
            break;
        }
        if let Some(answer) = answer(&line, choices, default) {
            return Ok(answer);
        }
        if !choices.is_empty() {
            writeln!(output, "Please answer one of: {}", choices.join(", ")).map_err(failed)?;
        }
    }
    Err(PromptError::NoAnswer {
        prompt: prompt.into(),
    })
}

fn question(prompt: &str, choices: &[&str], default: Option<&str>) -> String {
    let mut text = prompt.to_owned();
    if !choices.is_empty() {
        text = format!("{text} ({})", choices.join("/"));
    }
    match default {
        Some(default) => format!("{text} [{default}]:"),
        None => format!("{text}:"),
    }
}

/// The answer that a line of input means: a choice in any case, its unique
/// beginning, or anything at all where there are no choices.
fn answer(line: &str, choices: &[&str], default: Option<&str>) -> Option<String> {
    let line = line.trim();
    if line.is_empty() {
        return default.map(Into::into);
    }
    if choices.is_empty() {
        return Some(line.into());
    }
    let lower = line.to_lowercase();
    if let Some(exact) = choices.iter().find(|choice| choice.to_lowercase() == lower) {
        return Some((*exact).into());
    }
    let mut matching = choices
        .iter()
        .filter(|choice| choice.to_lowercase().starts_with(&lower));
    match (matching.next(), matching.next()) {
        (Some(only), None) => Some((*only).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(input: &str, choices: &[&str], default: Option<&str>) -> Result<String, PromptError> {
        ask_with(
            &mut input.as_bytes(),
            &mut Vec::new(),
            "Flavor",
            choices,
            default,
        )
    }

    #[test]
    fn choices_are_matched_by_their_beginning() {
        assert_eq!(run("SM\n", &["small", "large"], None).unwrap(), "small");
        assert_eq!(
            run("\n", &["small", "large"], Some("large")).unwrap(),
            "large"
        );
        assert_eq!(run("one\n", &["one", "one-ha"], None).unwrap(), "one");
        assert_eq!(
            run("anything at all\n", &[], None).unwrap(),
            "anything at all"
        );
    }

    #[test]
    fn wrong_answers_are_asked_again_and_end() {
        assert_eq!(
            run("what\nlarge\n", &["small", "large"], None).unwrap(),
            "large"
        );
        assert!(matches!(
            run("", &["a"], Some("a")),
            Err(PromptError::NoAnswer { .. })
        ));
        let endless = "x\n".repeat(100);
        assert!(matches!(
            run(&endless, &["a", "b"], None),
            Err(PromptError::NoAnswer { .. })
        ));
    }

    #[test]
    fn questions_tell_choices_and_default() {
        assert_eq!(
            question("Flavor", &["a", "b"], Some("a")),
            "Flavor (a/b) [a]:"
        );
        assert_eq!(question("Name", &[], None), "Name:");
    }
}
