"""Connections: keep-alive, pipelining, slow and leaving clients."""

import contextlib
import json
import socket
import threading
import time

import httpx

from harness import chat_body, http_request, note, read_response, read_until_closed, wait_until

CHAT = "/v1/chat/completions"


def chat_bytes(**fields):
    return json.dumps(chat_body("What is 40 + 2?", **fields)).encode()


def content(body):
    return json.loads(body)["choices"][0]["message"]["content"]


def test_keep_alive_and_pipelining(demo):
    with demo.connect() as connection:
        # all at once; the answers come in order
        request = http_request("POST", CHAT, chat_bytes())
        connection.sendall(request * 3 + http_request("GET", "/health", headers={"Connection": "close"}))
        answer = read_until_closed(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.count(b'"content":"42"') == 3
    assert answer.rindex(b'"status":"ready"') > answer.rindex(b'"content":"42"')


def test_requests_in_any_cut(demo):
    request = http_request("POST", CHAT, chat_bytes())
    with demo.connect() as connection:
        for byte in request:
            connection.sendall(bytes([byte]))
        assert content(read_response(connection)[2]) == "42"
        connection.sendall(request[:50])
        time.sleep(0.1)
        connection.sendall(request[50:])
        assert content(read_response(connection)[2]) == "42"


def test_errors_keep_the_connection_where_they_can(demo):
    with demo.connect() as connection:
        for path, expected in [("/nothing", 404), ("/health", 200), ("/generate", 405), ("/health", 200)]:
            connection.sendall(http_request("GET", path, headers={"Content-Length": None, "Content-Type": None}))
            assert read_response(connection)[0] == expected
        connection.sendall(http_request("POST", "/generate", b"{}"))
        assert read_response(connection)[0] == 400
        connection.sendall(http_request("POST", CHAT, chat_bytes()))
        assert content(read_response(connection)[2]) == "42"


def test_expect_continue(demo):
    body = chat_bytes()
    with demo.connect() as connection:
        connection.sendall(http_request("POST", CHAT, headers={"Content-Length": str(len(body)), "Expect": "100-continue"}))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert content(read_response(connection)[2]) == "42"
    with demo.connect() as connection:
        connection.sendall(http_request("POST", CHAT, headers={"Content-Length": str(1 << 30), "Expect": "100-continue"}))
        assert read_response(connection)[0] == 413, "refused before the body is sent"


def test_half_closed_clients_get_their_answer(demo):
    """Who has nothing more to say may still be listening (nc -N): only who is gone is dropped."""
    streamed = chat_bytes(stream=True, max_tokens=200, ignore_eos=True)
    for request, answers, end in [
        (http_request("POST", CHAT, chat_bytes()), 1, b"}"),
        (http_request("POST", CHAT, streamed), 1, b"0\r\n\r\n"),
        (http_request("POST", CHAT, streamed) + http_request("POST", CHAT, chat_bytes()), 2, b"}"),
        (http_request("GET", "/health"), 1, b"}"),
    ]:
        with demo.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = read_until_closed(connection)
        assert answer.count(b"HTTP/1.1 200 OK\r\n") == answers and answer.endswith(end), answer


def test_forms_of_requests_that_are_rare_but_right(demo):
    health = http_request("GET", "/health", headers={"Connection": "close"})
    body = chat_bytes()
    half = len(body) // 2
    pieces = f"{half:X};name=value\r\n".encode() + body[:half] + f"\r\n{len(body) - half:x}\r\n".encode() + body[half:]
    chunks = {"Content-Length": None, "Transfer-Encoding": "Chunked", "Connection": "close"}
    for what, request in [
        ("empty lines first", b"\r\n\r\n" + health),
        ("a target with scheme and host", health.replace(b"/health", b"http://localhost:1/health?verbose=1")),
        ("an offer of HTTP/2", http_request("GET", "/health", headers={
            "Connection": "close, Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"})),
        ("HTTP/1.0 without a Host", b"GET /health HTTP/1.0\r\n\r\n"),
        ("HTTP/1.0 and keep-alive", b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + health),
        ("a header of 60 kB", http_request("GET", "/health", headers={"X": "a" * 60_000, "Connection": "close"})),
        ("chunks with an extension and a trailer", http_request("POST", CHAT, headers=chunks) + pieces + b"\r\n0\r\nX: y\r\n\r\n"),
        ("the body right behind Expect", http_request("POST", CHAT, body, {"Expect": "100-continue", "Connection": "close"})),
    ]:
        with demo.connect() as connection:
            connection.sendall(request)
            answer = read_until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), (what, answer)


