"""curl, as people type it."""

import json
import subprocess

from harness import PATIENCE_SECONDS, events_of

CHAT = '{"messages": [{"role": "user", "content": "What is 40 + 2?"}], "temperature": 0}'


def curl(*arguments, data=None):
    result = subprocess.run(
        ["curl", "-sS", "--max-time", str(PATIENCE_SECONDS), *arguments], input=data, capture_output=True, check=True
    )
    return result.stdout.decode()


def test_health(demo):
    assert json.loads(curl(demo.url + "/health"))["status"] == "ready"
    head = curl("-I", demo.url + "/health")
    assert head.startswith("HTTP/1.1 200 OK") and "Content-Length: " in head


def test_chat(demo):
    answer = json.loads(curl(demo.url + "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", CHAT))
    assert answer["choices"][0]["message"]["content"] == "42"
    assert json.loads(curl(demo.url + "/v1/chat/completions", "--json", CHAT))["usage"]["completion_tokens"] == 2


def test_stream(demo):
    body = json.dumps({**json.loads(CHAT), "stream": True})
    text = curl("-N", demo.url + "/v1/chat/completions", "--json", body)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(text)) == "42"


def test_http_1_0(demo):
    body = json.dumps({**json.loads(CHAT), "stream": True})
    text = curl("--http1.0", "-N", demo.url + "/v1/chat/completions", "--json", body)
    assert events_of(text), "without chunks, the end of the connection is the end of the stream"


def test_large_body_with_expect(demo):
    """curl asks with Expect: 100-continue before it sends a large body."""
    ids = json.dumps({"input_ids": [5] * 3000 + [6] * 2_000_000}).encode()
    status = curl("-o", "/dev/null", "-w", "%{http_code}", demo.url + "/generate", "-H", "Content-Type: application/json",
                  "-H", "Expect: 100-continue", "--data-binary", "@-", data=ids)
    assert status == "400"
    status = curl("-o", "/dev/null", "-w", "%{http_code}", demo.url + "/generate", "-H", "Content-Type: application/json",
                  "--data-binary", "@-", data=b'"' + b"a" * (40 << 20) + b'"')
    assert status == "413"


def test_chunked_upload(demo):
    answer = curl(demo.url + "/v1/chat/completions", "-H", "Content-Type: application/json", "-H",
                  "Transfer-Encoding: chunked", "--data-binary", "@-", data=CHAT.encode())
    assert json.loads(answer)["choices"][0]["message"]["content"] == "42"


def test_one_connection_for_many_requests(demo):
    urls = [demo.url + "/health"] * 20
    connections = curl("-o", "/dev/null", "-w", "%{num_connects} ", *urls, *["-o", "/dev/null"] * 19).split()
    assert sum(map(int, connections)) == 1, "keep-alive"
