//! From nodes to values, with all errors at once.
//!
//! In: a [`Node`] and the path of its field. Out: the value, or `None` after a
//! diagnostic; decoding goes on, so that every error is told. Where each field
//! stood is kept in [`Source`] for later findings.
//!
//! The same decoders describe themselves: run by [`schema_of`] each leaves the
//! JSON Schema of what it takes, so that schema and decoder can't differ.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde_json::{Value as Json, json};

use crate::diagnostic::nearest;
use crate::yaml::{Entry, Node, Position, Value, short};
use crate::{Diagnostic, Severity, ValueError};

/// Findings that are told; who reads so many reads no more.
pub(crate) const MAX_DIAGNOSTICS: usize = 1000;

/// Where the fields of a manifest stand. Equal to any other: manifests are the
/// same when their values are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    file: String,
    places: BTreeMap<String, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    key: Position,
    value: Position,
}

impl PartialEq for Source {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Source {
    /// A finding at the value of a field.
    pub(crate) fn at_value(
        &self,
        path: &str,
        code: &'static str,
        message: String,
        help: Option<String>,
    ) -> Diagnostic {
        diagnostic(&self.file, self.place(path).value, code, message, help)
    }

    /// A finding at the name of a field.
    pub(crate) fn at_key(
        &self,
        path: &str,
        code: &'static str,
        message: String,
        help: Option<String>,
    ) -> Diagnostic {
        diagnostic(&self.file, self.place(path).key, code, message, help)
    }

    /// Whether the field was written down.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// The place of the field, or of the nearest one around it.
    fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => {
                    return Place {
                        key: Position::START,
                        value: Position::START,
                    };
                }
            }
        }
    }
}

fn diagnostic(
    file: &str,
    at: Position,
    code: &'static str,
    message: impl Into<String>,
    help: Option<String>,
) -> Diagnostic {
    let file = file.to_owned();
    let message = message.into();
    Diagnostic {
        severity: Severity::Error,
        code,
        message,
        file,
        line: at.line,
        column: at.column,
        help,
    }
}

/// Collects what decoders find.
#[derive(Debug)]
pub(crate) struct Decoder {
    source: Source,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Of the value that was decoded last, while a schema is made.
    schema: Option<Json>,
}

/// The schema of what `decode` takes.
pub(crate) fn schema_of<T>(decode: impl Fn(&mut Decoder, &Node, &str) -> T) -> Json {
    let mut decoder = Decoder::new("");
    decoder.schema = Some(Json::Null);
    decode(&mut decoder, &Node::nothing(), "");
    decoder.schema.unwrap_or_default()
}

impl Decoder {
    pub(crate) fn new(file: &str) -> Self {
        let source = Source {
            file: file.to_owned(),
            places: BTreeMap::new(),
        };
        Self {
            source,
            diagnostics: Vec::new(),
            schema: None,
        }
    }

    /// Says what the decoder takes.
    fn shape(&mut self, schema: impl FnOnce() -> Json) {
        if let Some(shape) = &mut self.schema {
            *shape = schema();
        }
    }

    /// Adds rules to what the inner decoder takes.
    pub(crate) fn narrow(&mut self, rules: &[(&str, Json)]) {
        if let Some(Json::Object(shape)) = &mut self.schema {
            for (rule, value) in rules {
                shape.insert((*rule).to_owned(), value.clone());
            }
        }
    }

    pub(crate) fn source(&self) -> Source {
        self.source.clone()
    }

    pub(crate) fn error(
        &mut self,
        at: Position,
        code: &'static str,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let found = diagnostic(&self.source.file, at, code, message, help);
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            self.diagnostics.push(found);
        }
    }

    fn wrong_type(&mut self, node: &Node, path: &str, expected: &str) {
        let name = if path.is_empty() {
            "the manifest".to_owned()
        } else {
            format!("`{path}`")
        };
        self.error(
            node.at,
            "wrong-type",
            format!("{name} must be {expected}, not {}", node.describe()),
            None,
        );
    }

    /// A mapping of the fields that `read` takes.
    pub(crate) fn mapping<T>(
        &mut self,
        node: &Node,
        path: &str,
        read: impl FnOnce(&mut Self, &mut Fields<'_>) -> T,
    ) -> Option<T> {
        let mut fields = self.fields(node, path);
        let value = read(self, &mut fields);
        fields.finish(self);
        Some(value)
    }

    /// Begins a mapping of known fields.
    pub(crate) fn fields<'n>(&mut self, node: &'n Node, path: &str) -> Fields<'n> {
        let mut fields = Fields {
            path: path.to_owned(),
            at: node.at,
            entries: &[],
            known: Vec::new(),
            missing: Vec::new(),
            broken: false,
            properties: serde_json::Map::new(),
        };
        if self.schema.is_some() {
            return fields;
        }
        match &node.value {
            Value::Map(entries) => {
                self.duplicates(entries, path);
                fields.entries = entries;
            }
            _ => {
                self.wrong_type(node, path, "a mapping");
                fields.broken = true;
            }
        }
        fields
    }

    fn duplicates(&mut self, entries: &[Entry], path: &str) {
        let mut seen: BTreeMap<&str, Position> = BTreeMap::new();
        for entry in entries {
            self.record(&join(path, &entry.key), entry.key_at, entry.value.at);
            if let Some(first) = seen.insert(&entry.key, entry.key_at) {
                let message = format!(
                    "`{}` is written twice, first in line {}",
                    join(path, &short(&entry.key)),
                    first.line
                );
                self.error(
                    entry.key_at,
                    "duplicate-field",
                    message,
                    Some("keep one of them".into()),
                );
            }
        }
    }

    fn record(&mut self, path: &str, key: Position, value: Position) {
        self.source
            .places
            .insert(path.to_owned(), Place { key, value });
    }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

