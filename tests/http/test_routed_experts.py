"""Routed experts over HTTP: complete and right whatever happens between the client and the router."""

import array
import base64
import concurrent.futures
import json
import os
import signal
import statistics
import struct
import time

import pytest

from cluster import Cluster
from harness import DEMO_MODEL, PATIENCE_SECONDS, REPOSITORY, Server, chat_body, events_of, note, wait_until

FLAG = "--enable-return-routed-experts"
LAYERS, TOP_K, EXPERTS, DENSE_LAYERS = 6, 4, 16, 1  # of the demo model
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 24, "ignore_eos": True, "sampling_seed": 3}


def ids_of(text, code="i"):
    """base64 -> [tokens][layers][top_k]"""
    ids = array.array(code)
    ids.frombytes(base64.b64decode(text, validate=True))
    rows = len(ids) // (LAYERS * TOP_K)
    assert rows * LAYERS * TOP_K == len(ids)
    cut = lambda values, size: [values[i : i + size] for i in range(0, len(values), size)]
    return [cut(row, TOP_K) for row in cut(ids.tolist(), LAYERS * TOP_K)]


def check_shape(rows, answer, start=0):
    meta = answer["meta_info"]
    assert len(rows) == meta["prompt_tokens"] + meta["completion_tokens"] - 1 - start
    for row in rows:
        assert row[:DENSE_LAYERS] == [[0] * TOP_K] * DENSE_LAYERS
        for experts in row[DENSE_LAYERS:]:
            assert len(set(experts)) == TOP_K and all(0 <= expert < EXPERTS for expert in experts)


def ask(server, **fields):
    body = {"return_routed_experts": True, "sampling_params": GREEDY, **fields}
    reply = server.post("/generate", body)
    assert reply.status_code == 200, reply.text
    return events_of(reply.text) if fields.get("stream") else reply.json()


def experts(server, **fields):
    answer = ask(server, **fields)
    rows = ids_of(answer["meta_info"]["routed_experts"])
    check_shape(rows, answer, min(fields.get("routed_experts_start_len", 0), answer["meta_info"]["prompt_tokens"] + 11))
    return rows


