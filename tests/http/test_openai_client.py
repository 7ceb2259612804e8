"""The openai package, unmodified, sync and async."""

import asyncio

import openai
import pytest

from harness import EVAL_TASKS


@pytest.fixture(scope="module")
def client(demo):
    return openai.OpenAI(base_url=demo.url + "/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def ask(prompt):
    return [{"role": "user", "content": prompt}]


def test_models(client, model):
    card = client.models.retrieve(model)
    assert card.id == model and card.object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-none")
    assert caught.value.code == "model_not_found"


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=ask("What is 40 + 2?"), temperature=0)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "42", "stop")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens == 2, "42 and the end of the sequence"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")


def test_chat_stream(client, model):
    chunks = list(
        client.chat.completions.create(
            model=model, messages=ask(EVAL_TASKS[0]["prompt"]), temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model=model, messages=ask(EVAL_TASKS[0]["prompt"]), temperature=0)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_grows_with_continuous_usage_stats(client, model):
    chunks = list(
        client.chat.completions.create(
            model=model, messages=ask("Count."), max_tokens=20, stream=True,
            extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "ignore_eos": True},
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 20


def test_chat_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=ask("What is 40 + 2?"), temperature=0, logprobs=True, top_logprobs=5
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 5
        assert token.logprob == max(top.logprob for top in token.top_logprobs), "greedy takes the most likely token"
        assert bytes(token.bytes).decode(errors="replace") == token.token
    stream = client.chat.completions.create(
        model=model, messages=ask("What is 40 + 2?"), temperature=0, logprobs=True, top_logprobs=5, stream=True
    )
    streamed = [
        token.logprob
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert streamed == pytest.approx([token.logprob for token in tokens], abs=1e-2)


def test_n_and_seed(client, model):
    def sample(seed):
        answer = client.chat.completions.create(
            model=model, messages=ask("Hello"), temperature=1.5, n=3, seed=seed, max_tokens=20
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = sample(1)
    assert sample(1) == first, "the same seed gives the same texts"
    assert len(set(first)) > 1, "samples differ from each other"
    assert sample(2) != first


def test_n_streams_are_told_apart_by_index(client, model):
    texts = {}
    for chunk in client.chat.completions.create(
        model=model, messages=ask("Hello"), temperature=1.5, n=3, seed=1, max_tokens=20, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    whole = client.chat.completions.create(
        model=model, messages=ask("Hello"), temperature=1.5, n=3, seed=1, max_tokens=20
    )
    assert texts == {choice.index: choice.message.content for choice in whole.choices}


def test_stop(client, model):
    prompt = "List in reverse order: forest, jungle, candle, jacket, kettle, window"
    whole = client.chat.completions.create(model=model, messages=ask(prompt), temperature=0).choices[0].message.content
    stop = whole[10:14]
    answer = client.chat.completions.create(model=model, messages=ask(prompt), temperature=0, stop=[stop, "no such"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model=model, messages=ask(prompt), temperature=0, stop=stop, stream=True
        )
    )
    assert streamed == whole[: whole.index(stop)], "nothing of a stop string is ever shown"


def test_max_tokens(client, model):
    answer = client.chat.completions.create(
        model=model, messages=ask("Hello"), max_completion_tokens=3, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


def test_tools_are_rendered_or_refused_but_never_dropped(client, model):
    tools = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]
    plain = client.chat.completions.create(model=model, messages=ask("Hi"), max_tokens=1)
    try:
        shown = client.chat.completions.create(model=model, messages=ask("Hi"), max_tokens=1, tools=tools)
        assert shown.usage.prompt_tokens > plain.usage.prompt_tokens
    except openai.BadRequestError as error:
        assert "tool" in str(error)
    hidden = client.chat.completions.create(
        model=model, messages=ask("Hi"), max_tokens=1, tools=tools, tool_choice="none"
    )
    assert hidden.usage.prompt_tokens == plain.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(model=model, messages=ask("Hi"), tools=tools, tool_choice="required")


def test_completions(client, model):
    answer = client.completions.create(model=model, prompt=["The", "A"], max_tokens=5, n=2, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.usage.completion_tokens <= 20


def test_completions_echo_and_logprobs(client, model):
    answer = client.completions.create(
        model=model, prompt="What is 40 + 2?", max_tokens=0, echo=True, logprobs=2, temperature=0
    )
    choice = answer.choices[0]
    assert choice.text == "What is 40 + 2?"
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == answer.usage.prompt_tokens == len(logprobs.text_offset)
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs[1:])
    assert answer.usage.completion_tokens == 0


def test_completions_stream(client, model):
    chunks = list(client.completions.create(model=model, prompt="One two", max_tokens=12, stream=True, temperature=0))
    whole = client.completions.create(model=model, prompt="One two", max_tokens=12, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_errors_are_the_clients_own(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ask("Hi"), temperature=7)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-none", messages=ask("Hi"))
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=ask("word " * 5000))
    assert caught.value.code == "context_length_exceeded"


def test_a_stream_is_aborted_by_its_id(client, demo, model):
    reasons = set()
    for chunk in client.chat.completions.create(
        model=model, messages=ask("Hi"), n=2, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
    ):
        if not reasons:
            demo.post("/abort_request", {"rid": chunk.id})
        reasons |= {choice.finish_reason for choice in chunk.choices}
    assert reasons == {None, "abort"}


def test_closing_a_stream_early_is_fine(client, demo, model):
    with client.chat.completions.create(
        model=model, messages=ask("Hi"), stream=True, max_tokens=1000, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    assert demo.answers()


def test_async_client(demo, model):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=demo.url + "/v1", api_key="unused", max_retries=0) as client:

            async def whole(task):
                answer = await client.chat.completions.create(
                    model=model, messages=ask(task["prompt"]), temperature=0
                )
                return answer.choices[0].message.content

            async def streamed(task):
                text = ""
                async for chunk in await client.chat.completions.create(
                    model=model, messages=ask(task["prompt"]), temperature=0, stream=True
                ):
                    text += chunk.choices[0].delta.content or ""
                return text

            tasks = EVAL_TASKS[:16]
            return await asyncio.gather(*map(whole, tasks)), await asyncio.gather(*map(streamed, tasks))

    whole, streamed = asyncio.run(ask_all())
    assert whole == streamed
