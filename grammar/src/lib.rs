//! What a sequence may say next: constraints compiled against a model's vocabulary, and the tokens that they leave.

mod vocabulary;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use domain::Constraint;
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar, toktrie::SimpleVob};
use serde_json::{Value, json};

/// Space between the parts of a JSON value: one blank, or none. With room for more a weak model writes space until it has no
/// tokens left.
const JSON_SPACE: &str = " ";

/// Why a constraint cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The model's tokenizer does not say which bytes its tokens stand for.
    #[error("the bytes of the model's tokens are not known: {0}")]
    Vocabulary(String),
    /// The constraint itself is wrong, or more than this implementation can follow.
    #[error("{kind}: {problem}")]
    Constraint {
        /// Which kind of constraint it is, as clients call it.
        kind: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Compiles constraints for one model. Reads the model's tokenizer when the first one comes.
pub struct Grammars {
    folder: PathBuf,
    vocab: u32,
    ends: Vec<u32>,
    factory: OnceLock<Result<Arc<ParserFactory>, GrammarError>>,
}

/// A constraint on one sequence, as far as that has come.
pub struct Grammar {
    kind: &'static str,
    matcher: Matcher,
    allowed: SimpleVob,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("kind", &self.kind).finish_non_exhaustive()
    }
}

// === impl Grammars ===

impl Grammars {
    /// For the model in `folder`, whose token ids are below `vocab` and whose end tokens are `ends`.
    #[must_use]
    pub fn new(folder: PathBuf, vocab: u32, ends: Vec<u32>) -> Self {
        Self { folder, vocab, ends, factory: OnceLock::new() }
    }

    /// A constraint on a sequence that has `generated` some tokens under it already. Takes milliseconds, and on the first
    /// call as long as it takes to read the tokenizer.
    ///
    /// # Errors
    /// When there is no `tokenizer.json` to be understood, or the constraint is wrong, too large, or not kept so far.
    pub fn compile(
        &self,
        constraint: &Constraint,
        generated: &[u32],
    ) -> Result<Grammar, GrammarError> {
        let factory = self.factory.get_or_init(|| {
            vocabulary::factory(&self.folder, self.vocab, &self.ends)
                .map(Arc::new)
                .map_err(GrammarError::Vocabulary)
        });
        let factory = factory.as_ref().map_err(Clone::clone)?;
        let kind = kind(constraint);
        let parser = factory.create_parser(top_level(constraint)?);
        let matcher = Matcher::new(parser);
        let mut grammar = Grammar { kind, matcher, allowed: SimpleVob::new() };
        grammar.matcher.consume_tokens(generated).map_err(|error| grammar.wrong(&error))?;
        grammar.look()?;
        Ok(grammar)
    }
}

// === impl Grammar ===

impl Grammar {
    /// The tokens that may come next: bit `id % 32` of word `id / 32` is set for each. There is one at least.
    #[must_use]
    pub fn allowed(&self) -> &[u32] {
        self.allowed.as_slice()
    }

    /// Takes the next token; whether another may follow.
    ///
    /// # Errors
    /// When the token was not allowed, or what may follow is too much to find out.
    pub fn accept(&mut self, token: u32) -> Result<bool, GrammarError> {
        self.matcher.consume_token(token).map_err(|error| self.wrong(&error))?;
        if self.matcher.is_stopped() {
            return Ok(false);
        }
        self.look()?;
        Ok(true)
    }

    /// Finds the tokens that may come next.
    fn look(&mut self) -> Result<(), GrammarError> {
        self.allowed = self.matcher.compute_mask_or_eos().map_err(|error| self.wrong(&error))?;
        Ok(())
    }

    fn wrong(&self, error: &impl fmt::Display) -> GrammarError {
        wrong(self.kind, error)
    }
}

/// The first line says what is wrong; what may follow is the state of the parser.
fn wrong(kind: &'static str, error: &impl fmt::Display) -> GrammarError {
    let error = error.to_string();
    let problem = error.lines().next().unwrap_or_default().trim_end().to_owned();
    GrammarError::Constraint { kind, problem }
}

fn kind(constraint: &Constraint) -> &'static str {
    match constraint {
        Constraint::JsonSchema(_) => "JSON schema",
        Constraint::Regex(_) => "regular expression",
        Constraint::Lark(_) => "grammar",
    }
}

fn top_level(constraint: &Constraint) -> Result<TopLevelGrammar, GrammarError> {
    Ok(match constraint {
        Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(json_schema(schema)?),
        Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
        Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
    })
}

/// The schema, with our notion of space unless it brings its own.
fn json_schema(schema: &str) -> Result<Value, GrammarError> {
    let schema = serde_json::from_str(schema).map_err(|error| wrong("JSON schema", &error))?;
    let mut object = match schema {
        Value::Object(object) => object,
        // Every value is valid; no value is.
        Value::Bool(true) => serde_json::Map::new(),
        other => {
            let problem = format!("expected an object, found {other}");
            return Err(wrong("JSON schema", &problem));
        }
    };
    object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": JSON_SPACE }));
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests;
