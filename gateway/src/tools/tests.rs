//! Calls in texts that come in pieces of every size, and the forms that force them.

use super::*;

fn call(index: usize, name: &str, arguments: &str) -> Call {
    Call { index, name: Some(name.into()), arguments: arguments.into() }
}

/// What a text says and calls, read in pieces of `size` bytes.
fn read(calls: &Calls, several: bool, text: &str, size: usize) -> Heard {
    let mut reader = Reader::new(calls.clone(), several);
    let mut all = Heard::default();
    let mut pieces: Vec<String> = text
        .as_bytes()
        .chunks(size)
        .map(|piece| String::from_utf8(piece.to_vec()).unwrap())
        .collect();
    pieces.push(String::new());
    let end = pieces.len() - 1;
    for (at, piece) in pieces.into_iter().enumerate() {
        let heard = reader.push(piece, at == end);
        all.text.push_str(&heard.text);
        for call in heard.calls {
            match call.name {
                Some(_) => all.calls.push(call),
                None => all.calls.last_mut().unwrap().arguments.push_str(&call.arguments),
            }
        }
    }
    let named = matches!(calls, Calls::Named(_));
    assert_eq!(reader.has_called(), !all.calls.is_empty() && !named);
    all
}

#[track_caller]
fn check(calls: &Calls, text: &str, said: &str, called: &[Call]) {
    for size in [1, 2, 3, 7, 1000] {
        let heard = read(calls, true, text, size);
        assert_eq!((&*heard.text, &*heard.calls), (said, called), "in pieces of {size}");
    }
}

const FREE: Calls = Calls::Free(Notation::Json);

#[test]
fn a_model_that_may_call_is_heard() {
    check(&FREE, "No call, 1 < 2 <tool", "No call, 1 < 2 <tool", &[]);
    let one = "I look.\n<tool_call>\n{\"name\": \"sky\", \"arguments\": {\"b\": \"}<\", \"a\": 1}}\n</tool_call>";
    check(&FREE, one, "I look.\n", &[call(0, "sky", r#"{"b":"}<","a":1}"#)]);
    let two = format!("{one}\n{}\n", one.trim_start_matches("I look.\n").replace("sky", "sea"));
    check(
        &FREE,
        &two,
        "I look.\n",
        &[call(0, "sky", r#"{"b":"}<","a":1}"#), call(1, "sea", r#"{"b":"}<","a":1}"#)],
    );
    assert_eq!(read(&FREE, false, &two, 5).calls.len(), 1);
    check(&FREE, "<tool_call>{\"name\": \"sky\"}</tool_call>", "", &[call(0, "sky", "{}")]);
}

#[test]
fn what_is_no_call_is_text() {
    for text in [
        "<tool_call>{\"name\": 1}</tool_call>",
        "<tool_call>{\"name\": \"sky\"",
        "<tool_call></tool_call> so",
    ] {
        check(&FREE, text, text, &[]);
    }
    let keys = Calls::Free(Notation::Keys);
    check(
        &keys,
        "<tool_call>sky<arg_key>a</tool_call>",
        "<tool_call>sky<arg_key>a</tool_call>",
        &[],
    );
    check(&keys, "<tool_call> </tool_call>", "<tool_call> </tool_call>", &[]);
    // Cut off by the length.
    check(&Calls::Required, "[{\"name\": \"sky\", \"par", "[{\"name\": \"sky\", \"par", &[]);
}

#[test]
fn keys_and_values_are_a_call_too() {
    let text = "<tool_call>sky\n<arg_key>where</arg_key>\n<arg_value>the east</arg_value>\n\
                <arg_key>hours</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>";
    let keys = Calls::Free(Notation::Keys);
    check(&keys, text, "", &[call(0, "sky", r#"{"where":"the east","hours":[1,2]}"#)]);
    check(&keys, "<tool_call>sky</tool_call>", "", &[call(0, "sky", "{}")]);
}

#[test]
fn a_forced_call_is_read_from_its_form() {
    let array =
        r#"[{"name": "sky", "parameters": {"a": "\"}{"}}, {"name": "sea", "parameters": {}}]"#;
    check(&Calls::Required, array, "", &[call(0, "sky", r#"{"a":"\"}{"}"#), call(1, "sea", "{}")]);
    check(&Calls::Named("sky".into()), r#"{"a": 1}"#, "", &[call(0, "sky", r#"{"a": 1}"#)]);
    check(&Calls::Never, "<tool_call>{}", "<tool_call>{}", &[]);
}

#[test]
fn templates_show_their_notation() {
    assert_eq!(Notation::of("{{ messages }}"), None);
    assert_eq!(Notation::of("within <tool_call></tool_call> XML tags"), Some(Notation::Json));
    assert_eq!(Notation::of("<tool_call>{name}<arg_key>"), Some(Notation::Keys));
}

fn tool(name: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

fn schema(tools: &[Value], choice: &Choice, several: bool) -> Value {
    let Some(Constraint::JsonSchema(schema)) = constraint(tools, choice, several).unwrap() else {
        panic!("no schema");
    };
    serde_json::from_str(&schema).unwrap()
}

#[test]
fn a_forced_call_has_the_form_of_its_tools() {
    let point = json!({"type": "object", "properties": {"at": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"type": "integer"}}});
    let tools = [tool("sky", &point), tool("sea", &Value::Null)];
    assert_eq!(constraint(&tools, &Choice::Auto, true).unwrap(), None);
    assert_eq!(schema(&tools, &Choice::Named("sky".into()), true), point);
    let none = json!({"type": "object", "properties": {}});
    assert_eq!(schema(&tools, &Choice::Named("sea".into()), true), none);
    let required = schema(&tools, &Choice::Required, false);
    assert_eq!(required["$defs"], point["$defs"]);
    assert_eq!(required["maxItems"], 1);
    let first = &required["items"]["anyOf"][0]["properties"];
    assert_eq!(first["name"]["const"], "sky");
    assert_eq!(first["parameters"], json!({"type": "object", "properties": point["properties"]}));
    assert_eq!(schema(&tools, &Choice::Required, true).get("maxItems"), None);
}

#[test]
fn a_call_that_cannot_be_forced_is_a_sentence() {
    let refused = |tools: &[Value], choice| constraint(tools, &choice, true).unwrap_err().message;
    assert!(refused(&[], Choice::Required).contains("expected a tool to call"));
    assert!(refused(&[json!({})], Choice::Required).contains("functions with a name"));
    let sky = tool("sky", &json!({"$defs": {"P": {"type": "integer"}}}));
    assert!(
        refused(std::slice::from_ref(&sky), Choice::Named("sea".into())).contains("found `sea`")
    );
    let sea = tool("sea", &json!({"$defs": {"P": {"type": "string"}}}));
    assert!(refused(&[sky, sea], Choice::Required).contains("two of `P`"));
}
