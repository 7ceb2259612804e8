"""Parallel modes change nothing that a client sees: the demo model's answers in thirteen configurations of ranks."""

import concurrent.futures
import re

import pytest

from harness import EVAL_TASKS, REPOSITORY, Server, chat_body, eval_answers, note

# BF16, 6 layers, 8 heads, 16 experts of width 128: divisible in more ways than the FP8 one, whose blocks stay whole.
MODEL = REPOSITORY / "models" / "demo"

CONFIGURATIONS = {
    "tp2": "--tp-size 2",
    "tp8": "--tp-size 8",
    "dp4": "--tp-size 4 --dp-size 4 --enable-dp-attention --enable-dp-lm-head",
    # where another engine's fusion of an all-reduce that does not exist once made garbage
    "tp4 dp2 ep4 dense1 fused": "--tp-size 4 --dp-size 2 --enable-dp-attention --ep-size 4 --moe-dense-tp-size 1 "
    "--enable-flashinfer-allreduce-fusion",
    "tp4 dp2 a2a": "--tp-size 4 --dp-size 2 --enable-dp-attention --moe-a2a-backend deepep",
    "tp4 a2a normal": "--tp-size 4 --moe-a2a-backend a2a --deepep-mode normal",
    "tp4 cp4": "--tp-size 4 --attn-cp-size 4 --enable-prefill-cp --moe-a2a-backend none",
    "tp4 cp2 zigzag a2a": "--tp-size 4 --attn-cp-size 2 --cp-strategy zigzag --moe-a2a-backend a2a",
    "tp8 dp2 cp2": "--tp-size 8 --dp-size 2 --enable-dp-attention --attn-cp-size 2 --ep-size 4",
    "tp4 cp4 kv sharded": "--tp-size 4 --attn-cp-size 4 --enable-prefill-cp --prefill-cp-kv-sharded",
    "pp3": "--pp-size 3",
    "pp2 tp2 dp2": "--pp-size 2 --tp-size 2 --dp-size 2 --enable-dp-attention",
    "tp4 moe_dp2 ep2": "--tp-size 4 --moe-dp-size 2 --ep-size 2",
}


def score(answers):
    return sum(answer == task["answer"] for answer, task in zip(answers, EVAL_TASKS))


@pytest.fixture(scope="module")
def one_rank(plait):
    """Float32, so that a sum in another order does not tip a token over."""
    with Server(plait, "--dtype", "float32", model=MODEL) as server:
        return eval_answers(server)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_answers_are_those_of_one_rank(plait, one_rank, name):
    with Server(plait, "--dtype", "float32", *CONFIGURATIONS[name].split(), model=MODEL) as server:
        answers = eval_answers(server)
        assert server.info()["engine_restarts"] == 0, server.log()
    same = sum(answer == expected for answer, expected in zip(answers, one_rank))
    note(f"{name}: {score(answers)} of {len(EVAL_TASKS)} right (one rank {score(one_rank)}), {same} texts equal")
    assert answers == one_rank


# What does not divide once made ranks of another engine disagree about the size of a batch.
@pytest.mark.parametrize(
    "flags, shares",
    [
        ("--tp-size 4 --dp-size 4 --enable-dp-attention", [2, 2, 1, 1]),
        ("--tp-size 4 --dp-size 4 --enable-dp-attention --moe-a2a-backend a2a", [2, 2, 1, 1]),
        ("--pp-size 2 --tp-size 2 --dp-size 2 --enable-dp-attention", [3, 2]),
    ],
)
def test_running_requests_that_do_not_divide_are_shared_out(plait, flags, shares):
    requests = 20

    def ask(server, i):
        body = chat_body(f"What is {i} + {2 * i}?", max_tokens=96, ignore_eos=True)
        return server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]

    def answers(*flags):
        with Server(plait, "--dtype", "float32", *flags, model=MODEL) as server:
            with concurrent.futures.ThreadPoolExecutor(requests) as pool:
                texts = list(pool.map(lambda i: ask(server, i), range(requests)))
            return texts, server.log()

    expected, _ = answers()
    texts, log = answers("--max-running-requests", sum(shares), *flags.split())
    assert texts == expected
    most = [0] * len(shares)
    for rank, running in re.findall(r"DP(\d+) Decode batch. #running-req: (\d+)", log):
        most[int(rank)] = max(most[int(rank)], int(running))
    assert most == shares, log
    note(f"{flags}: {requests} requests with at most {sum(shares)} running, {most} on the data-parallel ranks")
