"""One engine on two and four hosts, each in a network namespace of its own, started as a user would."""

import shutil
import signal

import pytest

from cluster import Cluster, namespaces_permitted
from harness import EVAL_TASKS, Server, eval_answers, note, wait_until
from test_parallel import MODEL, one_rank, score  # noqa: F401 -- a fixture

CONFIGURATIONS = {
    "tp4 dp2 ep4 dense1 fused": (
        2,
        "--tp-size 4 --dp-size 2 --enable-dp-attention --ep-size 4 --moe-dense-tp-size 1 "
        "--enable-flashinfer-allreduce-fusion",
    ),
    "tp2 pp2": (2, "--tp-size 2 --pp-size 2"),
    "pp2 tp2 dp2": (4, "--pp-size 2 --tp-size 2 --dp-size 2 --enable-dp-attention"),
    "tp4 cp2 zigzag a2a": (4, "--tp-size 4 --attn-cp-size 2 --cp-strategy zigzag --moe-a2a-backend a2a"),
}


def ends_within(cluster, seconds):
    wait_until(cluster.gone, seconds, "every process has ended:\n" + cluster.logs())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_answers_are_those_of_one_rank(plait, one_rank, name):  # noqa: F811
    hosts, flags = CONFIGURATIONS[name]
    with Cluster(plait, hosts, "--dtype", "float32", *flags.split(), model=MODEL) as cluster:
        answers = eval_answers(cluster.first)
        assert cluster.first.info()["engine_restarts"] == 0, cluster.logs()
        cluster.first.terminate()
        ends_within(cluster, 20)
        assert cluster.statuses() == [0] * hosts, cluster.logs()
    same = sum(answer == expected for answer, expected in zip(answers, one_rank))
    where = "network namespaces" if namespaces_permitted() else "loopback addresses"
    note(f"{hosts} hosts ({where}), {name}: {score(answers)} of {len(EVAL_TASKS)} right, {same} texts equal")
    assert answers == one_rank


# What one step's choice does to the next one, while that is under way already: histories, seeds, counts of tokens.
SAMPLING = {
    "penalties": {"frequency_penalty": 0.7, "presence_penalty": 0.3, "repetition_penalty": 1.2, "temperature": 0},
    "seed": {"temperature": 0.9, "top_p": 0.9, "sampling_seed": 7},
    "at least": {"temperature": 0, "min_new_tokens": 40},
}


def test_steps_that_follow_before_tokens_are_known_choose_the_same(plait):
    def texts(server, **options):
        params = {"max_new_tokens": 60, "ignore_eos": True, **options}
        if "min_new_tokens" in params:
            params["ignore_eos"] = False
        prompts = [f"What is {i} + 2?" for i in range(6)]
        replies = server.post("/generate", {"text": prompts, "sampling_params": params})
        assert replies.status_code == 200, replies.text
        return [reply["text"] for reply in replies.json()]

    with Server(plait, "--dtype", "float32", "--disable-overlap-schedule", model=MODEL) as server:
        expected = {name: texts(server, **options) for name, options in SAMPLING.items()}
    # The second half of the heads and of the vocabulary lives on another host than the one that chooses.
    for flags in ["--tp-size 2", "--tp-size 4 --dp-size 2 --enable-dp-attention"]:
        with Cluster(plait, 2, "--dtype", "float32", *flags.split(), model=MODEL) as cluster:
            for name, options in SAMPLING.items():
                assert texts(cluster.first, **options) == expected[name], f"{flags}, {name}"
    note(f"2 hosts choose as one rank does with {', '.join(SAMPLING)}")


def test_hosts_that_differ_do_not_start(plait):
    """The one that differs is told what; the first host goes on waiting for one that does not."""
    with Cluster(
        plait, 2, "--tp-size", "2", model=MODEL, flags_of={1: ["--page-size", "32"]}, ready=False
    ) as cluster:
        other = cluster.others[0]
        assert other.process.wait(30) == 1, other.log()
        assert "--page-size" in other.log() and "32" in other.log() and "16" in other.log(), other.log()
        assert cluster.first.process.poll() is None, cluster.logs()


def test_strangers_are_not_let_in(plait, tmp_path):
    secrets = []
    for host in range(2):
        secrets.append(tmp_path / f"secret-{host}")
        secrets[-1].write_text(f"the secret of host {host}\n")
    with Cluster(
        plait, 2, "--tp-size", "2", model=MODEL, ready=False,
        flags_of={host: ["--dist-secret-file", str(secrets[host])] for host in range(2)},
    ) as cluster:  # fmt: skip
        other = cluster.others[0]
        assert other.process.wait(30) == 1, other.log()
        assert "secret" in other.log().lower(), other.log()
        for secret in secrets:
            assert secret.read_text().strip() not in cluster.logs()


def test_a_host_that_cannot_start_ends_all_and_is_named(plait, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(MODEL, broken)
    weights = broken / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1000)
    with Cluster(plait, 2, "--tp-size", "2", model={0: MODEL, 1: broken}, ready=False) as cluster:
        ends_within(cluster, 20)
        assert cluster.statuses() == [1, 1], cluster.logs()
        assert "host 1 (" in cluster.first.log() and "model.safetensors" in cluster.first.log(), cluster.logs()


def test_a_host_that_leaves_ends_the_others_with_its_name(plait):
    with Cluster(plait, 2, "--tp-size", "2", "--rejoin-timeout", "2", model=MODEL) as cluster:
        cluster.others[0].process.send_signal(signal.SIGTERM)
        ends_within(cluster, 10)
        assert cluster.statuses() == [1, 0], cluster.logs()
        assert "node 1" in cluster.first.log(), cluster.logs()
