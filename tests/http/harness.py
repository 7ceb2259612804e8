"""Runs real `plait serve` processes for the tests: own port, own log, and nothing left behind."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

import httpx

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DEMO_MODEL = REPOSITORY / "models" / "demo-fp8"
EVAL_TASKS = json.loads((REPOSITORY / "tests" / "data" / "eval_tasks.json").read_text())

# Generous: the machine may be busy with other builds.
START_SECONDS = 120
PATIENCE_SECONDS = 120


def note(text):
    """A line that the test runner shows in its summary: how much was tried."""
    print(f"\n[tried] {text}", flush=True)


def wait_until(condition, seconds=PATIENCE_SECONDS, what="condition"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not hold within {seconds} s")


def process_runs(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


class Server:
    """`plait serve` on a free port. Use as a context manager, or stop() it."""

    def __init__(self, plait, *flags, model=DEMO_MODEL, api_key=None, program_prefix=(), log=None, host="127.0.0.1"):
        """`log`: where the log goes instead of a file; then --port must be given."""
        self.host = host
        self.log_file = tempfile.NamedTemporaryFile(prefix="plait-", suffix=".log", delete=False)
        self.api_key = api_key
        flags = [str(flag) for flag in flags]
        command = [*program_prefix, str(plait), "serve", "--model-path", str(model), "--host", host, *flags]
        if "--port" not in flags:
            command += ["--port", "0"]
        if "--max-total-tokens" not in flags:
            command += ["--max-total-tokens", "65536"]
        if api_key:
            command += ["--api-key", api_key]
        self.process = subprocess.Popen(command, stdout=log or self.log_file, stderr=subprocess.STDOUT)
        self.port = int(flags[flags.index("--port") + 1]) if log else None
        # One for all threads: making a client costs more than most requests here.
        self.client = httpx.Client(
            headers=self.headers, timeout=PATIENCE_SECONDS, limits=httpx.Limits(max_connections=None), trust_env=False
        )

    # -- life

    def __enter__(self):
        return self.wait_ready()

    def __exit__(self, *_):
        self.stop()

    def log(self):
        return pathlib.Path(self.log_file.name).read_text(errors="replace")

    def wait_listening(self):
        if self.port:
            return self

        def listening():
            assert self.process.poll() is None, self.log()
            return re.search(r"listening on http://\S+:(\d+)", self.log())

        self.port = int(wait_until(listening, START_SECONDS, "the server listens").group(1))
        return self

    def wait_ready(self):
        self.wait_listening()

        def ready():
            assert self.process.poll() is None, self.log()
            return self.health() == 200

        wait_until(ready, START_SECONDS, "the server is ready")
        return self

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.client.close()
        self.log_file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log_file.name)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    # -- talk

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def get(self, path, **arguments):
        return self.client.get(self.url + path, **arguments)

    def post(self, path, body, **arguments):
        return self.client.post(self.url + path, json=body, **arguments)

    def health(self):
        try:
            return self.get("/health").status_code
        except httpx.TransportError:
            return 0

    def info(self):
        return self.get("/server_info").json()

    def engine_pid(self):
        return self.info()["engine_pid"]

    def running(self):
        """Requests the engine says it is running or queueing: what it said last, up to half a second ago."""
        state = self.info()["internal_states"][0]
        return state["num_running_reqs"] + state["num_queue_reqs"]

    def unfinished(self):
        """Requests the front end has accepted and not answered."""
        return self.info()["unfinished_requests"]

    def metric(self, name):
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(name + "{"):
                return float(line.rsplit(" ", 1)[1])
        return None

    def connect(self):
        connection = socket.create_connection((self.host, self.port), timeout=PATIENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def answers(self):
        """A plain request works: what every test of misuse asks at its end."""
        reply = self.post("/v1/chat/completions", chat_body("What is 40 + 2?"))
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == "42"
        return True


def chat_body(prompt, **fields):
    return {"messages": [{"role": "user", "content": prompt}], "temperature": 0, **fields}


def eval_answers(server):
    """What the model says to the EVAL_TASKS, eight at a time."""

    def ask(task):
        reply = server.post("/v1/chat/completions", chat_body(task["prompt"], max_tokens=200))
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["message"]["content"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, EVAL_TASKS))


def http_request(method, path, body=b"", headers=()):
    """The bytes of a request; `headers` may override anything."""
    lines = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
    lines.update(dict(headers))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def read_until_closed(connection, limit=1 << 24):
    data = b""
    with contextlib.suppress(ConnectionError):
        while len(data) < limit and (piece := connection.recv(65536)):
            data += piece
    return data


def read_response(connection):
    """One response with Content-Length: (status, headers, body)."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None, {}, data
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        body += connection.recv(65536)
    return int(lines[0].split()[1]), headers, body


def events_of(text):
    """The JSON objects of a stream of server-sent events; the stream must end with [DONE]."""
    lines = [line[len("data: ") :] for line in text.split("\n\n") if line]
    assert lines and lines[-1] == "[DONE]", text[-300:]
    return [json.loads(line) for line in lines[:-1]]
