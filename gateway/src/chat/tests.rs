//! Templates in the idioms of the models that amoe serves, and the files they come in.

use std::path::Path;

use serde_json::json;

use super::{ChatTemplate, Conversation};
use crate::model::LoadError;

const QWEN3: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '\n<tool_call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

const MIXTRAL: &str = "{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}\
{% endfor %}";

const DEEPSEEK: &str = "{% if not add_generation_prompt is defined %}\
{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, system_prompt='', is_first_sp=true) %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}\
{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}\
{% set ns.is_first_sp = false %}\
{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}\
{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}\
{%- for message in messages %}{%- if message['role'] == 'user' %}\
{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{% set content = message['content'] %}{% if '</think>' in content %}\
{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}\
{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}";

const LLAMA3: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, text)| (name.to_string(), text.to_string()));
    ChatTemplate::compile(&[("default".to_string(), source.to_string())], tokens.to_vec()).unwrap()
}

fn conversation(messages: serde_json::Value) -> Conversation {
    let serde_json::Value::Array(messages) = messages else { panic!("{messages}") };
    Conversation { messages, add_generation_prompt: true, ..Conversation::default() }
}

fn render(source: &str, messages: serde_json::Value) -> String {
    template(source).render(conversation(messages)).unwrap()
}

#[test]
fn qwen3_renders_turns_and_forgets_old_thoughts() {
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
        {"role": "user", "content": "More"},
    ]);
    assert_eq!(
        render(QWEN3, messages),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn qwen3_takes_its_own_variables_and_tools() {
    let mut conversation = conversation(json!([{"role": "user", "content": "Hi"}]));
    conversation.tools =
        vec![json!({"type": "function", "function": {"name": "f", "description": "<&'é>"}})];
    conversation.variables.insert("enable_thinking".into(), false.into());
    // Neither can be replaced by a variable of the client's.
    conversation.variables.insert("messages".into(), json!([]));
    assert_eq!(
        template(QWEN3).render(conversation).unwrap(),
        "<|im_start|>system\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\", \
         \"description\": \"<&'é>\"}}\n</tools><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n<think>\n\n</think>\n\n"
    );
}

#[test]
fn qwen3_renders_tool_calls_with_arguments_as_objects() {
    let calls = json!([{"function": {"name": "f", "arguments": {"b": 1, "a": [true, null]}}}]);
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]);
    let text = render(QWEN3, messages);
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": [true, null]}}";
    assert!(text.contains(call), "{text}");
}

#[test]
fn a_developer_is_a_system_where_the_template_knows_none() {
    let messages = json!([{"role": "developer", "content": "Be brief."},
                          {"role": "user", "content": "Hi"}]);
    let text = render(QWEN3, messages.clone());
    assert!(text.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n"), "{text}");
    let own = "{% for m in messages %}<{{ m.role }}>{% endfor %}{# developer #}";
    assert_eq!(render(own, messages), "<developer><user>");
}

#[test]
fn a_prompt_may_end_within_its_last_message() {
    let go_on = |source: &str, content: &str| {
        let messages = json!([{"role": "user", "content": "Hi, ho"},
                              {"role": "assistant", "content": content}]);
        template(source).render(Conversation {
            continue_final_message: true,
            add_generation_prompt: false,
            ..conversation(messages)
        })
    };
    let head = "<|im_start|>user\nHi, ho<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(go_on(QWEN3, "Hi, ").unwrap(), format!("{head}Hi, "));
    assert_eq!(go_on(QWEN3, "e").unwrap(), format!("{head}e"), "there is an e behind it, too");
    let trims = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}";
    assert_eq!(go_on(trims, " Hi, ").unwrap(), "<Hi, ho><Hi,");
    let message = go_on("{{ messages[0].content }}", "Hi").unwrap_err().message;
    assert!(message.starts_with("`continue_final_message`: this model's chat"), "{message}");
}

#[test]
fn mixtral_alternates_and_says_so() {
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "More"},
    ]);
    assert_eq!(render(MIXTRAL, messages), "<s>[INST] Hi [/INST]Hello</s>[INST] More [/INST]");
    let wrong = conversation(json!([{"role": "assistant", "content": "Hello"}]));
    let refusal = template(MIXTRAL).render(wrong).unwrap_err();
    assert_eq!(
        refusal.message,
        "`messages`: the model's chat template refuses them: Conversation roles must alternate \
         user/assistant/user/assistant/..."
    );
}

