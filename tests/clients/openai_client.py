"""Drives a gateway with the openai package, unchanged: openai_client.py http://HOST:PORT [API_KEY]

Exits 0 when every answer is what the API promises; the first that is not ends it with a traceback.
The model need not be a good one: only shapes, bounds and reproducibility are looked at.
"""

import sys
import typing

import openai
import pydantic


def models(client):
    served = [model.id for model in client.models.list()]
    assert served, "no model is served"
    assert client.models.retrieve(served[0]).id == served[0]
    return served[0]


def completions(client, model):
    ask = dict(model=model, prompt="And God said", max_tokens=8, seed=1, extra_body={"ignore_eos": True})
    answer = client.completions.create(**ask)
    assert answer.object == "text_completion" and answer.model == model, answer
    assert answer.choices[0].finish_reason == "length", answer
    assert answer.usage.completion_tokens == 8, answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8, answer.usage
    text = answer.choices[0].text
    assert client.completions.create(**ask).choices[0].text == text, "the same seed, another text"

    echoed = client.completions.create(echo=True, **ask)
    assert echoed.choices[0].text == "And God said" + text, echoed

    several = client.completions.create(**{**ask, "prompt": ["And God said", "In the"], "n": 2})
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3], several
    assert several.choices[0].text == text, "a neighbour changed the text"

    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == text, chunks
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8, chunks[-1]

    with_logprobs = client.completions.create(logprobs=3, **ask).choices[0]
    assert with_logprobs.text == text
    columns = with_logprobs.logprobs
    assert len(columns.tokens) == len(columns.token_logprobs) == len(columns.top_logprobs) == 8, columns
    assert all(logprob <= 0 for logprob in columns.token_logprobs), columns
    assert all(token in top for token, top in zip(columns.tokens, columns.top_logprobs)), columns

    if len(text) >= 4:
        stop = text[2:4]
        stopped = client.completions.create(stop=[stop], **ask).choices[0]
        assert stopped.finish_reason == "stop" and stopped.text == text[: text.index(stop)], stopped


def greedy(client, model):
    ask = dict(model=model, prompt="And God said", max_tokens=8, temperature=0)
    texts = {client.completions.create(**ask).choices[0].text for _ in range(3)}
    assert len(texts) == 1, texts


def going_on(client, model):
    """What was computed for a prompt serves the next one that begins so, and changes nothing."""
    ask = dict(model=model, prompt="And it came to pass in those days. " * 12, max_tokens=8, temperature=0)
    first, again = (client.completions.create(**ask) for _ in range(2))
    assert again.choices[0].text == first.choices[0].text, (first, again)
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < again.usage.prompt_tokens, again.usage


def chat(client, model):
    ask = dict(
        model=model,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who art thou?"}],
        max_completion_tokens=8,
        seed=1,
    )
    try:
        answer = client.chat.completions.create(**ask)
    except openai.BadRequestError as error:
        # A base model has no template; then this sentence is the right answer.
        assert "chat template" in error.message, error
        return False
    message = answer.choices[0].message
    assert answer.object == "chat.completion" and message.role == "assistant", answer
    assert answer.usage.completion_tokens <= 8, answer.usage

    chunks = list(client.chat.completions.create(stream=True, **ask))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == message.content, (text, message.content)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length"), chunks[-1]

    with_logprobs = client.chat.completions.create(logprobs=True, top_logprobs=2, **ask)
    rows = with_logprobs.choices[0].logprobs.content
    assert len(rows) == with_logprobs.usage.completion_tokens, rows
    for row in rows:
        assert len(row.top_logprobs) == 2 and row.top_logprobs[0].logprob >= row.top_logprobs[1].logprob, row
    return True


class Sign(pydantic.BaseModel):
    name: typing.Literal["sun", "moon"]
    hour: int = pydantic.Field(ge=0, le=23)
    risen: bool


class Place(pydantic.BaseModel):
    east: bool
    degrees: int = pydantic.Field(ge=0, le=359)


def calls(client, ask):
    """Calls that are forced: of any tool, and of one by its name, whole and streamed."""
    tools = [openai.pydantic_function_tool(Sign), openai.pydantic_function_tool(Place)]
    any_of = client.chat.completions.parse(tools=tools, tool_choice="required", parallel_tool_calls=False, **ask).choices[0]
    (call,) = any_of.message.tool_calls
    assert isinstance(call.function.parsed_arguments, (Sign, Place)) and any_of.finish_reason == "tool_calls", any_of
    named = {"type": "function", "function": {"name": "Place"}}
    with client.chat.completions.stream(tools=tools, tool_choice=named, **ask) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.name == "Place" and isinstance(call.function.parsed_arguments, Place), call
    # The model's call and its result go back to it.
    ask["messages"] = ask["messages"] + [any_of.message, {"role": "tool", "tool_call_id": call.id, "content": "night"}]
    assert client.chat.completions.create(**ask).choices[0].message.role == "assistant"


def constrained(client, model, chatted):
    """Answers that are held to a form: by OpenAI's own way, and by vLLM's beside it."""
    one = dict(structured_outputs={"choice": ["yes", "no"]})
    said = client.completions.create(model=model, prompt="Is it", max_tokens=16, extra_body=one).choices[0]
    assert said.text in ("yes", "no") and said.finish_reason == "stop", said
    if chatted:
        ask = dict(model=model, messages=[{"role": "user", "content": "What is in the sky?"}], max_tokens=100)
        sign = client.chat.completions.parse(response_format=Sign, **ask).choices[0].message.parsed
        assert isinstance(sign, Sign), sign
        with client.chat.completions.stream(response_format=Sign, **ask) as stream:
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Sign)
        calls(client, ask)
    wrong = dict(structured_outputs={"regex": "("})
    refused(
        openai.BadRequestError,
        lambda: client.completions.create(model=model, prompt="x", extra_body=wrong),
        "regular expression",
    )


def refused(kind, call, *words):
    try:
        call()
    except kind as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"expected {kind.__name__} about {words}")


def errors(client, model):
    create = client.completions.create
    refused(openai.NotFoundError, lambda: create(model="nothing", prompt="x"), "nothing", model)
    refused(openai.NotFoundError, lambda: client.models.retrieve("nothing"), "nothing", model)
    refused(openai.BadRequestError, lambda: create(model=model, prompt="x", temperature=-1), "temperature")
    refused(openai.BadRequestError, lambda: create(model=model, prompt="x", max_tokens=0), "max_tokens")
    long = "And God said. " * 100_000
    refused(openai.BadRequestError, lambda: create(model=model, prompt=long), "maximum context length")


def main():
    url, key = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "none"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    model = models(client)
    completions(client, model)
    greedy(client, model)
    going_on(client, model)
    chatted = chat(client, model)
    constrained(client, model, chatted)
    errors(client, model)
    print(f"openai {openai.__version__}: models, completions, {'chat, ' if chatted else ''}constraints, errors are right")


if __name__ == "__main__":
    main()