/// A mapping of which the fields are taken one by one.
#[derive(Debug)]
pub(crate) struct Fields<'n> {
    path: String,
    at: Position,
    entries: &'n [Entry],
    known: Vec<&'static str>,
    missing: Vec<&'static str>,
    broken: bool,
    /// Schemas of the fields, while a schema is made.
    properties: serde_json::Map<String, Json>,
}

impl Fields<'_> {
    /// A field that may be missing or null.
    pub(crate) fn optional<T>(
        &mut self,
        decoder: &mut Decoder,
        name: &'static str,
        decode: impl Fn(&mut Decoder, &Node, &str) -> Option<T>,
    ) -> Option<T> {
        self.known.push(name);
        if decoder.schema.is_some() {
            decode(decoder, &Node::nothing(), &join(&self.path, name));
            let schema = decoder.schema.clone().unwrap_or_default();
            self.properties.insert(name.to_owned(), or_null(schema));
            return None;
        }
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.key == name && !entry.value.is_null())?;
        decode(decoder, &entry.value, &join(&self.path, name))
    }

    /// A field that takes its type's default when it is missing.
    pub(crate) fn or_default<T: Default>(
        &mut self,
        decoder: &mut Decoder,
        name: &'static str,
        decode: impl Fn(&mut Decoder, &Node, &str) -> Option<T>,
    ) -> T {
        self.optional(decoder, name, decode).unwrap_or_default()
    }

    /// A field that must be there. `None` is always reported.
    pub(crate) fn required<T>(
        &mut self,
        decoder: &mut Decoder,
        name: &'static str,
        decode: impl Fn(&mut Decoder, &Node, &str) -> Option<T>,
    ) -> Option<T> {
        let there = self
            .entries
            .iter()
            .any(|entry| entry.key == name && !entry.value.is_null());
        if !there && !self.broken {
            self.missing.push(name);
        }
        let value = self.optional(decoder, name, decode);
        if let Some(schema) = &decoder.schema {
            self.properties.insert(name.to_owned(), schema.clone());
        }
        value
    }

    /// Reports fields that nobody asked for and those that are missing. A
    /// misspelt field is reported once, as unknown.
    pub(crate) fn finish(self, decoder: &mut Decoder) {
        if decoder.schema.is_some() {
            let mut schema = json!({
                "type": "object",
                "properties": self.properties,
                "additionalProperties": false,
            });
            if !self.missing.is_empty() {
                schema["required"] = json!(self.missing);
            }
            decoder.shape(|| schema);
            return;
        }
        let unknown: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| !self.known.contains(&entry.key.as_str()))
            .collect();
        for entry in &unknown {
            let message = format!(
                "there is no field `{}`",
                join(&self.path, &short(&entry.key))
            );
            let help = match nearest(&entry.key, self.known.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("fields here are {}", self.known.join(", ")),
            };
            decoder.error(entry.key_at, "unknown-field", message, Some(help));
        }
        for name in self.missing {
            let misspelt =
                |entry: &Entry| nearest(&entry.key, self.known.iter().copied()) == Some(name);
            if !unknown.iter().copied().any(misspelt) {
                let message = format!("`{}` is missing", join(&self.path, name));
                decoder.error(self.at, "missing-field", message, None);
            }
        }
    }
}

/// A field that may be missing may be null as well.
fn or_null(mut schema: Json) -> Json {
    match schema.get_mut("type") {
        Some(Json::Array(types)) => types.push(json!("null")),
        Some(only) => *only = json!([only.take(), "null"]),
        None => {}
    }
    if let Some(Json::Array(words)) = schema.get_mut("enum") {
        words.push(Json::Null);
    }
    schema
}

