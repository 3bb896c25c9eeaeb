//! Takes secrets out of text: logs, JSON, YAML, command lines.
//!
//! In: any text. Out: the same with private keys, and values of what is called
//! a token, key or password, replaced. Goes by names and forms, so that it
//! needs to know no secret. Rather too much is replaced than too little.

use std::borrow::Cow;
use std::mem;

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
    "encryptionkey",
    "signingkey",
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
    "count",
    "ttl",
    "namespace",
    "audience",
    "expirationseconds",
];

/// Words before `key` or `keys` with which it is none that keeps a secret: fields of
/// Kubernetes, as `topologyKey`, and what its programs log, as `podKey`.
const OPEN_KEYS: &[&str] = &[
    "public",
    "pub",
    "authorized",
    "topology",
    "label",
    "annotation",
    "taint",
    "map",
    "merge",
    "capacity",
    "cache",
    "snapshot",
    "claim",
    "pvc",
    "volume",
    "pod",
    "replica",
    "object",
    "primary",
    "foreign",
    "partition",
    "sort",
    "field",
];

/// Replaces what is secret.
pub(crate) fn redact(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut state = State::default();
    for line in text.split_inclusive('\n') {
        state.line(line, &mut output);
    }
    output
}

/// What former lines say about the next.
#[derive(Debug, Default)]
struct State {
    /// Inside a private key.
    key: bool,
    /// Inside a YAML value whose name was secret: lines deeper than this belong to it.
    block: Option<usize>,
    /// Below a secret name without a value.
    list: Option<List>,
    /// How many brackets of a list with a secret name are open.
    brackets: usize,
    /// The last item was a secret flag without a value: its indentation.
    flag: Option<usize>,
    /// The last `name:` of an environment variable was secret.
    variable: bool,
}

/// A YAML list below a secret name.
#[derive(Debug)]
struct List {
    /// Where the name begins.
    name: usize,
    /// Indentation of the items, once there is one.
    items: Option<usize>,
}

impl State {
    fn line(&mut self, line: &str, output: &mut String) {
        if self.is_hidden(line) {
            return;
        }
        let (text, key) = private_keys(line);
        self.key = key;
        let mut line = Line::new(&text);
        self.begin(&mut line);
        while let Some((start, end)) = word(line.text, line.at) {
            line.at = end;
            self.word(&mut line, start, end);
        }
        userinfo(&line.finish(), output);
    }

    /// Whether a line belongs to something that has been replaced.
    fn is_hidden(&mut self, line: &str) -> bool {
        if self.key {
            self.key = !is_end(line);
            return true;
        }
        let inside = |block| line.trim().is_empty() || indentation(line) > block;
        self.block = self.block.filter(|block| inside(*block));
        self.block.is_some()
    }

    /// Replaces what is secret because of former lines.
    fn begin(&mut self, line: &mut Line<'_>) {
        if line.text.trim().is_empty() {
            return;
        }
        let flag = mem::take(&mut self.flag);
        if self.brackets > 0 {
            self.elements(line);
            return;
        }
        let listed = self.is_listed(line.text);
        let start = indentation(line.text);
        let dashed = is_dashed(line.text);
        let quoted = !quote(&line.text[start..]).is_empty();
        if listed || flag.is_some_and(|flag| quoted || dashed && flag == start) {
            self.item(line, start, dashed);
        }
    }

    /// Whether a line is an item of a list below a secret name.
    fn is_listed(&mut self, text: &str) -> bool {
        let Some(list) = &mut self.list else {
            return false;
        };
        let (at, dashed) = (indentation(text), is_dashed(text));
        let is_item = dashed && list.items.map_or(at >= list.name, |items| at == items);
        if is_item {
            list.items = Some(at);
        } else if list.items.is_none_or(|items| at <= items) {
            self.list = None;
        }
        is_item
    }

    /// Replaces an item of a list, unless it is a flag or has names itself.
    fn item(&mut self, line: &mut Line<'_>, at: usize, dashed: bool) {
        let text = line.text.trim_end();
        let dash = usize::from(dashed);
        let content = text[at + dash..].trim_start();
        let start = text.len() - content.len();
        if content.is_empty() || is_option(content) || is_mapping(content) {
            return;
        }
        let plain = dashed && quote(content).is_empty();
        let whole = plain.then_some((start, text.len()));
        let Some((start, end)) = whole.or_else(|| value(text, start)) else {
            return;
        };
        // Only an item after a dash goes on in further lines.
        self.block = dashed.then_some(at);
        line.replace(start, end);
    }

