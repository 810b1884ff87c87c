//! Constraints over the demo model's vocabulary: which tokens they leave, where they end, and what is wrong with them.

use std::fs;

use super::*;

const VOCAB: u32 = 2000;
const END: u32 = 0;
const POINT: &str = r#"{"type": "object", "properties": {"x": {"type": "integer"}, "name": {"type": "string"}},
                         "required": ["x", "name"], "additionalProperties": false}"#;

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

fn grammars() -> Grammars {
    Grammars::new(demo(), VOCAB, vec![END])
}

/// The bytes of all tokens; none for special ones.
fn spelling() -> Vec<Vec<u8>> {
    let text = fs::read(demo().join("tokenizer.json")).unwrap();
    let json = serde_json::from_slice(&text).unwrap();
    let mut words = llguidance::token_bytes_from_tokenizer_json(&json).unwrap();
    words.iter_mut().filter(|word| word.first() == Some(&0xFF)).for_each(Vec::clear);
    words
}

fn is_allowed(grammar: &Grammar, token: u32) -> bool {
    grammar.allowed()[token as usize / 32] >> (token % 32) & 1 == 1
}

fn allowed(grammar: &Grammar) -> Vec<u32> {
    (0..VOCAB).filter(|&token| is_allowed(grammar, token)).collect()
}

/// Writes a text by the longest tokens that are allowed; what could not be written, and whether more may follow.
fn write<'a>(grammar: &mut Grammar, mut text: &'a str) -> (&'a str, bool) {
    let words = spelling();
    let mut open = true;
    while open && !text.is_empty() {
        let fits = |token: &u32| {
            let word = &words[*token as usize];
            !word.is_empty() && text.as_bytes().starts_with(word)
        };
        let tokens = allowed(grammar);
        let longest =
            tokens.iter().copied().filter(fits).max_by_key(|&token| words[token as usize].len());
        let Some(token) = longest else { break };
        open = grammar.accept(token).unwrap();
        text = &text[words[token as usize].len()..];
    }
    (text, open)
}

