"""Requests that mean harm, or are broken: each gets a 4xx or a closed connection, and nobody else notices.

After every one the server must answer a plain request, and a stream that runs all the while must arrive whole.
"""

import gzip
import json
import socket
import threading
import time

import pytest

from harness import chat_body, events_of, http_request, note, read_response

CHAT = "/v1/chat/completions"


def chat(**fields):
    return CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}


def completion(**fields):
    return "/v1/completions", {"prompt": "hi", "max_tokens": 4, **fields}


def native(**fields):
    return "/generate", {"input_ids": [5], **fields}


def sampling(**fields):
    return "/generate", {"input_ids": [5], "sampling_params": fields}


EDGES = [-1, 0, 2**31, 2**63, -(2**63) - 1, 1e308, "NaN", True, [], {}, [1], "1"]
INTEGERS = {
    "native": ["max_new_tokens", "min_new_tokens", "n", "top_k", "sampling_seed"],
    "native_outer": ["logprob_start_len", "top_logprobs_num", "priority"],
    "openai": ["max_tokens", "max_completion_tokens", "n", "seed", "top_k", "min_tokens", "top_logprobs"],
}
NUMBERS = ["temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"]


def integer_edges():
    """Every integer and number field at -1, 0, 2^31, 2^63, 1e308 and as other types: any answer but harm."""
    for value in EDGES:
        for name in INTEGERS["native"] + NUMBERS:
            yield sampling(**{"max_new_tokens": 4, name: value})
        for name in INTEGERS["native_outer"]:
            yield native(sampling_params={"max_new_tokens": 4}, return_logprob=True, **{name: value})
        for name in INTEGERS["openai"] + NUMBERS:
            yield chat(**{name: value})
        for name in ["logprobs", "best_of", "n", "seed"]:
            yield completion(**{name: value})


