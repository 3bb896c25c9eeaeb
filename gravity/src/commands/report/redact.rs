//! Takes secrets out of text: logs, JSON, YAML, command lines.
//!
//! In: any text. Out: the same with private keys, and values of what is called
//! a token, key or password, replaced. Goes by names and forms, so that it
//! needs to know no secret. Rather too much is replaced than too little.

use std::borrow::Cow;

const REDACTED: &str = "[redacted]";

/// Parts of names whose values are secret, in lower case without `-` and `_`.
const SECRET: &[&str] = &[
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "apikey",
    "accesskey",
    "privatekey",
    "keydata",
    "credential",
    "authorization",
    "license",
];

/// Ends of names that say where a secret is, not what.
const PLACES: &[&str] = &[
    "name",
    "ref",
    "file",
    "path",
    "dir",
    "class",
    "type",
    "keys",
    "count",
    "ttl",
    "namespace",
    "audience",
    "expirationseconds",
];

/// Replaces what is secret.
pub(crate) fn redact(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut state = State::default();
    for line in text.split_inclusive('\n') {
        output.push_str(&state.line(line));
    }
    output
}

/// What former lines say about the next.
#[derive(Debug, Default)]
struct State {
    /// Inside a private key.
    key: bool,
    /// Inside a YAML block whose name was secret: its indentation.
    block: Option<usize>,
    /// The last `name:` of an environment variable was secret.
    variable: bool,
}

impl State {
    fn line<'a>(&mut self, line: &'a str) -> Cow<'a, str> {
        if self.key {
            self.key = !is_end(line);
            return "".into();
        }
        let indentation = line.len() - line.trim_start().len();
        if let Some(block) = self.block {
            if line.trim().is_empty() || indentation > block {
                return "".into();
            }
            self.block = None;
        }
        if let Some(start) = line.find("-----BEGIN ").filter(|_| is_private(line)) {
            // In JSON the whole key stands on one line.
            self.key = !is_end(line);
            let rest = line
                .rfind("-----END ")
                .and_then(|end| Some(end + 9 + line[end + 9..].find("-----")? + 5))
                .map_or("\n", |end| &line[end..]);
            return format!("{}{REDACTED}{rest}", &line[..start]).into();
        }
        let mut output = String::new();
        let mut copied = 0;
        let mut at = 0;
        while let Some((start, end)) = word(line, at) {
            at = end;
            let name = &line[start..end];
            if is_jwt(name) {
                output.push_str(&line[copied..start]);
                output.push_str(REDACTED);
                copied = end;
                continue;
            }
            if name == "Bearer" || name == "Basic" {
                if let Some((start, end)) = value(line, end).filter(|(start, _)| *start > at) {
                    output.push_str(&line[copied..start]);
                    output.push_str(REDACTED);
                    (copied, at) = (end, end);
                }
                continue;
            }
            let Some(value_start) = separator(line, end, line[..start].ends_with("--")) else {
                continue;
            };
            let Some((start, end)) = value(line, value_start) else {
                continue;
            };
            let content = &line[start..end];
            if name == "name" {
                self.variable = is_secret(content);
                continue;
            }
            if !(is_secret(name) || name == "value" && self.variable) {
                continue;
            }
            if matches!(content, "|" | "|-" | "|+" | ">" | ">-" | ">+") {
                self.block = Some(indentation);
                continue;
            }
            // Numbers, booleans and structures tell nothing.
            if content.is_empty()
                || matches!(content, "true" | "false" | "null")
                || content.starts_with(['{', '['])
            {
                continue;
            }
            let whole = match name.to_lowercase().as_str() {
                "authorization" => line.trim_end_matches(['\n', '\r', '"', '\'', '\\']).len(),
                _ => end,
            };
            let end = whole.max(end);
            output.push_str(&line[copied..start]);
            output.push_str(REDACTED);
            (copied, at) = (end, end);
        }
        output.push_str(&line[copied..]);
        userinfo(output).into()
    }
}

fn is_private(line: &str) -> bool {
    line.contains("PRIVATE KEY-----")
}

fn is_end(line: &str) -> bool {
    line.contains("-----END ")
}

/// Whether a value of this name is secret.
fn is_secret(name: &str) -> bool {
    let plain: String = name
        .chars()
        .filter(|c| !matches!(c, '-' | '_' | '.' | '/'))
        .map(|c| c.to_ascii_lowercase())
        .collect();
    SECRET.iter().any(|part| plain.contains(part))
        && !PLACES.iter().any(|place| plain.ends_with(place))
}

