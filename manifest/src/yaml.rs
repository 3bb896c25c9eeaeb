//! YAML with positions: the only user of the YAML library's parser.
//!
//! In: text. Out: trees of nodes that know their line, column and bytes, or the
//! one syntax error; and from such a tree a [`Manifest`] by [`parse`]. Size,
//! depth and the growth by aliases stay within [`Limits`].

use std::collections::BTreeMap;
use std::ops::Range;

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::decode::{Decoder, MAX_DIAGNOSTICS};
use crate::{Diagnostic, Manifest, fields, validate};

/// Largest text that is read, in bytes. A manifest holds texts and a logo
/// inline once it is resolved.
pub const MAX_SIZE: usize = 8 << 20;

/// How much of a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the text; and as many again that aliases repeat.
    pub size: usize,
    /// Values, those that aliases repeat included.
    pub nodes: usize,
    /// Nested mappings or sequences.
    pub depth: usize,
}

impl Limits {
    /// Those of a manifest.
    pub const MANIFEST: Self = Self {
        size: MAX_SIZE,
        nodes: 200_000,
        depth: 64,
    };
}

/// Reads a manifest. `file` is its name for diagnostics.
///
/// # Errors
/// All that is wrong with it, in the order of the text.
pub fn parse(text: &str, file: &str) -> Result<Manifest, Vec<Diagnostic>> {
    let mut decoder = Decoder::new(file);
    let manifest = match documents(text, &Limits::MANIFEST).as_deref() {
        Ok([root]) => {
            let mut manifest = fields::manifest(&mut decoder, root);
            manifest.source = decoder.source();
            decoder.diagnostics.extend(validate::validate(&manifest));
            Some(manifest)
        }
        Ok([]) => {
            let help = "the least manifest is metadata with name and resourceVersion";
            decoder.error(
                Position::START,
                "syntax",
                "the manifest is empty",
                Some(help.into()),
            );
            None
        }
        Ok([_, second, ..]) => {
            decoder.error(
                second.at,
                "syntax",
                "the manifest has more than one YAML document",
                None,
            );
            None
        }
        Err(error) => {
            decoder.error(error.at, "syntax", &error.message, None);
            None
        }
    };
    match manifest {
        Some(manifest) if decoder.diagnostics.is_empty() => Ok(manifest),
        _ => {
            let mut diagnostics = decoder.diagnostics;
            diagnostics.sort_by_key(|one| (one.line, one.column));
            diagnostics.truncate(MAX_DIAGNOSTICS);
            Err(diagnostics)
        }
    }
}

/// Reads a manifest of which nothing is known, not even that it is text.
///
/// # Errors
/// Like [`parse`].
pub fn parse_bytes(bytes: &[u8], file: &str) -> Result<Manifest, Vec<Diagnostic>> {
    let (good, rest) = match std::str::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let (good, bad) = bytes.split_at(error.valid_up_to());
            (std::str::from_utf8(good).unwrap_or_default(), bad.first())
        }
    };
    let noise = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}');
    let (at, what) = match (good.char_indices().find(|(_, c)| noise(*c)), rest) {
        (Some((at, c)), _) => (at, format!("the control character U+{:04X}", u32::from(c))),
        (None, Some(byte)) => (
            good.len(),
            format!("the byte 0x{byte:02x}, which is not UTF-8"),
        ),
        (None, None) => return parse(good, file),
    };
    let before = &good[..at];
    let line = before.rsplit('\n').next().unwrap_or_default();
    let at = Position {
        line: before.matches('\n').count() + 1,
        column: line.chars().count() + 1,
    };
    let mut decoder = Decoder::new(file);
    let help = "write the manifest as UTF-8 text";
    decoder.error(
        at,
        "syntax",
        format!("the manifest holds {what}"),
        Some(help.into()),
    );
    Err(decoder.diagnostics)
}

/// Where in a text, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Position {
    pub(crate) const START: Self = Self { line: 1, column: 1 };

    fn of(span: &Span) -> Self {
        Self {
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }
}

/// Why a text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {} column {}: {message}", at.line, at.column)]
pub struct SyntaxError {
    /// Where.
    pub at: Position,
    /// What is wrong there.
    pub message: String,
}