    fn word(&mut self, line: &mut Line<'_>, start: usize, end: usize) {
        let text = line.text;
        let (before, name) = (&text[..start], &text[start..end]);
        if is_jwt(name) {
            return line.replace(start, end);
        }
        if name == "Bearer" || name == "Basic" {
            if let Some((start, end)) = value(text, end).filter(|(start, _)| *start > end) {
                line.replace(start, end);
            }
            return;
        }
        let flag = is_flag(before);
        let secret = || is_secret(name) && !is_key_file(before, name);
        let Some(at) = separator(text, end, flag) else {
            if flag && secret() {
                self.argument(line, end);
            }
            return;
        };
        if name == "name" {
            if let Some((start, end)) = value(text, at) {
                self.variable = is_secret(&text[start..end]);
            }
        } else if name == "value" && self.variable || secret() {
            self.value(line, start, end, at);
        }
    }

    /// Replaces what follows a flag as another item: in this line or in the next.
    fn argument(&mut self, line: &mut Line<'_>, end: usize) {
        let text = line.text;
        let rest = text[end..].trim_start_matches(['"', '\'', '\\']).trim();
        if rest.is_empty() || rest == "," {
            self.flag = Some(indentation(text));
            return;
        }
        let Some(after) = rest.strip_prefix(',').map(str::trim_start) else {
            return;
        };
        if is_option(after) {
            return;
        }
        let (start, end) = element(text, text.trim_end().len() - after.len());
        if end > start {
            line.replace(start, end);
        }
    }

    /// Replaces the value at or after `at` of the secret name from `start` to `end`.
    fn value(&mut self, line: &mut Line<'_>, start: usize, end: usize, at: usize) {
        let text = line.text;
        let after = text[at..].trim_start();
        let column = column(text, start);
        if after.is_empty() {
            self.list = column.map(|name| List { name, items: None });
            return;
        }
        if is_structure(after, text[..at].ends_with(':')) {
            if after.starts_with('[') {
                self.brackets = 1;
                line.at = text.len() - after.len() + 1;
                self.elements(line);
            }
            return;
        }
        let block = column.unwrap_or_else(|| indentation(text));
        if after.starts_with(['|', '>']) && after.trim_end().len() <= 3 {
            self.block = Some(block);
            return;
        }
        let Some((from, to)) = span(text, &text[start..end], end, at) else {
            return;
        };
        // Booleans tell nothing.
        if matches!(&text[from..to], "true" | "false" | "null") {
            return;
        }
        // In YAML a long value goes on in deeper lines.
        let quoted = !quote(after).is_empty();
        let open = text[to..].trim().is_empty() && (quoted || text[from..to].contains(' '));
        self.block = column.filter(|_| open);
        line.replace(from, to);
    }

    /// Replaces the elements of a list in brackets. Structures in it are left to
    /// their own names.
    fn elements(&mut self, line: &mut Line<'_>) {
        let text = line.text;
        while self.brackets > 0 {
            let after = text[line.at..].trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            line.at = text.len() - after.len();
            match after.chars().next() {
                None => {
                    // A list goes on only after these; a text may have been cut off.
                    let open = text.trim_end().ends_with(['[', ',']);
                    self.brackets *= usize::from(open);
                    return;
                }
                Some('{') => self.brackets = 0,
                Some('[') if !after.starts_with(REDACTED) => {
                    self.brackets += 1;
                    line.at += 1;
                }
                Some(']') => {
                    self.brackets -= 1;
                    line.at += 1;
                }
                Some(_) => {
                    let (start, end) = element(text, line.at);
                    if end > start {
                        line.replace(start, end);
                    }
                    let end = line.at.max(end);
                    let closed = text[end..].starts_with(quote(after));
                    line.at = end + usize::from(closed) * quote(after).len();
                }
            }
        }
    }
}

/// A line of which parts are replaced.
#[derive(Debug)]
struct Line<'a> {
    text: &'a str,
    output: String,
    /// Up to where the text is in the output.
    copied: usize,
    /// Up to where the text has been looked at.
    at: usize,
}

