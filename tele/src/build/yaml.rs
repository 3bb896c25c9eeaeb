//! YAML and JSON as trees whose texts know their place.
//!
//! In: text. Out: one tree a document, so that a value can be replaced in the
//! text while all other bytes stay. Size, depth and the growth by aliases are
//! bounded.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_saphyr::granit_parser::{Event, Options, Parser, Span, StrInput};

/// Values of one text, those that aliases repeat included.
const MAX_NODES: usize = 2_000_000;
const MAX_DEPTH: usize = 128;

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// A scalar, the line it is in, and its bytes with quotes.
    Text {
        text: String,
        line: usize,
        bytes: Range<usize>,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping; keys that are not text are left out.
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    pub(crate) fn items(&self) -> &[Node] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    fn count(&self) -> usize {
        1 + match self {
            Self::Text { .. } => 0,
            Self::List(items) => items.iter().map(Self::count).sum(),
            Self::Map(entries) => entries.iter().map(|(_, value)| value.count()).sum(),
        }
    }
}

/// Reads all documents of a text; an error says where it is.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, String> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.block_nesting_limit = MAX_DEPTH;
    options.flow_nesting_limit = MAX_DEPTH;
    let parser = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader {
        parser,
        anchors: BTreeMap::new(),
        nodes: 0,
    };
    let mut documents = Vec::new();
    while let Some((event, span)) = reader.next()? {
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(..) => reader.anchors.clear(),
            event => documents.push(reader.node(event, &span)?),
        }
    }
    Ok(documents)
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, String> {
        self.parser.next().transpose().map_err(|error| {
            format!(
                "line {} column {}: {}",
                error.marker().line(),
                error.marker().col() + 1,
                error.info()
            )
        })
    }

    fn inside(&mut self) -> Result<(Event<'a>, Span), String> {
        self.next()?
            .ok_or_else(|| "the text ends within a value".to_owned())
    }

    fn grow(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes += nodes;
        match self.nodes > MAX_NODES {
            true => Err(format!("the text has more than {MAX_NODES} values")),
            false => Ok(()),
        }
    }

    fn node(&mut self, event: Event<'a>, span: &Span) -> Result<Node, String> {
        self.grow(1)?;
        let line = span.start.line();
        let (node, anchor) = match event {
            Event::Scalar(text, _, anchor, _) => {
                let bytes =
                    span.start.byte_offset().unwrap_or(0)..span.end.byte_offset().unwrap_or(0);
                (
                    Node::Text {
                        text: text.into_owned(),
                        line,
                        bytes,
                    },
                    anchor,
                )
            }
            Event::SequenceStart(_, anchor, _) => (self.list()?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map()?, anchor),
            Event::Alias(id) => {
                let target = self.anchors.get(&id).cloned();
                let target = target
                    .ok_or_else(|| format!("line {line}: an alias stands within its own anchor"))?;
                self.grow(target.count())?;
                return Ok(target);
            }
            other => return Err(format!("line {line}: a value is expected, not {other:?}")),
        };
        if anchor != 0 {
            self.grow(node.count())?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self) -> Result<Node, String> {
        let mut items = Vec::new();
        loop {
            match self.inside()? {
                (Event::SequenceEnd, _) => return Ok(Node::List(items)),
                (event, span) => items.push(self.node(event, &span)?),
            }
        }
    }

    fn map(&mut self) -> Result<Node, String> {
        let mut entries = Vec::new();
        loop {
            let key = match self.inside()? {
                (Event::MappingEnd, _) => return Ok(Node::Map(entries)),
                (event, span) => self.node(event, &span)?,
            };
            let (event, span) = self.inside()?;
            let value = self.node(event, &span)?;
            if let Node::Text { text: key, .. } = key {
                entries.push((key, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_know_their_bytes() {
        let text = "# é\na:\n  - 'x'  # c\n  - {b: \"y\", c: z }\n---\nd: &d plain\ne: *d\n";
        let documents = documents(text).unwrap();
        let at = |node: &Node| match node {
            Node::Text { bytes, .. } => text[bytes.clone()].to_owned(),
            other => panic!("{other:?}"),
        };
        let items = documents[0].get("a").unwrap().items();
        assert_eq!(at(&items[0]), "'x'");
        assert_eq!(at(items[1].get("b").unwrap()), "\"y\"");
        assert_eq!(at(items[1].get("c").unwrap()), "z");
        assert_eq!(at(documents[1].get("d").unwrap()), "plain");
        assert_eq!(at(documents[1].get("e").unwrap()), "plain");
    }

    #[test]
    fn what_grows_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert!(documents(&bomb).is_err());
        assert!(documents("a: &x [*x]").is_err());
        assert!(documents(&"[".repeat(100_000)).is_err());
        assert!(documents("a: [").unwrap_err().contains("line"));
    }
}