/// A value and where it is.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// The bytes of a scalar in the text, quotes included. An alias has those
    /// of what it stands for.
    pub bytes: Range<usize>,
    /// The value.
    pub value: Value,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Value {
    /// A scalar.
    Scalar {
        /// Its content.
        text: String,
        /// Whether it had neither quotes nor a block style.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping.
    Map(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where it begins.
    pub key_at: Position,
    /// The value.
    pub value: Node,
}

impl Node {
    /// Whether nothing was written, or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of a scalar that isn't null.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// The value of a mapping's key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// The entries of a mapping; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; none for anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// A value that isn't there.
    pub(crate) fn nothing() -> Self {
        Self {
            at: Position::START,
            bytes: 0..0,
            value: Value::Scalar {
                text: String::new(),
                plain: true,
            },
        }
    }

    /// What it is, for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".into(),
            Value::Scalar { text, .. } => format!("\"{}\"", short(text)),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }

    /// Values and bytes of text.
    fn weight(&self) -> (usize, usize) {
        let sum = |(nodes, bytes): (usize, usize), of: (usize, usize)| (nodes + of.0, bytes + of.1);
        match &self.value {
            Value::Scalar { text, .. } => (1, text.len()),
            Value::List(items) => items.iter().map(Self::weight).fold((1, 0), sum),
            Value::Map(entries) => entries
                .iter()
                .map(|entry| sum(entry.value.weight(), (0, entry.key.len())))
                .fold((1, 0), sum),
        }
    }
}

/// The beginning of a text's first line, for messages.
pub(crate) fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(40).collect();
    if short.len() < text.trim_end().len() {
        short.push_str("...");
    }
    short
}

