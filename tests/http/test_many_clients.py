"""A thousand clients that stream at the same time, in front of one thread."""

import asyncio
import json
import resource
import time

from harness import EVAL_TASKS, chat_body, http_request, note

CLIENTS = 1000
TOKENS = 24


async def stream(port, body, barrier, sent):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    # nobody asks before everybody is connected
    await barrier.wait()
    writer.write(http_request("POST", "/v1/chat/completions", json.dumps(body).encode(), {"Connection": "close"}))
    await writer.drain()
    first = await reader.readuntil(b"\r\n\r\n")
    sent.append(time.monotonic())
    data = await reader.read(-1)
    writer.close()
    assert first.startswith(b"HTTP/1.1 200"), first
    text, pieces, done = "", 0, False
    for line in data.split(b"\n"):
        line = line.strip()
        if line == b"data: [DONE]":
            done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                pieces += 1
    assert done
    return text


def test_a_thousand_streams(serve):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    server = serve("--max-running-requests", CLIENTS)
    prompts = [task["prompt"] for task in EVAL_TASKS[:20]]
    bodies = [chat_body(prompt, max_tokens=TOKENS, ignore_eos=True, stream=True) for prompt in prompts]

    async def run():
        expected = []
        for body in bodies:
            barrier = asyncio.Barrier(1) if hasattr(asyncio, "Barrier") else None
            expected.append(await stream(server.port, body, barrier, []))
        barrier = asyncio.Barrier(CLIENTS)
        started_at = []
        begin = time.monotonic()
        texts = await asyncio.wait_for(
            asyncio.gather(*(stream(server.port, bodies[i % len(bodies)], barrier, started_at) for i in range(CLIENTS))), 500
        )
        return expected, texts, started_at, time.monotonic() - begin

    expected, texts, started_at, seconds = asyncio.run(run())
    wrong = [i for i, text in enumerate(texts) if text != expected[i % len(expected)]]
    assert not wrong, f"{len(wrong)} of {CLIENTS} streams differ, the first: {texts[wrong[0]]!r}"
    assert server.answers()
    note(f"{CLIENTS} streaming clients at once: all texts exact, {CLIENTS * TOKENS / seconds:.0f} tokens/s")
