//! YAML with positions: the only user of the YAML library.
//!
//! In: text. Out: trees of nodes that know their line and column, or the one
//! syntax error; and from such a tree a [`Manifest`] by [`parse`]. Size, depth
//! and the growth by aliases are bounded.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::decode::Decoder;
use crate::{Diagnostic, Manifest, fields, validate};

/// Largest text that is read, in bytes. A manifest holds texts and a logo
/// inline once it is resolved.
pub const MAX_SIZE: usize = 8 << 20;

/// Nodes of one text, those that aliases repeat included.
const MAX_NODES: usize = 200_000;

/// Nested mappings or sequences.
const MAX_DEPTH: usize = 64;

/// Reads a manifest. `file` is its name for diagnostics.
///
/// # Errors
/// All that is wrong with it, in the order of the text.
pub fn parse(text: &str, file: &str) -> Result<Manifest, Vec<Diagnostic>> {
    let mut decoder = Decoder::new(file);
    let manifest = match documents(text).as_deref() {
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
            Err(diagnostics)
        }
    }
}

/// Where in a text, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: usize,
    /// In characters.
    pub(crate) column: usize,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) at: Position,
    pub(crate) message: String,
}

/// A value and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) at: Position,
    /// The bytes of a scalar in the text, quotes included.
    pub(crate) bytes: Range<usize>,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Text as written; `plain` when it had neither quotes nor a block style.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: Position,
    pub(crate) value: Node,
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of a scalar that isn't null.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// A field of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The items of a sequence; none for anything else.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// What it is, for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".into(),
            Value::Scalar { text, .. } => {
                let line = text.lines().next().unwrap_or_default();
                let short: String = line.chars().take(40).collect();
                let rest = if short.len() < text.trim_end().len() {
                    "..."
                } else {
                    ""
                };
                format!("\"{short}{rest}\"")
            }
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
        }
    }
}

/// Reads all documents of a text.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > MAX_SIZE {
        let message = format!(
            "the text has {} bytes; at most {MAX_SIZE} are read",
            text.len()
        );
        return Err(SyntaxError {
            at: Position::START,
            message,
        });
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.block_nesting_limit = MAX_DEPTH;
    options.flow_nesting_limit = MAX_DEPTH;
    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder {
        parser,
        anchors: BTreeMap::new(),
        nodes: 0,
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
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, SyntaxError> {
        self.parser.next().transpose().map_err(|error: ScanError| {
            let marker = error.marker();
            SyntaxError {
                at: Position {
                    line: marker.line(),
                    column: marker.col() + 1,
                },
                message: error.info(),
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
        self.grow(1, at)?;
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
                let target = self
                    .anchors
                    .get(&id)
                    .cloned()
                    .ok_or(SyntaxError { at, message })?;
                self.grow(target.count(), at)?;
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
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn grow(&mut self, nodes: usize, at: Position) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        match self.nodes > MAX_NODES {
            true => Err(SyntaxError {
                at,
                message: format!("the text has more than {MAX_NODES} values"),
            }),
            false => Ok(()),
        }
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

    #[test]
    fn nodes_know_their_position() {
        let text = "a: 1\nb:\n  - x\n  - é: 'q'  # c\n";
        let documents = documents(text).unwrap();
        let [root] = &documents[..] else {
            panic!("{documents:?}")
        };
        let item = &root.get("b").unwrap().items()[1];
        let quoted = item.get("é").unwrap();
        assert_eq!((item.at.line, item.at.column), (4, 5));
        assert_eq!((quoted.at.line, quoted.at.column), (4, 8));
        assert_eq!(&text[quoted.bytes.clone()], "'q'");
    }

    #[test]
    fn bombs_and_loops_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert!(documents(&bomb).is_err());
        assert!(documents("a: &x [*x]").is_err());
        assert!(documents(&"[".repeat(100_000)).is_err());
        assert!(documents(&"- ".repeat(100_000)).is_err());
        assert!(documents(&" ".repeat(MAX_SIZE + 1)).is_err());
    }

    #[test]
    fn documents_without_a_value_are_none() {
        assert_eq!(documents("---\n# only\n---\na: 1\n...\n").unwrap().len(), 1);
        assert_eq!(documents("").unwrap().len(), 0);
    }
}