def test_head_and_options(demo):
    head = httpx.head(demo.url + "/health")
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 0
    options = httpx.options(demo.url + "/generate")
    assert options.status_code == 204 and options.headers["allow"] == "POST, PUT, OPTIONS"
    wrong = httpx.get(demo.url + "/generate")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST, PUT, OPTIONS"


def test_slow_bodies_and_headers_time_out(serve):
    server = serve("--request-read-timeout", 1)
    for begin in [b"POST /generate HT", http_request("POST", "/generate", headers={"Content-Length": "100"}) + b'{"te']:
        with server.connect() as connection:
            connection.sendall(begin)
            started = time.monotonic()
            # a byte now and then does not help
            stop = threading.Event()
            dripping = threading.Thread(target=drip, args=(connection, stop), daemon=True)
            dripping.start()
            status, headers, _ = read_response(connection)
            stop.set()
            assert status == 408 and headers["connection"] == "close"
            assert 0.5 < time.monotonic() - started < 15
    assert server.answers()


def drip(connection, stop):
    with contextlib.suppress(OSError):
        while not stop.wait(0.2):
            connection.sendall(b"a")


def long_request(stream):
    body = {"text": "one", "stream": stream, "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}}
    return http_request("POST", "/generate", json.dumps(body).encode())


def test_leaving_clients_are_noticed(serve):
    """With and without streaming: the engine stops working for them."""
    server = serve()
    for stream, half_close in [(True, False), (False, False), (True, True), (False, True)]:
        connections = [server.connect() for _ in range(10)]
        for connection in connections:
            connection.sendall(long_request(stream))
        wait_until(lambda: server.running() == 10, what="all requests under way")
        for connection in connections:
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        if half_close:
            time.sleep(0.1)
            assert server.running() == 10, "they may be waiting for their answers"
        for connection in connections:
            connection.close()
        left_at = time.monotonic()
        wait_until(lambda: server.unfinished() == 0, 10, "the front end noticed")
        wait_until(lambda: server.running() == 0, 10, "the engine noticed")
        assert time.monotonic() - left_at < 10
    tokens = server.metric("sglang:generation_tokens_total")
    assert tokens < 40 * 1900, "they were not generated to the end"
    # when the step that was under way is done
    wait_until(lambda: server.metric("sglang:num_used_tokens") == 0, 10, "their memory is free again")
    assert server.answers()


def test_a_client_that_does_not_read_is_bounded(serve):
    server = serve("--max-running-requests", 64)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    # everything so far, with logprobs, again and again: megabytes that nobody reads
    body = {"text": "one", "stream": True, "return_logprob": True, "top_logprobs_num": 20,
            "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}}
    connection.sendall(http_request("POST", "/generate", json.dumps(body).encode()))
    wait_until(lambda: server.running() == 1, what="the stream under way")
    wait_until(lambda: server.unfinished() == 0, what="the stream was cut off")
    assert server.metric("sglang:generation_tokens_total") < 1900, "before its end"
    connection.close()
    assert server.answers()


def test_a_slow_reader_gets_everything(demo):
    body = {"text": "one", "stream": True, "sampling_params": {"max_new_tokens": 100, "ignore_eos": True, "temperature": 0}}
    with demo.connect() as connection:
        connection.sendall(http_request("POST", "/generate", json.dumps(body).encode(), {"Connection": "close"}))
        data = b""
        while piece := connection.recv(600):
            data += piece
            time.sleep(0.002)
    assert b"[DONE]" in data and b'"completion_tokens":100' in data


def test_idle_server_uses_no_cpu(serve):
    server = serve()
    server.answers()
    engine = server.engine_pid()
    wait_until(lambda: server.metric("sglang:gen_throughput") == 0, what="the rates fall to zero")
    time.sleep(1)

    def cpu_ticks():
        ticks = 0
        for pid in (server.process.pid, engine):
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks

    before = cpu_ticks()
    time.sleep(10)
    used = cpu_ticks() - before
    note(f"10 s of idling: {used * 10} ms of CPU time in both processes")
    assert used <= 2