/// Text. Plain numbers and words count as they are written: `7.10` stays `7.10`.
pub(crate) fn text(decoder: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    decoder.shape(|| json!({"type": ["string", "number", "boolean"]}));
    match node.text() {
        Some(text) => Some(text.to_owned()),
        None => {
            decoder.wrong_type(node, path, "text");
            None
        }
    }
}

/// Text that isn't empty.
pub(crate) fn name(decoder: &mut Decoder, node: &Node, path: &str) -> Option<String> {
    let text = text(decoder, node, path);
    decoder.narrow(&[("pattern", json!(r"\S"))]);
    let text = text?;
    if text.trim().is_empty() {
        decoder.error(
            node.at,
            "invalid-value",
            format!("`{path}` must not be empty"),
            None,
        );
        return None;
    }
    Some(text)
}

/// `true` or `false`.
pub(crate) fn boolean(decoder: &mut Decoder, node: &Node, path: &str) -> Option<bool> {
    decoder.shape(|| json!({"type": "boolean"}));
    match &node.value {
        Value::Scalar { text, plain: true } if text == "true" => Some(true),
        Value::Scalar { text, plain: true } if text == "false" => Some(false),
        _ => {
            decoder.wrong_type(node, path, "true or false");
            None
        }
    }
}

/// A whole number in the range of `T`, without quotes.
pub(crate) fn integer<T: FromStr>(decoder: &mut Decoder, node: &Node, path: &str) -> Option<T> {
    let number = match &node.value {
        Value::Scalar { text, plain: true } if text.bytes().all(|digit| digit.is_ascii_digit()) => {
            text.parse().ok()
        }
        _ => None,
    };
    let max = (1_u128 << (8 * size_of::<T>())) - 1;
    decoder.shape(|| json!({"type": "integer", "minimum": 0, "maximum": max}));
    if number.is_none() {
        let expected = format!("a whole number from 0 to {max}, without quotes");
        decoder.wrong_type(node, path, &expected);
    }
    number
}

/// What [`parsed`] reads.
pub(crate) trait Parsed: FromStr<Err = ValueError> {
    /// Rules for its text.
    fn rules() -> Vec<(&'static str, Json)>;
}

/// Text that `T` reads.
pub(crate) fn parsed<T: Parsed>(decoder: &mut Decoder, node: &Node, path: &str) -> Option<T> {
    let text = text(decoder, node, path);
    decoder.narrow(&T::rules());
    let text = text?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(ValueError { message, allowed }) => {
            decoder.error(
                node.at,
                "invalid-value",
                format!("`{path}`: {message}"),
                Some(allowed),
            );
            None
        }
    }
}

/// A list of what `item` decodes. Items that fail are left out.
pub(crate) fn list<T>(
    item: impl Fn(&mut Decoder, &Node, &str) -> Option<T>,
) -> impl Fn(&mut Decoder, &Node, &str) -> Option<Vec<T>> {
    move |decoder, node, path| {
        if decoder.schema.is_some() {
            item(decoder, node, path);
            let items = decoder.schema.take();
            decoder.schema = Some(json!({"type": "array", "items": items}));
            return None;
        }
        let Value::List(nodes) = &node.value else {
            decoder.wrong_type(node, path, "a list");
            return None;
        };
        let decode = |(index, node): (usize, &Node)| {
            let path = format!("{path}[{index}]");
            decoder.record(&path, node.at, node.at);
            item(decoder, node, &path)
        };
        Some(nodes.iter().enumerate().filter_map(decode).collect())
    }
}

/// A mapping with free keys.
pub(crate) fn text_map(
    decoder: &mut Decoder,
    node: &Node,
    path: &str,
) -> Option<BTreeMap<String, String>> {
    if decoder.schema.is_some() {
        text(decoder, node, path);
        let values = decoder.schema.take();
        decoder.schema = Some(json!({"type": "object", "additionalProperties": values}));
        return None;
    }
    let Value::Map(entries) = &node.value else {
        decoder.wrong_type(node, path, "a mapping");
        return None;
    };
    decoder.duplicates(entries, path);
    let value = |entry: &Entry| {
        Some((
            entry.key.clone(),
            text(decoder, &entry.value, &join(path, &short(&entry.key)))?,
        ))
    };
    Some(entries.iter().filter_map(value).collect())
}

/// Names that occur more than once, each with the index of its second place.
pub(crate) fn repeated<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    let mut seen = BTreeSet::new();
    names
        .into_iter()
        .enumerate()
        .filter(|(_, name)| !seen.insert(*name))
        .collect()
}