/// A JSON web token.
fn is_jwt(word: &str) -> bool {
    word.starts_with("eyJ") && word.len() > 40 && word.matches('.').count() == 2
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// The next word from `at` on, without leading dashes.
fn word(line: &str, at: usize) -> Option<(usize, usize)> {
    let is_first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let start = at + line[at..].find(is_first)?;
    let length = line[start..].find(|c| !is_word(c));
    Some((start, length.map_or(line.len(), |length| start + length)))
}

/// Where the value of a name that ends at `at` begins: after `:` or `=`, with
/// quotes between, escaped ones too; for a flag also after a blank.
fn separator(line: &str, at: usize, flag: bool) -> Option<usize> {
    let rest = line[at..].trim_start_matches(['"', '\'', '\\']);
    let quoted = rest.len() < line.len() - at;
    let trimmed = rest.trim_start_matches(' ');
    if let Some(after) = trimmed.strip_prefix([':', '=']) {
        // `https://` and `a::b` are no names.
        let next = after.chars().next();
        return (!matches!(next, Some('/' | ':')) || quoted).then_some(line.len() - after.len());
    }
    (flag && rest.starts_with(' ')).then_some(line.len() - trimmed.len())
}

/// The value that begins at or after `at`: what stands in quotes, or a word.
fn value(line: &str, at: usize) -> Option<(usize, usize)> {
    let after = line[at..].trim_start_matches([' ', '\t']);
    let start = line.len() - after.len();
    let opening: String = after
        .chars()
        .take_while(|c| matches!(c, '\\' | '"' | '\''))
        .collect();
    let start = start + opening.len();
    let rest = &line[start..];
    let length = match opening.is_empty() {
        true => rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | '\'' | '&' | ';')),
        // An escaped quote ends with the next one that is escaped as often.
        false => closing(rest, &opening),
    };
    let end = length.map_or(line.trim_end().len().max(start), |length| start + length);
    (end > start).then_some((start, end))
}

fn closing(text: &str, quote: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let found = from + text[from..].find(quote)?;
        let escaped = text[..found].ends_with('\\');
        if !escaped {
            return Some(found);
        }
        from = found + quote.len();
    }
}

/// Takes passwords out of URLs: `https://user:password@host`.
fn userinfo(text: String) -> String {
    let Some(scheme) = text.find("://") else {
        return text;
    };
    let (head, rest) = text.split_at(scheme + 3);
    let end = rest
        .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?'))
        .unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{user}:{REDACTED}@{host}")
        }
        _ => authority.to_owned(),
    };
    format!("{head}{authority}{}", userinfo(tail.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_every_form() {
        for (text, expected) in [
            ("password=hunter2", "password=[redacted]"),
            ("DB_PASSWORD: hunter2\n", "DB_PASSWORD: [redacted]\n"),
            (
                r#"{"token":"abc","a":1}"#,
                r#"{"token":"[redacted]","a":1}"#,
            ),
            (
                r#"{\"bindPassword\":\"abc\",\"a\":1}"#,
                r#"{\"bindPassword\":\"[redacted]\",\"a\":1}"#,
            ),
            (r#"{"secret": "a\"b c"} x"#, r#"{"secret": "[redacted]"} x"#),
            (
                "join --token abc 10.0.0.1",
                "join --token [redacted] 10.0.0.1",
            ),
            (
                "join --token=abc 10.0.0.1",
                "join --token=[redacted] 10.0.0.1",
            ),
            ("client-key-data: LS0t==\n", "client-key-data: [redacted]\n"),
            (
                "Authorization: Bearer a.b-c/d=\n",
                "Authorization: [redacted]\n",
            ),
            ("sent Bearer abc now", "sent Bearer [redacted] now"),
            (
                "get https://me:pass@host/x and http://b@c",
                "get https://me:[redacted]@host/x and http://b@c",
            ),
            (
                "- name: API_TOKEN\n  value: abc\n- name: COLOUR\n  value: red\n",
                "- name: API_TOKEN\n  value: [redacted]\n- name: COLOUR\n  value: red\n",
            ),
            (
                r#"[{"name":"PASSWORD","value":"abc"},{"name":"A","value":"b"}]"#,
                r#"[{"name":"PASSWORD","value":"[redacted]"},{"name":"A","value":"b"}]"#,
            ),
            (
                "  password: |-\n    abc\n    def\n  port: 1\n",
                "  password: |-\n  port: 1\n",
            ),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\nb\n",
                "a\n[redacted]\nb\n",
            ),
            (
                r#"{"x":"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n","y":1}"#,
                r#"{"x":"[redacted]\n","y":1}"#,
            ),
        ] {
            assert_eq!(redact(text), expected);
        }
        let jwt = format!("got eyJ{}.{}.sig!", "a".repeat(30), "b".repeat(30));
        assert_eq!(redact(&jwt), "got [redacted]!");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "secretName: tls\n",
            "tokenFile=/var/state/x\n",
            "phase /start/planet completed: Start the planet\n",
            "the token expired at 12:00\n",
            "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n",
            "automountServiceAccountToken: false\n",
            "secret:\n  defaultMode: 420\n",
            "https://10.0.0.1:6443/api?x=1\n",
            "kein Schlüssel: ü=ö\n",
            "",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