# (what, path and body): each must be answered with 400 and an error object, or the status given.
MUST_FAIL = [
    ("huge n (CVE-2026-34756)", sampling(n=10**9)),
    ("huge n, OpenAI", chat(n=10**9)),
    ("huge best_of", completion(best_of=10**9)),
    ("a million logprobs", completion(logprobs=10**6)),
    ("a million top logprobs", native(return_logprob=True, top_logprobs_num=10**6)),
    ("a million stop strings", sampling(stop=["x"] * 10**6)),
    ("a stop string of a megabyte", sampling(stop="x" * 10**6)),
    ("a million stop ids", sampling(stop_token_ids=[5] * 10**6)),
    ("a million biases", sampling(logit_bias={str(i): 1 for i in range(10**6)})),
    ("a bias for a token outside the vocabulary", sampling(logit_bias={"100000000": 1})),
    ("a bias for no token", sampling(logit_bias={"-1": 1})),
    ("a bias of 1e308", sampling(logit_bias={"5": 1e308})),
    ("prompts x n beyond any memory", native(input_ids=[[5]] * 4000, sampling_params={"n": 128})),
    ("logprobs x tokens beyond any memory",
     native(return_logprob=True, top_logprobs_num=128, sampling_params={"n": 100, "max_new_tokens": 2000})),
    ("token id -1", native(input_ids=[-1])),
    ("token id 2^31", native(input_ids=[2**31])),
    ("token id 2^63", native(input_ids=[2**63])),
    ("token id 1.5", native(input_ids=[1.5])),
    ("token id as text", native(input_ids=["5"])),
    ("token ids in a mixture", native(input_ids=[[5], 5])),
    ("no ids", native(input_ids=[])),
    ("a batch of no ids", native(input_ids=[[]])),
    ("no prompts", ("/generate", {"text": []})),
    ("text and ids", native(text="a")),
    ("neither text nor ids", ("/generate", {})),
    ("embeddings", native(input_embeds=[[0.5]])),
    ("prompt embeddings (CVE-2025-62164)", ("/v1/completions", {"prompt_embeds": "AAAA"})),
    ("images (CVE-2026-22773)", native(image_data="data:image/png;base64,AAAA")),
    ("an image in a message",
     chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/"}}]}])),
    ("a template in the request", chat(chat_template="{% for i in range(10**9) %}x{% endfor %}")),
    ("template arguments of a wrong type (CVE-2025-62426)", chat(chat_template_kwargs={"thinking": "x" * 1000})),
    ("template arguments that are no object", chat(chat_template_kwargs=[1])),
    ("a broken tool pattern (CVE-2025-48944)",
     chat(tools=[{"type": "function", "function": {"name": 5, "parameters": {"pattern": "(((("}}}])),
    ("tools that are no objects", chat(tools=["x"])),
    ("a thousand and one tools", chat(tools=[{"type": "function", "function": {"name": "f"}}] * 1025)),
    ("a guided regex (CVE-2025-48943)", sampling(regex="((((")),
    ("a broken schema (CVE-2025-48942)", sampling(json_schema="{" * 1000)),
    ("a grammar", sampling(ebnf="root ::= root")),
    ("a structural tag", sampling(structural_tag="x")),
    ("a response format", chat(response_format={"type": "json_schema", "json_schema": {}})),
    ("a custom logit processor (CVE-2026-7304)", native(custom_logit_processor="\x80\x04")),
    ("an adapter path", native(lora_path="../../etc/passwd")),
    ("an unknown role", chat(messages=[{"role": "root", "content": "x"}])),
    ("a message without a role", chat(messages=[{"content": "x"}])),
    ("no messages", chat(messages=[])),
    ("messages of a wrong type", chat(messages="hi")),
    ("an unknown model", chat(model="../../../etc/passwd"), 404),
    ("a prompt longer than the context", ("/generate", {"text": "word " * 10_000})),
    ("ids longer than the context", native(input_ids=[5] * 100_000)),
    ("more output than the context", sampling(max_new_tokens=10**6)),
    ("an rid of a megabyte", native(rid="x" * 10**6)),
    ("one rid for two", native(input_ids=[[5], [6]], rid=["a", "a"])),
    ("a list where one value belongs", native(rid=["a", "b"])),
    ("stream_options without stream", chat(stream_options={"include_usage": True})),
    ("stream as text", chat(stream="true")),
    ("OpenAI's name for the length", sampling(max_tokens=3)),
    ("OpenAI's name for the seed", sampling(seed=3)),
    ("speech", chat(modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"})),
    ("a temperature that no float32 holds", sampling(temperature=1e308)),
    ("another data-parallel rank", native(routed_dp_rank=1)),
]

# Bodies that are not a request at all: 400.
BROKEN_BODIES = [
    ("nothing", b""),
    ("a word", b"hello"),
    ("null", b"null"),
    ("an array", b"[1]"),
    ("half an object", b'{"input_ids": [1'),
    ("two objects", b'{"input_ids": [1]}{"input_ids": [1]}'),
    ("depth 65", b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}"),
    ("depth 1e6 of arrays (CVE-2024-7254 class)", b'{"input_ids": ' + b"[" * 10**6 + b"]" * 10**6 + b"}"),
    ("depth 1e6 of objects", b'{"a":' * 10**6 + b"1" + b"}" * 10**6),
    ("NaN", b'{"input_ids": [1], "sampling_params": {"temperature": NaN}}'),
    ("Infinity", b'{"input_ids": [1], "sampling_params": {"temperature": Infinity}}'),
    ("1e400", b'{"input_ids": [1], "sampling_params": {"temperature": 1e400}}'),
    ("a number of a megabyte", b'{"input_ids": [' + b"1" * 10**6 + b"]}"),
    ("an exponent of a megabyte", b'{"input_ids": [1e' + b"1" * 10**6 + b"]}"),
    ("invalid UTF-8", b'{"text": "\xff\xfe"}'),
    ("an overlong encoding", b'{"text": "\xc0\xaf"}'),
    ("half a surrogate pair", b'{"text": "\\ud800"}'),
    ("a control character", b'{"text": "\x01"}'),
    ("a byte-order mark", b'\xef\xbb\xbf{"input_ids": [1]}'),
    ("UTF-16", '{"input_ids": [1]}'.encode("utf-16")),
    ("zeros", b"\0" * 1000),
]


def raw(*pieces):
    return b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)


def chunked(body, path="/generate"):
    return raw(
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", body
    )


# Bytes on the wire: (what, bytes, statuses that are right).
WIRE = [
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, {400}),
    ("an endless request line", b"GET /" + b"a" * 200_000, {431}),
    ("an endless header line (CVE-2025-53628)", b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, {431}),
    ("an endless header name", b"GET / HTTP/1.1\r\n" + b"a" * 200_000, {400, 431}),
    ("a million headers (CVE-2025-52887)", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1_000_000, {431}),
    ("a chunk of size -1 (CVE-2026-45352)", chunked("-1\r\n"), {400}),
    ("a chunk of size 2^64 - 1", chunked("ffffffffffffffff\r\n"), {413}),
    ("a chunk of size 2^64", chunked("10000000000000000\r\n"), {400}),
    ("a chunk of no size", chunked("\r\n"), {400}),
    ("a chunk of size 0x5", chunked("0x5\r\nhello\r\n0\r\n\r\n"), {400}),
    ("a chunk longer than its size", chunked("2\r\nhello\r\n0\r\n\r\n"), {400}),
    ("a chunk extension of 200 kB", chunked(b"1;" + b"a" * 200_000), {400, 413, 431}),
    ("a million one-byte chunks (CVE-2025-23310)", chunked(b"1\r\n[\r\n" * 1_000_000 + b"0\r\n\r\n"), {400}),
    ("chunks and a length",
     raw("POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
         "Content-Length: 3\r\n\r\n0\r\n\r\n"), {400}),
    ("two lengths",
     raw("POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), {400}),
    ("a negative length", raw("POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"), {400}),
    ("a length of 1e308", raw("POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 1e308\r\n\r\n"), {400}),
    ("a length of 2^63", raw("POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                             "Content-Length: 9223372036854775808\r\n\r\n"), {413}),
    ("a declared gigabyte", http_request("POST", "/generate", headers={"Content-Length": str(1 << 30)}), {413}),
    ("an unknown encoding of the body", raw("POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, identity\r\n\r\n"), {400}),
    ("HTTP/0.9", b"GET /health\r\n\r\n", {400}),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    ("no Host", b"GET /health HTTP/1.1\r\n\r\n", {400}),
    ("two Hosts", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
    ("a space in the path", b"GET /he alth HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    ("a zero in the path", b"GET /he\0alth HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    ("a zero in a header", b"GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n", {400}),
    ("a header split by a line feed", b"GET /health HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", {400}),
    ("a path upwards", http_request("GET", "/../../etc/passwd"), {404}),
    ("an encoded path upwards", http_request("GET", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), {404}),
    ("broken percent signs", http_request("GET", "/v1/models/%zz%f%"), {404}),
    ("an unknown route", http_request("GET", "/nothing"), {404}),
    ("a wrong method", http_request("DELETE", "/generate"), {405}),
    ("a wrong method of a GET route", http_request("POST", "/health"), {405}),
    ("an invented method", http_request("BREW", "/generate"), {405}),
    ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n", {404}),
    ("TRACE", http_request("TRACE", "/health"), {405}),
    ("another content type", http_request("POST", "/generate", b"{}", {"Content-Type": "text/plain"}), {415}),
    ("no content type", http_request("POST", "/generate", b"{}", {"Content-Type": None}), {415}),
    ("a compressed body", http_request("POST", "/generate", gzip.compress(b'{"text": "a"}'), {"Content-Encoding": "gzip"}), {415}),
    ("a form", http_request("POST", "/generate", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}), {415}),
]


@pytest.fixture(scope="module")
def bystander(demo):
    """Streams all the while that the module runs; every one must arrive whole and with the same text."""
    texts, problems, over = set(), [], threading.Event()

    def stream():
        body = chat_body("Count.", max_tokens=60, ignore_eos=True, stream=True)
        while not over.is_set():
            try:
                reply = demo.post(CHAT, body)
                events = events_of(reply.text)
                texts.add("".join(event["choices"][0]["delta"].get("content") or "" for event in events))
            except Exception as problem:  # whatever it is, the test reports it
                problems.append(repr(problem))

    thread = threading.Thread(target=stream, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()
    assert not problems, problems[:3]
    assert len(texts) == 1, texts


def check_error(reply, statuses=(400,)):
    assert reply.status_code in statuses, (reply.status_code, reply.text[:300])
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    for internal in ["/root", "/home", "/work", ".cpp", "0x", "boost", "std::"]:
        assert internal not in error["message"], error["message"]


def test_requests_that_must_fail(demo, bystander):
    for what, (path, body), *status in MUST_FAIL:
        reply = demo.post(path, body)
        check_error(reply, status or (400,)), what
        assert demo.answers(), what
    note(f"{len(MUST_FAIL)} hostile requests, each refused with an error object")


def test_fields_at_their_edges(demo, bystander):
    statuses = {}
    count = 0
    for path, body in integer_edges():
        reply = demo.post(path, body)
        assert reply.status_code in (200, 400), (body, reply.text)
        if reply.status_code == 400:
            check_error(reply)
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        count += 1
    assert demo.answers()
    note(f"{count} fields at their edges: {statuses}")


def test_broken_bodies(demo, bystander):
    for path in ["/generate", "/v1/completions", CHAT, "/abort_request"]:
        for what, body in BROKEN_BODIES:
            with demo.connect() as connection:
                connection.sendall(http_request("POST", path, body))
                status, _, answer = read_response(connection)
            assert status == 400, (path, what, status)
            assert json.loads(answer)["error"]["message"], what
    assert demo.answers()
    note(f"{4 * len(BROKEN_BODIES)} broken bodies")


def test_hostile_bytes(demo, bystander):
    for what, data, statuses in WIRE:
        with demo.connect() as connection:
            sender = threading.Thread(target=send_quietly, args=(connection, data), daemon=True)
            sender.start()
            connection.settimeout(60)
            status, headers, body = read_response(connection)
            sender.join(5)
        assert status in statuses, (what, status)
        if json.loads(body or "{}").get("error", {}).get("code") == "bad_http":
            assert headers["connection"] == "close", f"{what}: what follows cannot be trusted"
        assert demo.answers(), what
    note(f"{len(WIRE)} hostile byte streams")


def send_quietly(connection, data):
    try:
        connection.sendall(data)
    except OSError:
        pass  # the server has every right to close the connection


def test_a_gigabyte_in_chunks_is_cut_off(demo, bystander):
    """CVE-2025-46728: chunks count against the limit of the body."""
    with demo.connect() as connection:
        connection.sendall(chunked(b""))
        piece = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
        sent = 0
        try:
            for _ in range(1024):
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        assert sent < 200 << 20, "the server read a body far beyond its limit"
    assert demo.answers()


def test_a_hundred_megabytes_of_header_are_cut_off(demo, bystander):
    """CVE-2025-48956."""
    with demo.connect() as connection:
        sent = 0
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(100):
                connection.sendall(b"a" * (1 << 20))
                sent += 1 << 20
        except OSError:
            pass
        assert sent < 100 << 20
    assert demo.answers()


def test_error_texts_name_no_internals(demo):
    for path in ["/nothing", "/v1/models/x"]:
        check_error(demo.get(path), (404,))


def test_memory_does_not_grow(demo, bystander):
    """Large refused requests leave nothing behind."""

    def resident_megabytes():
        with open(f"/proc/{demo.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096 >> 20

    body = {"input_ids": [[5] * 1000] * 2000, "sampling_params": {"n": 128}}
    for _ in range(3):
        check_error(demo.post("/generate", body))
    before = resident_megabytes()
    for _ in range(10):
        check_error(demo.post("/generate", body))
    assert resident_megabytes() < before + 100


def test_half_open_connections_do_not_block(demo):
    idle = [socket.create_connection(("127.0.0.1", demo.port)) for _ in range(200)]
    for connection in idle[:100]:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: a\r\n")
    started = time.monotonic()
    assert demo.answers()
    assert time.monotonic() - started < 30
    for connection in idle:
        connection.close()
    assert demo.answers()