#[test]
fn deepseek_gathers_system_messages() {
    let messages = json!([
        {"role": "system", "content": "A"},
        {"role": "system", "content": "B"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>x</think>Hello"},
        {"role": "user", "content": "More"},
    ]);
    assert_eq!(
        render(DEEPSEEK, messages),
        "<s>A\n\nB<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>More<｜Assistant｜>"
    );
}

#[test]
fn llama3_trims_and_dates() {
    let messages = json!([
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": " Hi "},
    ]);
    let mut conversation = conversation(messages);
    let now = template(LLAMA3).render(conversation.clone()).unwrap();
    assert!(now.contains(&crate::clock::strftime("%b %Y", crate::clock::unix_s())), "{now}");
    conversation.variables.insert("date_string".into(), "1 Jan 2025".into());
    assert_eq!(
        template(LLAMA3).render(conversation).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 1 Jan 2025\n\nBe brief.\
         <|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn blocks_are_trimmed_and_values_print_as_in_python() {
    let source = "{% for m in messages %}\n    {% if loop.first %}\n{{ m.role }}\n    {% continue %}\n\
                  {% endif %}\n{% endfor %}\n{{ true }} {{ none }} {{ [1, 'a']|tojson(indent=2) }}";
    let messages = json!([{"role": "user", "content": ""}]);
    assert_eq!(render(source, messages), "user\nTrue None [\n  1,\n  \"a\"\n]");
}

#[test]
fn training_marks_leave_no_trace() {
    let source = "a\n{%- generation -%}\n b \n{%- endgeneration %}\nc";
    assert_eq!(render(source, json!([])), "ab\nc".replace("b\n", "b"));
}

#[test]
fn tools_need_a_template_that_renders_them() {
    let mut conversation = conversation(json!([{"role": "user", "content": "Hi"}]));
    conversation.tools = vec![json!({})];
    let refusal = template(MIXTRAL).render(conversation).unwrap_err();
    assert!(refusal.message.starts_with("`tools`:"), "{refusal}");
}

fn load(files: &[(&str, &str)]) -> Result<Result<ChatTemplate, String>, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    ChatTemplate::load(folder.path(), None)
}

fn loaded(files: &[(&str, &str)]) -> String {
    let template = load(files).unwrap().unwrap();
    template.render(conversation(json!([]))).unwrap()
}

#[test]
fn a_template_is_found_wherever_models_keep_it() {
    let config = r#"{"bos_token": {"content": "<s>"}, "chat_template": "config {{ bos_token }}"}"#;
    let config = ("tokenizer_config.json", config);
    let json = ("chat_template.json", r#"{"chat_template": "json {{ bos_token }}"}"#);
    let jinja = ("chat_template.jinja", "jinja {{ bos_token }}");
    assert_eq!(loaded(&[config]), "config <s>");
    assert_eq!(loaded(&[config, json]), "json <s>");
    assert_eq!(loaded(&[config, json, jinja]), "jinja <s>");
}

#[test]
fn named_templates_are_chosen_by_what_they_are_for() {
    let named = r#"{"chat_template": [{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with {{ tools|length }}"}]}"#;
    let template = load(&[("tokenizer_config.json", named)]).unwrap().unwrap();
    let mut conversation = conversation(json!([]));
    assert_eq!(template.render(conversation.clone()).unwrap(), "plain");
    conversation.tools = vec![json!({"tools": 1})];
    assert_eq!(template.render(conversation).unwrap(), "with 1");
}

#[test]
fn no_template_and_a_broken_one_are_sentences_for_clients() {
    let none = load(&[("tokenizer_config.json", "{}")]).unwrap().unwrap_err();
    assert!(none.contains("no chat template"), "{none}");
    let broken = load(&[("chat_template.jinja", "{% if %}")]).unwrap().unwrap_err();
    assert!(broken.contains("cannot be compiled"), "{broken}");
}

#[test]
fn a_template_file_that_is_something_else_stops_the_start() {
    let number = load(&[("tokenizer_config.json", r#"{"chat_template": 1}"#)]);
    let message = number.unwrap_err().to_string();
    assert!(message.contains("expected `chat_template` as a string"), "{message}");
    let missing = ChatTemplate::load(Path::new("."), Some(Path::new("no.jinja")));
    assert!(missing.unwrap_err().to_string().contains("no.jinja"));
}
