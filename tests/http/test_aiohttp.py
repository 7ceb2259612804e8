"""aiohttp, the client of SGLang's and vLLM's load tools: one session, kept connections, bodies of unknown length."""

import asyncio
import json

import aiohttp

from harness import EVAL_TASKS, chat_body

CHAT = "/v1/chat/completions"


def run(demo, conversation):
    async def with_session():
        async with aiohttp.ClientSession(demo.url) as session:
            return await conversation(session)

    return asyncio.run(with_session())


async def stream_text(session, body):
    text, last = "", None
    async with session.post(CHAT, json={**body, "stream": True}) as reply:
        assert reply.status == 200 and reply.content_type == "text/event-stream"
        async for line in reply.content:
            line = line.decode().strip()
            if not line:
                continue
            assert line.startswith("data: "), line
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                text += json.loads(last)["choices"][0]["delta"].get("content") or ""
    assert last == "[DONE]"
    return text


def test_streams_side_by_side(demo):
    async def conversation(session):
        bodies = [chat_body(task["prompt"]) for task in EVAL_TASKS[:24]]
        return await asyncio.gather(*(stream_text(session, body) for body in bodies))

    assert run(demo, conversation) == [task["reference_output"] for task in EVAL_TASKS[:24]]


def test_a_body_of_unknown_length(demo):
    body = json.dumps(chat_body("What is 40 + 2?")).encode()

    async def pieces():
        for begin in range(0, len(body), 7):
            yield body[begin : begin + 7]

    async def conversation(session):
        async with session.post(CHAT, data=pieces(), headers={"Content-Type": "application/json"}) as reply:
            return (await reply.json())["choices"][0]["message"]["content"]

    assert run(demo, conversation) == "42"


def test_a_stream_that_is_cancelled_leaves_the_session_usable(demo):
    async def conversation(session):
        async with session.post("/generate", json={"text": "one", "stream": True, "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}}) as reply:
            await reply.content.readline()
        return await stream_text(session, chat_body("What is 40 + 2?"))

    assert run(demo, conversation) == "42"