#[test]
fn a_schema_leaves_what_it_describes() {
    let schema = Constraint::JsonSchema(POINT.into());
    let grammars = grammars();
    for good in [r#"{"x": -12, "name": "Moses"}"#, r#"{ "x":0,"name" : ""}"#] {
        let mut grammar = grammars.compile(&schema, &[]).unwrap();
        assert_eq!(write(&mut grammar, good), ("", false), "{good}");
    }
    for (bad, left) in [
        (r#"{"y": 1}"#, r#"y": 1}"#),
        (r#"{"x": "a"}"#, r#""a"}"#),
        (r#"{"x": 1}"#, "}"),
        ("[1]", "[1]"),
        ("{\n", "\n"),
        (r#" {"x": 1"#, r#" {"x": 1"#),
    ] {
        let mut grammar = grammars.compile(&schema, &[]).unwrap();
        assert_eq!(write(&mut grammar, bad), (left, true), "{bad}");
        assert!(!is_allowed(&grammar, END), "{bad}");
    }
}

#[test]
fn it_ends_where_nothing_may_follow() {
    let grammars = grammars();
    let two = Constraint::Regex("[ab]{2}".into());
    assert_eq!(write(&mut grammars.compile(&two, &[]).unwrap(), "abba"), ("ba", false));
    let either = Constraint::Lark(r#"start: "yes" | "no""#.into());
    assert_eq!(write(&mut grammars.compile(&either, &[]).unwrap(), "no"), ("", false));
    // Here something may, and need not.
    let some = Constraint::Regex("a+".into());
    let mut grammar = grammars.compile(&some, &[]).unwrap();
    assert!(!is_allowed(&grammar, END));
    assert_eq!(write(&mut grammar, "aa"), ("", true));
    assert!(is_allowed(&grammar, END));
    assert!(!grammar.accept(END).unwrap());
}

/// A model that draws anything that is left, and space rather than anything else.
#[test]
fn whatever_is_drawn_is_valid_at_the_end() {
    let (grammars, words) = (grammars(), spelling());
    let schema = Constraint::JsonSchema(
        r#"{"type": "array", "items": {"enum": [1, "two", null, {"three": 3}]}, "minItems": 2, "maxItems": 5}"#.into(),
    );
    let mut state = 1_u64;
    let mut draw = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..50 {
        let mut grammar = grammars.compile(&schema, &[]).unwrap();
        let mut text = Vec::new();
        loop {
            let all = allowed(&grammar);
            let blank = |token: &&u32| words[**token as usize].iter().all(u8::is_ascii_whitespace);
            let spaces: Vec<_> = all.iter().filter(|&&token| token != END).filter(blank).collect();
            let token = if spaces.is_empty() || draw(4) == 0 {
                all[draw(all.len())]
            } else {
                *spaces[draw(spaces.len())]
            };
            if token == END || !grammar.accept(token).unwrap() {
                text.extend_from_slice(if token == END { b"" } else { &words[token as usize] });
                break;
            }
            text.extend_from_slice(&words[token as usize]);
            assert!(text.len() < 5000, "space without end");
        }
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert!((2..=5).contains(&value.as_array().unwrap().len()), "{value}");
    }
}

#[test]
fn a_sequence_goes_on_elsewhere_where_it_was() {
    let (grammars, schema) = (grammars(), Constraint::JsonSchema(POINT.into()));
    let mut grammar = grammars.compile(&schema, &[]).unwrap();
    let mut generated = Vec::new();
    for _ in 0..8 {
        let elsewhere = grammars.compile(&schema, &generated).unwrap();
        assert_eq!(elsewhere.allowed(), grammar.allowed());
        generated.push(*allowed(&grammar).last().unwrap());
        assert!(grammar.accept(generated[generated.len() - 1]).unwrap());
    }
}

#[test]
fn a_model_without_end_tokens_ends_where_nothing_may_follow() {
    let grammars = Grammars::new(demo(), VOCAB, Vec::new());
    let mut grammar = grammars.compile(&Constraint::Regex("ab?".into()), &[]).unwrap();
    assert_eq!(write(&mut grammar, "ab"), ("", false));
}

#[test]
fn what_is_wrong_is_one_sentence() {
    let grammars = grammars();
    let check = |constraint: Constraint, generated: &[u32], expected: &str| {
        let error = grammars.compile(&constraint, generated).unwrap_err().to_string();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{error}");
    };
    check(Constraint::JsonSchema("{".into()), &[], "JSON schema: EOF while parsing an object");
    check(Constraint::JsonSchema("3".into()), &[], "JSON schema: expected an object, found 3");
    check(Constraint::JsonSchema(r#"{"type": "point"}"#.into()), &[], "JSON schema: ");
    check(
        Constraint::JsonSchema("false".into()),
        &[],
        "JSON schema: expected an object, found false",
    );
    check(Constraint::Regex("a(".into()), &[], "regular expression: ");
    check(Constraint::Lark("start: unknown".into()), &[], "grammar: ");
    // What an earlier node generated has to fit, too.
    check(Constraint::Regex("a+".into()), &[5], "regular expression: ");
}

#[test]
fn without_a_tokenizer_there_are_no_constraints() {
    let folder = tempfile::tempdir().unwrap();
    let compile = || {
        let grammars = Grammars::new(folder.path().to_owned(), VOCAB, vec![END]);
        grammars.compile(&Constraint::Regex("a".into()), &[]).unwrap_err().to_string()
    };
    let missing = compile();
    assert!(
        missing.starts_with("the bytes of the model's tokens are not known: cannot read "),
        "{missing}"
    );
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let odd = compile();
    assert!(odd.contains("tokenizer.json: can't determine decoder type"), "{odd}");
}

#[test]
fn what_becomes_too_much_is_said_when_it_does() {
    let many: Vec<_> = (0..2500).map(|number| format!("/[a-z]*{number}/ word")).collect();
    let grammar = Constraint::Lark(format!("start: word\nword: {}", many.join(" | ")));
    let mut grammar = grammars().compile(&grammar, &[]).unwrap();
    let error = grammar.accept(allowed(&grammar)[0]).unwrap_err().to_string();
    assert!(
        error.starts_with("grammar: Parser Error: Current row has") && !error.contains('\n'),
        "{error}"
    );
}