impl<'a> Line<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            output: String::new(),
            copied: 0,
            at: 0,
        }
    }

    /// Replaces a part. What says in which file a key is stays.
    fn replace(&mut self, start: usize, end: usize) {
        if is_key_path(&self.text[start..end]) {
            self.at = end;
            return;
        }
        // What has been replaced before ends with a bracket that `end` may leave out.
        let end = match self.text[start..].starts_with(REDACTED) {
            true => end.max(start + REDACTED.len()),
            false => end,
        };
        self.output.push_str(&self.text[self.copied..start]);
        self.output.push_str(REDACTED);
        (self.copied, self.at) = (end, end);
    }

    fn finish(mut self) -> String {
        self.output.push_str(&self.text[self.copied..]);
        self.output
    }
}

/// Replaces private keys, and says whether the last one goes on in the next line.
fn private_keys(line: &str) -> (Cow<'_, str>, bool) {
    const BEGIN: &str = "-----BEGIN ";
    if !line.contains("PRIVATE KEY") {
        return (line.into(), false);
    }
    let mut output = String::new();
    let mut rest = line;
    while let Some(begin) = rest.find(BEGIN) {
        let after = &rest[begin + BEGIN.len()..];
        let Some((label, body)) = after.split_once("-----") else {
            break;
        };
        if !label.ends_with("PRIVATE KEY") {
            output.push_str(&rest[..begin + BEGIN.len()]);
            rest = after;
            continue;
        }
        output.push_str(&rest[..begin]);
        output.push_str(REDACTED);
        // In JSON the whole key stands on one line.
        let end = body.split_once("-----END ");
        let Some((_, after)) = end.and_then(|(_, end)| end.split_once("-----")) else {
            output.push('\n');
            return (output.into(), !is_end(body));
        };
        rest = after;
    }
    output.push_str(rest);
    (output.into(), false)
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
    let named = SECRET.iter().any(|part| plain.contains(part))
        && !PLACES.iter().any(|place| plain.ends_with(place));
    named || ends_secret(name)
}

/// Whether the last word of a name tells that its value is secret.
fn ends_secret(name: &str) -> bool {
    let (head, last) = last_word(name);
    match last.to_ascii_lowercase().as_str() {
        // A `key` alone is what Kubernetes calls the name of a label or a field.
        "key" | "keys" => {
            let kind = last_word(head).1.to_ascii_lowercase();
            let kind = kind.trim_end_matches('s');
            !kind.is_empty() && !OPEN_KEYS.contains(&kind)
        }
        // This variable of a shell is its directory.
        "pass" | "pwd" => name != "PWD",
        _ => false,
    }
}

/// The last word of a name as `SIGNING_KEY`, `signing-key2` or `signingKey`, and what
/// is before it.
fn last_word(name: &str) -> (&str, &str) {
    let name = name.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
    let lower = name.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let head = match lower.len() == name.len() {
        true => name.trim_end_matches(|c: char| c.is_ascii_uppercase()),
        false => lower
            .strip_suffix(|c: char| c.is_ascii_uppercase())
            .unwrap_or(lower),
    };
    name.split_at(head.len())
}

/// A JSON web token.
fn is_jwt(word: &str) -> bool {
    word.starts_with("eyJ") && word.len() > 40 && word.matches('.').count() == 2
}

/// Whether a name is the end of a path, as in `/etc/a.key: no such file`.
fn is_key_file(before: &str, name: &str) -> bool {
    before.ends_with('/') && name.ends_with(".key")
}

/// Whether a value says in which file a key is.
fn is_key_path(value: &str) -> bool {
    value.starts_with('/') && (value.ends_with(".key") || value.ends_with(".pem"))
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

/// Whether dashes before a word make it a flag.
fn is_flag(before: &str) -> bool {
    let head = before.trim_end_matches('-');
    let first = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '[' | ',');
    before.ends_with("--") || head.len() < before.len() && head.chars().last().is_none_or(first)
}