/// Reads all documents of a text but those of nothing.
///
/// # Errors
/// Where the text is not YAML, or is beyond the limits.
pub fn documents(text: &str, limits: &Limits) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > limits.size {
        let message = format!(
            "the text has {} bytes; at most {} are read",
            text.len(),
            limits.size
        );
        return Err(SyntaxError {
            at: Position::START,
            message,
        });
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.block_nesting_limit = limits.depth;
    options.flow_nesting_limit = limits.depth;
    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder {
        parser,
        limits,
        anchors: BTreeMap::new(),
        nodes: 0,
        repeated: 0,
    };
    let mut documents = Vec::new();
    while let Some((event, span)) = builder.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(..) => builder.anchors.clear(),
            event => documents.push(builder.node(event, span)?),
        }
    }
    // A text of comments, or a stray `---`, is a document of nothing.
    documents.retain(|document| !document.is_null());
    Ok(documents)
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    limits: &'a Limits,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    /// Bytes of text that anchors and aliases copied.
    repeated: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, SyntaxError> {
        self.parser.next().transpose().map_err(|error: ScanError| {
            let marker = error.marker();
            let message = match error.info() {
                info if info.contains("recursion limit") => {
                    format!("values nest deeper than {}", self.limits.depth)
                }
                info => info,
            };
            SyntaxError {
                at: Position {
                    line: marker.line(),
                    column: marker.col() + 1,
                },
                message,
            }
        })
    }

    fn inside(&mut self, start: Position) -> Result<(Event<'a>, Span), SyntaxError> {
        let end = SyntaxError {
            at: start,
            message: "the text ends within this value".into(),
        };
        self.next()?.ok_or(end)
    }

    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node, SyntaxError> {
        let at = Position::of(&span);
        let bytes = match (span.start.byte_offset(), span.end.byte_offset()) {
            (Some(start), Some(end)) => start..end,
            _ => 0..0,
        };
        self.grow((1, 0), at)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let string = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let plain = style == ScalarStyle::Plain && !string;
                (
                    Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    },
                    anchor,
                )
            }
            Event::SequenceStart(_, anchor, _) => (self.list(at)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(at)?, anchor),
            Event::Alias(id) => {
                let message = "an alias must not stand within its own anchor".to_owned();
                let missing = SyntaxError { at, message };
                let weight = self.anchors.get(&id).map(Node::weight);
                self.grow(weight.unwrap_or_default(), at)?;
                let target = self.anchors.get(&id).cloned().ok_or(missing)?;
                return Ok(Node { at, ..target });
            }
            other => {
                return Err(SyntaxError {
                    at,
                    message: format!("a value is expected here, not {other:?}"),
                });
            }
        };
        let node = Node { at, bytes, value };
        if anchor != 0 {
            self.grow(node.weight(), at)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn grow(&mut self, (nodes, bytes): (usize, usize), at: Position) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        self.repeated += bytes;
        let Limits { size, nodes, .. } = *self.limits;
        let message = if self.nodes > nodes {
            format!("the text has more than {nodes} values")
        } else if self.repeated > size {
            format!("the text repeats more than {size} bytes by aliases")
        } else {
            return Ok(());
        };
        Err(SyntaxError { at, message })
    }

    fn list(&mut self, start: Position) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.inside(start)? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, span) => items.push(self.node(event, span)?),
            }
        }
    }

    fn map(&mut self, start: Position) -> Result<Value, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            let key = match self.inside(start)? {
                (Event::MappingEnd, _) => return Ok(Value::Map(entries)),
                (event, span) => self.node(event, span)?,
            };
            let key_at = key.at;
            let Value::Scalar { text: key, .. } = key.value else {
                return Err(SyntaxError {
                    at: key_at,
                    message: "a key must be text".into(),
                });
            };
            let (event, span) = self.inside(start)?;
            let value = self.node(event, span)?;
            entries.push(Entry { key, key_at, value });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Node>, SyntaxError> {
        documents(text, &Limits::MANIFEST)
    }

    fn message(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn nodes_know_their_position() {
        let text = "a: 1\nb:\n  - x\n  - é: 'q'  # c\n---\nd: &d plain\ne: *d\n";
        let documents = read(text).unwrap();
        let item = &documents[0].get("b").unwrap().items()[1];
        let quoted = item.get("é").unwrap();
        assert_eq!((item.at.line, item.at.column), (4, 5));
        assert_eq!((quoted.at.line, quoted.at.column), (4, 8));
        assert_eq!(&text[quoted.bytes.clone()], "'q'");
        let alias = documents[1].get("e").unwrap();
        assert_eq!((alias.at.line, &text[alias.bytes.clone()]), (7, "plain"));
    }

    #[test]
    fn what_grows_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert!(
            message(&bomb).ends_with("more than 200000 values"),
            "{}",
            message(&bomb)
        );
        let long = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(1 << 20),
            "*a, ".repeat(10_000)
        );
        assert_eq!(
            message(&long),
            "line 2 column 33: the text repeats more than 8388608 bytes by aliases"
        );
        let nested = "&a [ ".replace('a', "A");
        let nested: String = (0..50)
            .map(|i| nested.replace('A', &format!("a{i}")))
            .collect();
        let nested = format!("{nested}{}{}", "x, ".repeat(100_000), "]".repeat(50));
        assert!(
            message(&nested).ends_with("more than 200000 values"),
            "{}",
            message(&nested)
        );
        assert_eq!(
            message("a: &x [*x]"),
            "line 1 column 8: an alias must not stand within its own anchor"
        );
    }

    #[test]
    fn what_is_deep_or_long_is_refused() {
        for text in [
            "[".repeat(1 << 20),
            "{a: ".repeat(1 << 18),
            "- ".repeat(1 << 19),
            "? ".repeat(1 << 19),
        ] {
            let message = message(&text);
            assert!(message.ends_with("values nest deeper than 64"), "{message}");
        }
        let text = " ".repeat(MAX_SIZE + 1);
        assert_eq!(
            message(&text),
            "line 1 column 1: the text has 8388609 bytes; at most 8388608 are read"
        );
        assert!(read("a: [").is_err() && read("{a: 1}: b").is_err());
    }

    #[test]
    fn documents_without_a_value_are_none() {
        assert_eq!(read("---\n# only\n---\na: 1\n...\n").unwrap().len(), 1);
        assert_eq!(read("").unwrap().len(), 0);
    }
}