def golden_prompts(model):
    """Prompts of an independent implementation: (ids, {layer: [tokens][top_k]})."""
    data = (model / "expected.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    tensors = json.loads(data[8 : 8 + size])

    def read(name):
        begin, end = tensors[name]["data_offsets"]
        return array.array("i", data[8 + size + begin : 8 + size + end]).tolist()

    prompts = []
    while f"p{len(prompts)}.input_ids" in tensors:
        prefix = f"p{len(prompts)}"
        routed = {}
        for layer in range(DENSE_LAYERS, LAYERS):
            ids = read(f"{prefix}.routed.model.layers.{layer}.mlp.gate")
            routed[layer] = [sorted(ids[i : i + TOP_K]) for i in range(0, len(ids), TOP_K)]
        prompts.append((read(f"{prefix}.input_ids"), routed))
    return prompts


@pytest.fixture(scope="module")
def server(plait):
    with Server(plait, FLAG, "--dtype", "float32", "--page-size", "4") as server:
        yield server
        assert server.answers()


def test_choices_are_those_of_another_implementation(server):
    compared = 0
    for ids, routed in golden_prompts(DEMO_MODEL):
        for _ in range(2):  # the second time from the prefix cache
            rows = experts(server, input_ids=ids)
            for token in range(len(ids)):
                for layer, expected in routed.items():
                    assert sorted(rows[token][layer]) == expected[token], (token, layer)
                    compared += 1
    note(f"{compared} rows of routed experts over HTTP are the goldens', computed and from the prefix cache")


def test_streams_have_them_at_their_end(server):
    whole = experts(server, text="one two three")
    events = ask(server, text="one two three", stream=True)
    assert all("routed_experts" not in event["meta_info"] for event in events[:-1])
    assert ids_of(events[-1]["meta_info"]["routed_experts"]) == whole


def test_start(server):
    text = "four five six seven"
    whole = experts(server, text=text)
    tokens = len(whole) + 1
    for start in (0, 1, tokens - 13, tokens - 12, tokens - 2):
        assert experts(server, text=text, routed_experts_start_len=start) == whole[start:], start
    for start in (tokens - 1, tokens, 10**6, 2**40):
        assert ask(server, text=text, routed_experts_start_len=start)["meta_info"]["routed_experts"] == ""
    reply = server.post("/generate", {"text": text, "return_routed_experts": True, "routed_experts_start_len": -1})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "routed_experts_start_len"


def test_compact_is_the_same_in_fewer_bytes(server):
    for start in (0, 3):
        whole = experts(server, text="eight nine", routed_experts_start_len=start)
        answer = ask(server, text="eight nine", routed_experts_start_len=start, routed_experts_format="compact")
        assert answer["meta_info"]["routed_experts_dtype"] == "uint8"
        assert ids_of(answer["meta_info"]["routed_experts"], "B") == whole
    assert "routed_experts_dtype" not in ask(server, text="eight nine")["meta_info"]
    reply = server.post("/generate", {"text": "x", "return_routed_experts": True, "routed_experts_format": "int8"})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "routed_experts_format"


def test_samples_and_batches(server):
    answers = ask(server, text=["ten eleven", "twelve"], sampling_params={**SAMPLED, "n": 3})
    assert len(answers) == 6
    for answer in answers:
        rows = ids_of(answer["meta_info"]["routed_experts"])
        check_shape(rows, answer)
        ids = answer["output_ids"]
        assert len(ids) == 24 and len(rows) == answer["meta_info"]["prompt_tokens"] + 23
    # the samples of a prompt share its rows, and each goes its own way
    first = [ids_of(answer["meta_info"]["routed_experts"]) for answer in answers[:3]]
    prompt = answers[0]["meta_info"]["prompt_tokens"]
    assert first[0][:prompt] == first[1][:prompt] == first[2][:prompt]
    assert first[0] != first[1]


def test_scored_prompts_and_stop_strings(server):
    scored = ask(server, text="one two three", sampling_params={**GREEDY, "max_new_tokens": 0})
    rows = ids_of(scored["meta_info"]["routed_experts"])
    check_shape(rows, scored)
    assert rows == experts(server, text="one two three")[: len(rows)]

    free = ask(server, text="one two", sampling_params={**GREEDY, "max_new_tokens": 60})
    middle = free["text"][len(free["text"]) // 2 :][:3]
    stopped = ask(server, text="one two", sampling_params={**GREEDY, "max_new_tokens": 60, "stop": [middle]})
    assert stopped["meta_info"]["finish_reason"]["type"] == "stop"
    rows = ids_of(stopped["meta_info"]["routed_experts"])
    check_shape(rows, stopped)
    assert rows == ids_of(free["meta_info"]["routed_experts"])[: len(rows)]


def test_openai_routes(server):
    body = chat_body("What is 40 + 2?", return_routed_experts=True)
    chat = server.post("/v1/chat/completions", body).json()
    rows = ids_of(chat["sglext"]["routed_experts"])
    assert len(rows) == chat["usage"]["total_tokens"] - 1
    assert "sglext" not in chat["choices"][0]
    stream = events_of(server.post("/v1/chat/completions", {**body, "stream": True}).text)
    with_experts = [event for event in stream if "sglext" in event]
    assert len(with_experts) == 1 and with_experts[0] is stream[-1] and with_experts[0]["choices"] == []
    assert ids_of(with_experts[0]["sglext"]["routed_experts"]) == rows

    body = {"prompt": ["one", "two two"], "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    wanted = {**body, "return_routed_experts": True, "routed_experts_start_len": 1, "routed_experts_format": "compact"}
    answer = server.post("/v1/completions", wanted).json()
    assert answer["sglext"]["routed_experts_dtype"] == "uint8"
    first = ids_of(answer["sglext"]["routed_experts"], "B")
    second = ids_of(answer["choices"][1]["sglext"]["routed_experts"], "B")
    assert len(first) + len(second) == answer["usage"]["total_tokens"] - 2 * 2
    stream = events_of(server.post("/v1/completions", {**wanted, "stream": True}).text)
    found = [event["choices"][0]["index"] if event["choices"] else 0 for event in stream
             if "sglext" in event or any("sglext" in choice for choice in event["choices"])]
    assert sorted(found) == [0, 1]
    plain = server.post("/v1/completions", body).json()
    assert "sglext" not in plain and "sglext" not in plain["choices"][1]


def test_not_asked_for_is_not_sent(server):
    answer = server.post("/generate", {"text": "one", "sampling_params": GREEDY}).json()
    assert "routed_experts" not in answer["meta_info"]


def test_without_the_flag(demo):
    for path, body in (
        ("/generate", {"text": "one", "return_routed_experts": True}),
        ("/v1/completions", {"prompt": "one", "return_routed_experts": True}),
        ("/v1/chat/completions", chat_body("one", return_routed_experts=True)),
    ):
        reply = demo.post(path, body)
        error = reply.json()["error"]
        assert reply.status_code == 400 and FLAG in error["message"] and error["param"] == "return_routed_experts"
    assert demo.post("/generate", {"text": "one", "return_routed_experts": False}).status_code == 200


def test_abort_answers_with_what_was_computed(server):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        sampling = {**GREEDY, "max_new_tokens": 1900}
        future = pool.submit(ask, server, text="one two", rid="to-abort", sampling_params=sampling)
        wait_until(lambda: server.running() > 0, what="the request runs")
        assert server.post("/abort_request", {"rid": "to-abort"}).status_code == 200
        answer = future.result(PATIENCE_SECONDS)
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    rows = ids_of(answer["meta_info"]["routed_experts"])
    assert len(rows) <= answer["meta_info"]["prompt_tokens"] + answer["meta_info"]["completion_tokens"]
    again = experts(server, text="one two")
    assert rows[: len(again)] == again[: len(rows)]


CONFIGURATIONS = {
    "chunks of 3, retractions": "--chunked-prefill-size 3 --max-total-tokens 192 --page-size 4",
    "no prefix cache": "--disable-radix-cache",
    "tp2": "--tp-size 2",
    "tp4 dp2 ep4": "--tp-size 4 --dp-size 2 --enable-dp-attention --ep-size 4 --moe-dense-tp-size 1",
    "tp4 dp2 a2a": "--tp-size 4 --dp-size 2 --enable-dp-attention --moe-a2a-backend deepep",
    "tp4 cp4": "--tp-size 4 --attn-cp-size 4 --enable-prefill-cp",
    "tp4 cp2 zigzag a2a": "--tp-size 4 --attn-cp-size 2 --cp-strategy zigzag --moe-a2a-backend a2a",
    "pp2 tp2 dp2": "--pp-size 2 --tp-size 2 --dp-size 2 --enable-dp-attention",
}
# Different lengths, so that data-parallel ranks have unequal loads; some share a prefix.
TEXTS = ["one", "one two three four five six", "a", "one two three", "seven " * 15, "one two three four five six"]
MODEL = REPOSITORY / "models" / "demo"  # BF16: divisible in more ways


def all_experts(server):
    with concurrent.futures.ThreadPoolExecutor(len(TEXTS)) as pool:
        return list(pool.map(lambda text: experts(server, text=text), TEXTS))


@pytest.fixture(scope="module")
def one_rank(plait):
    with Server(plait, FLAG, "--dtype", "float32", "--disable-radix-cache", model=MODEL) as server:
        return [experts(server, text=text) for text in TEXTS]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_change_nothing(plait, one_rank, name):
    with Server(plait, FLAG, "--dtype", "float32", *CONFIGURATIONS[name].split(), model=MODEL) as server:
        for _ in range(2):
            assert [[[sorted(ids) for ids in row] for row in rows] for rows in all_experts(server)] == [
                [[sorted(ids) for ids in row] for row in rows] for rows in one_rank
            ]
        assert server.info()["engine_restarts"] == 0, server.log()


@pytest.mark.parametrize("hosts, flags", [
    (2, "--tp-size 4 --dp-size 2 --enable-dp-attention --moe-a2a-backend deepep"),
    (4, "--pp-size 2 --tp-size 2 --attn-cp-size 2 --enable-prefill-cp"),
])  # fmt: skip
def test_hosts_change_nothing(plait, one_rank, hosts, flags):
    """Every host's ranks keep their own part of a row; the first host returns all of it."""
    with Cluster(plait, hosts, FLAG, "--dtype", "float32", *flags.split(), model=MODEL) as cluster:
        for _ in range(2):
            assert [[[sorted(ids) for ids in row] for row in rows] for rows in all_experts(cluster.first)] == [
                [[sorted(ids) for ids in row] for row in rows] for rows in one_rank
            ]


def test_killed_engine_loses_no_row(plait):
    kills = 0
    with Server(plait, FLAG, "--max-engine-restarts", 1000) as server:
        bodies = [
            {"text": TEXTS[1], "sampling_params": {**SAMPLED, "max_new_tokens": 150}},
            {"text": "one two " * 200, "sampling_params": {**SAMPLED, "max_new_tokens": 30}, "stream": True},
            {"text": ["a", "b"], "sampling_params": {**SAMPLED, "n": 2}, "routed_experts_start_len": 1},
        ]

        def answer(body):
            started = time.monotonic()
            result = ask(server, **body)
            answers = [result[-1]] if body.get("stream") else result if isinstance(result, list) else [result]
            found = [(one["output_ids"], one["meta_info"]["routed_experts"]) for one in answers]
            return found, time.monotonic() - started

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            for body in bodies:
                expected, seconds = answer(body)
                for shares in ((0,), (0.2,), (0.6,), (0.9,), (0.4, 0.3)):
                    future = pool.submit(answer, body)
                    for share in shares:
                        time.sleep(share * seconds)
                        engine = server.engine_pid()
                        if engine != -1:
                            os.kill(engine, signal.SIGKILL)
                            kills += 1
                    assert future.result(PATIENCE_SECONDS)[0] == expected, shares
        assert server.answers()
    note(f"{kills} kills of the engine: every row of routed experts exact")


def test_a_long_answer_is_written_as_the_client_reads(server):
    """More bytes than a slow reader may leave unread, as one value; the server goes on serving others meanwhile."""
    # a prompt as long as the context allows, many times
    ids = [(7 * i) % 200 + 20 for i in range(2000)]
    body = {"input_ids": [ids] * 24, "return_routed_experts": True, "sampling_params": {**GREEDY, "max_new_tokens": 2}}
    with server.client.stream("POST", server.url + "/generate", json=body) as reply:
        assert reply.status_code == 200
        size = int(reply.headers["content-length"])
        pieces = reply.iter_bytes(1 << 16)
        received = [next(pieces)]
        assert server.answers()
        received += pieces
    data = b"".join(received)
    assert len(data) == size and size > 24 * 2000 * LAYERS * TOP_K * 4
    rows = [ids_of(answer["meta_info"]["routed_experts"]) for answer in json.loads(data)]
    assert len(rows) == 24 and all(one == rows[0] and len(one) == 2001 for one in rows)
    note(f"one answer with {size >> 20} MiB of routed experts")


def test_tokens_keep_coming(plait):
    """A stream's tokens while long answers with routed experts end beside it; and a long stream's own. Printed, not judged:
    the machine may be busy."""
    layers, top_k, prompt = 6, 8, 3000
    overrides = {"num_hidden_layers": layers, "num_experts_per_tok": top_k, "max_position_embeddings": 8192}
    flags = ("--load-format", "dummy", "--json-model-override-args", json.dumps(overrides), "--stream-output")
    with Server(plait, FLAG, *flags) as server:
        long_prompt = [(7 * i) % 200 + 20 for i in range(prompt)]

        def gaps(ids, tokens, **fields):
            """Milliseconds between the events of a stream, and its last event."""
            sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
            body = {"input_ids": ids, "sampling_params": sampling, "stream": True, **fields}
            times, last = [], None
            with server.client.stream("POST", server.url + "/generate", json=body) as reply:
                for line in reply.iter_lines():
                    if line.startswith("data: {"):
                        times.append(time.monotonic())
                        last = line
            return [1000 * (b - a) for a, b in zip(times, times[1:])], json.loads(last[len("data: ") :])

        def rows_of(event):
            return len(base64.b64decode(event["meta_info"]["routed_experts"])) // (4 * layers * top_k)

        gaps(long_prompt, 1)  # from now on in the prefix cache
        for wanted in (False, True):
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                beside = pool.submit(gaps, [1, 2, 3], 60)
                ends = 0
                while not beside.done():
                    _, last = gaps(long_prompt, 2, return_routed_experts=wanted)
                    ends += 1
                    assert not wanted or rows_of(last) == prompt + 1
                other, _ = beside.result()
            own, last = gaps(long_prompt, 100, return_routed_experts=wanted)
            assert not wanted or rows_of(last) == prompt + 99
            note(
                f"{'with' if wanted else 'without'} routed experts: a stream beside {ends} answers over {prompt} cached "
                f"tokens: median {statistics.median(other):.1f} ms between tokens, longest {max(other):.1f}; a stream "
                f"over {prompt} tokens: median {statistics.median(own):.1f}, longest {max(own):.1f}"
            )