/// Whether an item is a flag like `--verbose`, in quotes or not.
fn is_option(item: &str) -> bool {
    item[quote(item).len()..].starts_with("--")
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Whether a line is an item of a YAML list.
fn is_dashed(line: &str) -> bool {
    let rest = line.trim_start().strip_prefix('-');
    rest.is_some_and(|rest| rest.starts_with(char::is_whitespace))
}

/// Whether an item of a list is not one value, but something with names or items.
fn is_mapping(item: &str) -> bool {
    let quote = quote(item);
    match quote.is_empty() {
        true => item.starts_with(['{', '[']) || item.ends_with(':') || item.contains(": "),
        false => closing(&item[quote.len()..], quote)
            .is_some_and(|end| item[end + 2 * quote.len()..].starts_with(':')),
    }
}

/// Where a name begins, when it is the first of its line: of a YAML mapping.
fn column(line: &str, name: usize) -> Option<usize> {
    let head = line[..name].trim_end_matches(['"', '\'']);
    let first = head.trim_start_matches([' ', '-']).is_empty() && !head.ends_with('-');
    first.then_some(head.len())
}

/// Whether a value is a list or a mapping. After `=` it may be a word that begins
/// with a bracket.
fn is_structure(value: &str, colon: bool) -> bool {
    let inner = value.strip_prefix(['[', '{']);
    let inner = inner.filter(|_| !value.starts_with(REDACTED));
    inner.is_some_and(|inner| {
        let inner = inner.trim_start();
        colon || inner.starts_with(['"', '\'', '\\', '[', '{', ']', '}'])
    })
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
    let (start, end) = scalar(line, at, &[',', '"', '\'', '&', ';']);
    (end > start).then_some((start, end))
}

/// The value of a secret name that ends at `end`, at or after `at`.
fn span(line: &str, name: &str, end: usize, at: usize) -> Option<(usize, usize)> {
    let after = line[at..].trim_start();
    let start = line.len() - after.len();
    // In YAML a value without quotes ends with its line.
    let first = column(line, end - name.len()).is_some() && line[end..].starts_with(": ");
    if first && quote(after).is_empty() {
        return Some((start, line.trim_end().len()));
    }
    let (start, end) = value(line, at)?;
    let whole = match name.eq_ignore_ascii_case("authorization") {
        true => line.trim_end_matches(['\n', '\r', '"', '\'', '\\']).len(),
        false => end,
    };
    Some((start, end.max(whole)))
}

/// The element of a list in brackets that begins at or after `at`; may be empty.
fn element(line: &str, at: usize) -> (usize, usize) {
    scalar(line, at, &[',', '"', '\'', ']'])
}

/// What stands in quotes, or what goes to a blank or one of `ends`.
fn scalar(line: &str, at: usize, ends: &[char]) -> (usize, usize) {
    let after = line[at..].trim_start_matches([' ', '\t']);
    let opening = quote(after);
    let rest = &after[opening.len()..];
    let start = line.len() - rest.len();
    let length = match opening.is_empty() {
        true => rest.find(|c: char| c.is_whitespace() || ends.contains(&c)),
        // An escaped quote ends with the next one that is escaped as often.
        false => closing(rest, opening),
    };
    let end = length.map_or(line.trim_end().len().max(start), |length| start + length);
    (start, end)
}

/// The quote that a text begins with, with what escapes it; empty without one.
fn quote(text: &str) -> &str {
    let rest = text.trim_start_matches('\\');
    match rest.starts_with(['"', '\'']) {
        true => &text[..=text.len() - rest.len()],
        false => "",
    }
}

/// Where a text in quotes ends.
fn closing(text: &str, quote: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let found = from + text[from..].find(quote)?;
        let (head, tail) = (&text[..found], &text[found + quote.len()..]);
        let escapes = head.len() - head.trim_end_matches('\\').len();
        let escaped = escapes / quote.len() % 2 == 1;
        // YAML doubles single quotes.
        let doubled = quote == "'" && tail.starts_with('\'');
        if !escaped && !doubled {
            return Some(found);
        }
        from = found + quote.len() + usize::from(doubled);
    }
}

/// Takes passwords out of URLs: `https://user:password@host`.
fn userinfo(text: &str, output: &mut String) {
    let mut rest = text;
    while let Some(scheme) = rest.find("://") {
        let (head, after) = rest.split_at(scheme + 3);
        output.push_str(head);
        let end = authority(after);
        let (user, host) = after[..end].rsplit_once('@').unwrap_or(("", &after[..end]));
        match user.split_once(':') {
            Some((user, _)) => output.extend([user, ":", REDACTED, "@", host]),
            None => output.push_str(&after[..end]),
        }
        rest = &after[end..];
    }
    output.push_str(rest);
}

/// Where user and host of a URL end. The next URL may follow without a blank.
fn authority(text: &str) -> usize {
    let end = text
        .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?'))
        .unwrap_or(text.len());
    let next = text[end..].starts_with("//") && text[..end].ends_with(':');
    end - usize::from(next)
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

    fn check(cases: &[(&str, &str)]) {
        for (text, expected) in cases {
            assert_eq!(redact(text), *expected, "{text}");
            // What other programs have replaced already stays so.
            assert_eq!(redact(expected), *expected);
        }
    }

    #[test]
    fn names_that_end_in_key_pass_or_pwd_are_secret() {
        for name in [
            "ENCRYPTION_KEY",
            "SIGNING_KEY",
            "SIGNING_KEY_2",
            "signingKey",
            "DBKey",
            "encryption-keys",
            "API_KEYS",
            "SECRET_KEYS",
            "apiKeys",
            "DB_PASS",
            "dbPass",
            "pass",
            "MYSQL_PWD",
            "pwd",
        ] {
            check(&[
                (&format!("{name}=x1"), &format!("{name}=[redacted]")),
                (&format!("{name}: x1\n"), &format!("{name}: [redacted]\n")),
                (
                    &format!(r#"{{"{name}":"x1","a":1}}"#),
                    &format!(r#"{{"{name}":"[redacted]","a":1}}"#),
                ),
                (
                    &format!("- name: {name}\n  value: x1\n- name: A\n  value: b\n"),
                    &format!("- name: {name}\n  value: [redacted]\n- name: A\n  value: b\n"),
                ),
                (
                    &format!(r#"[{{"name":"{name}","value":"x1"}},{{"name":"A","value":"b"}}]"#),
                    &format!(
                        r#"[{{"name":"{name}","value":"[redacted]"}},{{"name":"A","value":"b"}}]"#
                    ),
                ),
            ]);
        }
        check(&[("tls.key: |\n  abc\nb: 1\n", "tls.key: |\nb: 1\n")]);
    }

    #[test]
    fn an_argument_after_a_secret_flag_is_replaced() {
        check(&[
            (
                "args:\n- --password\n- hunter2 and more\n- --user\n- me\n",
                "args:\n- --password\n- [redacted]\n- --user\n- me\n",
            ),
            (
                "  - \"--db-pass\"\n  - \"hunter2\"\n  - a\n",
                "  - \"--db-pass\"\n  - \"[redacted]\"\n  - a\n",
            ),
            ("- -token\n- abc\n", "- -token\n- [redacted]\n"),
            (
                "- --token\n- |\n  abc\n- a\n",
                "- --token\n- [redacted]\n- a\n",
            ),
            (
                r#"["--password","hunter2","--user","me"]"#,
                r#"["--password","[redacted]","--user","me"]"#,
            ),
            (
                r#"[\"--password\", \"hunter2\", \"me\"]"#,
                r#"[\"--password\", \"[redacted]\", \"me\"]"#,
            ),
            (
                "command: [run, --password, hunter2]\n",
                "command: [run, --password, [redacted]]\n",
            ),
            (
                "[\n  \"--signing-key\",\n  \"abc\",\n  \"me\"\n]",
                "[\n  \"--signing-key\",\n  \"[redacted]\",\n  \"me\"\n]",
            ),
        ]);
    }

    #[test]
    fn lists_below_a_secret_name_are_replaced() {
        check(&[
            (
                "passwords:\n- abc\n- \"d e\"\nport: 1\n",
                "passwords:\n- [redacted]\n- \"[redacted]\"\nport: 1\n",
            ),
            (
                "  API_KEYS:\n    - abc def\n      ghi\n    - |\n      jkl\n  list:\n    - a\n",
                "  API_KEYS:\n    - [redacted]\n    - [redacted]\n  list:\n    - a\n",
            ),
            (
                "tokens: [abc, 'd e', f]\nlist: [a]\n",
                "tokens: [[redacted], '[redacted]', [redacted]]\nlist: [a]\n",
            ),
            (
                r#"{"passwords":["","a]b",["c"],5],"list":["a"]}"#,
                r#"{"passwords":["","[redacted]",["[redacted]"],[redacted]],"list":["a"]}"#,
            ),
            (
                r#"{\"apiKeys\":[\"a\",\"b\"],\"list\":[\"a\"]}"#,
                r#"{\"apiKeys\":[\"[redacted]\",\"[redacted]\"],\"list\":[\"a\"]}"#,
            ),
            (
                "\"tokens\": [\n  \"abc\",\n  \"d\"\n],\n\"list\": [\n  \"a\"\n]\n",
                "\"tokens\": [\n  \"[redacted]\",\n  \"[redacted]\"\n],\n\"list\": [\n  \"a\"\n]\n",
            ),
        ]);
    }

    #[test]
    fn whole_values_are_replaced() {
        check(&[
            (
                "password: correct, horse\n  battery\na: b c\n",
                "password: [redacted]\na: b c\n",
            ),
            (
                "- name: X_KEY\n  value: a b\n",
                "- name: X_KEY\n  value: [redacted]\n",
            ),
            (
                "- password: |\n    abc\n  port: 1\n",
                "- password: |\n  port: 1\n",
            ),
            (
                "password: \"correct horse\n  battery\"\na: b c\n",
                "password: \"[redacted]\na: b c\n",
            ),
            ("pass: &a;b\n", "pass: [redacted]\n"),
            ("password='it''s me' a", "password='[redacted]' a"),
            ("password={a b", "password=[redacted] b"),
            (
                r#"{"password":"","x":"","y":"z"}"#,
                r#"{"password":"","x":"","y":"z"}"#,
            ),
            (
                r#"{"credentials":"{\"a\":\"b\"}"}"#,
                r#"{"credentials":"[redacted]"}"#,
            ),
            (
                r#"{"password":"a\\","x":"b"}"#,
                r#"{"password":"[redacted]","x":"b"}"#,
            ),
            (
                concat!(
                    r#"{"token":"t","a":"-----BEGIN CERTIFICATE-----\nb\n-----END CERTIFICATE-----","#,
                    r#""x":"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----","pass":"p"}"#
                ),
                concat!(
                    r#"{"token":"[redacted]","a":"-----BEGIN CERTIFICATE-----\nb\n-----END CERTIFICATE-----","#,
                    r#""x":"[redacted]","pass":"[redacted]"}"#
                ),
            ),
        ]);
    }

    #[test]
    fn passwords_leave_any_number_of_urls() {
        let line = "https://me:pass@host/x ".repeat(100_000);
        let expected = "https://me:[redacted]@host/x ".repeat(100_000);
        assert!(redact(&line) == expected);
        check(&[(
            "--endpoints=https://a:1,https://u:p@b:2,https://v:q@c/",
            "--endpoints=https://a:1,https://u:[redacted]@b:2,https://v:[redacted]@c/",
        )]);
    }

    #[test]
    fn fields_of_kubernetes_stay() {
        for text in [
            "- configMapKeyRef:\n    key: colour\n    name: settings\n",
            "secretKeyRef:\n  key: password\n  name: db\n",
            "tolerations:\n- effect: NoExecute\n  key: node.kubernetes.io/not-ready\n",
            "taints:\n- key: a/b\n  value: c\n",
            "matchExpressions:\n- key: app\n  operator: In\n  values:\n  - web\n",
            r#"{"matchExpressions":[{"key":"app","operator":"In","values":["web"]}]}"#,
            "topologyKey: kubernetes.io/hostname\nmatchLabelKeys:\n- app\n",
            "x-kubernetes-list-map-keys:\n- type\n",
            "keys:\n- a\n",
            r#"{"keys":["a"],"publicKey":"abc","SSH_PUBLIC_KEY":"d"}"#,
            "hostKeyAlias: a\nmonkey: a\nbypass: b\n",
            "imagePullSecrets:\n- name: registry\nsecrets:\n- name: a\n  things:\n  - b\n",
            r#"{"imagePullSecrets":[{"name":"registry"}],"secrets":[],"a":["b"]}"#,
            "volumes:\n- secret:\n    items:\n    - key: a\n      path: b\n- configMap: {}\n",
            "rules:\n- resources:\n  - secrets\n  - pods\n",
            "- --kubelet-client-key=/etc/a.key\n- --service-account-key-file=b\n",
            "- --client-key\n- /etc/a.key\n- b\n",
            "- --with-token\n- --verbose\n- a\n",
            "containers:\n- args:\n  - --with-token\n- name: a\n  image: b\n",
            "open /etc/a.key: no such file\n",
            "PWD=/root OLDPWD=/ COMPASS=1\n",
            "I1 controller.go:1] \"Synced\" key=\"a/b\" podKey=\"a/c\"\n",
        ] {
            assert_eq!(redact(text), text);
        }
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
