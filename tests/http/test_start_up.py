"""Start-up of real clusters that rehearse building CUDA kernels (PLAIT_REHEARSE_KERNELS): hosts of different speed,
stages with different kernels, lost hosts, broken kernels, warm caches and restarts; and the kernels of a model itself.

The kernels are compiled by NVRTC and never run. Compiles are made longer by sleeping, so that cores don't matter.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from cluster import Cluster
from harness import DEMO_MODEL, Server, note, wait_until
from test_parallel import MODEL

LIMIT_SECONDS = 1  # --collective-timeout
EXPERTS = (
    "--dtype float32 --tp-size 2 --dp-size 2 --enable-dp-attention --moe-a2a-backend a2a --load-format dummy "
    f"--collective-timeout {LIMIT_SECONDS} --rejoin-timeout 5"
).split()


@pytest.fixture(scope="session", autouse=True)
def nvrtc(plait, tmp_path_factory):
    """Skips this file where there is no libnvrtc, but not in scripts/test."""
    server = Server(plait, model=MODEL, program_prefix=prefix(tmp_path_factory.mktemp("nvrtc"), [kernel(0)]))
    try:
        server.wait_ready()
    except AssertionError:
        if "libnvrtc" not in server.log() or os.environ.get("PLAIT_REQUIRE_NVRTC"):
            raise
        pytest.skip("no libnvrtc: install CUDA or set PLAIT_NVRTC")
    finally:
        server.stop()


def kernel(number, seconds=0.0, ranks=(), text=None):
    body = text or f"extern \"C\" __global__ void k(float* y) {{ y[threadIdx.x] = kScale * {number}; }}"
    fields = {"name": f"kernel_{number}", "entry": "k", "text": body, "seconds": seconds, "constants": {"kScale": 2}}
    return {**fields, **({"ranks": list(ranks)} if ranks else {})}


def environment(folder, kernels, delay=1, cache="cache"):
    file = folder / "kernels.json"
    file.write_text(json.dumps({"kernels": kernels}))
    return {
        "PLAIT_REHEARSE_KERNELS": file,
        "PLAIT_REHEARSE_DELAY": delay,
        "XDG_CACHE_HOME": folder / str(cache),
    }


def prefix(*arguments, **options):
    return ("env", *(f"{name}={value}" for name, value in environment(*arguments, **options).items()))


def phases(server, name):
    """[hosts] the records of a phase."""
    return [record for record in server.info()["start_up"] if record["phase"] == name]


def kernel_seconds(server):
    return max(record["seconds"] for record in phases(server, "kernels"))


def built(log):
    """What engines said about their kernels: (found, built, received) of each start."""
    pattern = r"Kernels are ready.*?; (\d+) from .*?, (\d+) built here .*?, (\d+) received"
    return [tuple(map(int, found)) for found in re.findall(pattern, log)]


def what_engine_starts_with(cluster):
    """What the first host's engine answers to SIGUSR1; its front end has to say what it says to clients."""
    before = len(cluster.log(0))
    os.kill(cluster.servers()[0], signal.SIGUSR1)
    report = "SIGUSR1: the engine starts\n", "SIGUSR1: what the ranks here are doing\n"

    def answer():
        log = cluster.log(0)[before:]
        return all(text in log for text in report) and log

    log = wait_until(answer, 2, "the engine says what it does")
    of_front_end = rf"engine process \({cluster.engine(0)}\): kernels: kernel_\d+ \(\d+ of 12\), host \d, for "
    assert re.search(of_front_end, log), log
    wait_until(lambda: re.search(r"\n  rank 0 .* has no step to do", cluster.log(0)[before:]), 1, "its ranks are idle")
    return log[log.index(report[0]) : log.index(report[1])]


def test_a_compiler_that_is_slower_than_any_wait_may_be(plait, tmp_path):
    """One host takes ten times the limit of a wait for each kernel. Nobody times out; the other host helps."""
    kernels = [kernel(i, seconds=1) for i in range(12)]
    hosts = {0: environment(tmp_path, kernels, delay=0.5, cache="0"), 1: environment(tmp_path, kernels, 10, cache="1")}
    with Cluster(plait, 2, *EXPERTS, model=MODEL, environment_of=hosts, ready=False) as cluster:
        cluster.first.wait_listening()

        def both_build():
            reply = cluster.first.get("/health")
            body = reply.json()
            at = {record["host"]: record for record in body.get("start_up", ()) if record["phase"] == "kernels"}
            return reply.status_code == 503 and len(at) == 2 and all(at[host]["item"] for host in at) and (body, at)

        body, at = wait_until(both_build, 20, "both hosts say which kernel they build\n" + cluster.logs())
        assert body["phase"].startswith("kernels: kernel_") and "host" in body["phase"], body
        assert at[1]["ranks"] == [1, 1] and at[1]["total"] == 12 and not at[1]["ended"], at
        said = what_engine_starts_with(cluster)
        for host in range(2):
            builds = rf"host {host} \(rank {host}\) has been in kernels for \S+ m?s: kernel_\d+ \(\d+ of 12\)"
            assert re.search(builds, said), said
        cluster.first.wait_ready()
        seconds = kernel_seconds(cluster.first)
        assert seconds > LIMIT_SECONDS, "the build was no longer than a wait may be"
        assert seconds < 10, cluster.logs()
        info = cluster.first.info()
        assert info["engine_restarts"] == 0 and all(record["ended"] for record in info["start_up"]), info["start_up"]
        reply = cluster.first.post("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 4}})
        assert reply.status_code == 200, reply.text
        assert cluster.first.metric("plait:compiles_after_ready_total") == 0
        helped = re.findall(r"\((\d+) in the place of", cluster.first.log())
        note(
            f"a host whose kernels take 10 s each, waits limited to {LIMIT_SECONDS} s: kernels of both hosts ready "
            f"after {seconds:.1f} s, {helped[0]} of 12 built in its place"
        )


def test_unequal_stages_share_the_work(plait, tmp_path):
    costs = [[3.0, 2.2, 1.5], [0.75] * 8, [1.1] * 10, [1.8, 1.6, 1.4, 0.3, 0.3, 0.3]]
    kernels = [
        kernel(100 * rank + i, cost, [rank]) for rank, of_rank in enumerate(costs) for i, cost in enumerate(of_rank)
    ]
    work = sum(map(sum, costs))
    cores = 2
    hosts = {host: environment(tmp_path, kernels, cache=host) for host in range(4)}
    flags = ["--dtype", "float32", "--pp-size", "4", "--threads", cores]
    with Cluster(plait, 4, *flags, model=MODEL, environment_of=hosts) as cluster:
        seconds = kernel_seconds(cluster.first)
        assert len(phases(cluster.first, "kernels")) == 4
        counts = [built(cluster.first.log())[0], *(built(other.log())[0] for other in cluster.others)]
    ideal = work / (4 * cores)
    note(
        f"pp4 on 4 hosts of {cores} cores, {len(kernels)} kernels: {seconds:.2f} s, work / cores {ideal:.2f} s, ratio "
        f"{seconds / ideal:.2f}; one stage after the other {work / cores:.1f} s; built by each host "
        f"{[count[1] for count in counts]}"
    )
    assert seconds < 2.5 * ideal, counts  # one stage after the other would be 4


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_that_dies_while_it_builds_ends_all_with_its_name(plait, tmp_path, host):
    kernels = [kernel(i, seconds=2) for i in range(40)]
    hosts = {host: environment(tmp_path, kernels) for host in range(2)}
    with Cluster(plait, 2, *EXPERTS, model=MODEL, environment_of=hosts, ready=False) as cluster:
        cluster.first.wait_listening()
        wait_until(lambda: sum(bool(at["item"]) for at in phases(cluster.first, "kernels")) == 2, 20, "both hosts build")
        os.kill(cluster.engine(host), signal.SIGKILL)
        begin = time.monotonic()
        wait_until(cluster.gone, 10, "every process has ended\n" + cluster.logs())
        seconds = time.monotonic() - begin
        assert cluster.statuses() == [1, 1]
        log = cluster.others[0].log() if host == 0 else cluster.first.log()
        assert re.search(rf"(server|this host) ends: .*start-up, kernels: .*node {host} .*is lost", log), cluster.logs()
        # The first host knows what the others were at.
        assert host == 0 or "it was at kernels: kernel_" in log, log
    note(f"host {host} killed while it builds: all ended {seconds:.1f} s later, with its name and the phase")


def test_weights_that_cannot_be_read_end_the_build_of_kernels(plait, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(MODEL, broken)
    weights = broken / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1000)
    kernels = [kernel(i, seconds=1) for i in range(100)]
    hosts = {host: environment(tmp_path, kernels) for host in range(2)}
    flags = ["--dtype", "float32", "--tp-size", "2"]
    with Cluster(plait, 2, *flags, model={0: MODEL, 1: broken}, environment_of=hosts, ready=False) as cluster:
        wait_until(cluster.gone, 10, "every process has ended\n" + cluster.logs())
        assert cluster.statuses() == [1, 1], cluster.logs()
        end = cluster.first.log()[cluster.first.log().rindex("the server ends:") :]
        assert "host 1 (" in end and "start-up, " in end and "model.safetensors" in end, cluster.logs()


def test_restarts_find_their_kernels(plait, tmp_path):
    kernels = [kernel(i, seconds=0.02) for i in range(40)]
    hosts = {host: environment(tmp_path, kernels, cache=host) for host in range(2)}
    with Cluster(plait, 2, *EXPERTS, model=MODEL, environment_of=hosts) as cluster:
        cold = kernel_seconds(cluster.first)
        seconds = []
        for host in (1, 0):
            restarts = cluster.first.info()["engine_restarts"]
            os.kill(cluster.engine(host), signal.SIGKILL)
            wait_until(lambda: cluster.first.info()["engine_restarts"] > restarts, 20, "it is noticed")  # noqa: B023
            cluster.first.wait_ready()
            seconds.append(kernel_seconds(cluster.first))
        assert cluster.first.metric("plait:compiles_after_ready_total") == 0
        for log in [cluster.first.log(), cluster.others[0].log()]:
            first, *later = built(log)
            assert first[0] == 0 and len(later) == 2, log
            assert all(found == (40, 0, 0) for found in later), log
    with Cluster(plait, 2, *EXPERTS, model=MODEL, environment_of=hosts) as cluster:
        warm = kernel_seconds(cluster.first)
        assert built(cluster.first.log()) == [(40, 0, 0)], cluster.logs()
    note(
        f"40 kernels on 2 hosts: cold {cold:.2f} s; warm {warm:.3f} s; after a restart of one engine, then of the "
        "other, "
        + " and ".join(f"{value:.3f} s" for value in seconds)
    )


def test_a_kernel_that_does_not_compile_ends_all(plait, tmp_path):
    kernels = [kernel(i, seconds=1) for i in range(30)]
    kernels[7] = kernel(7, seconds=3, text='extern "C" __global__ void k(float* y) { *y = undeclared_thing; }')
    hosts = {host: environment(tmp_path, kernels) for host in range(2)}
    with Cluster(plait, 2, *EXPERTS, model=MODEL, environment_of=hosts, ready=False) as cluster:
        wait_until(cluster.gone, 20, "every process has ended\n" + cluster.logs())
        assert cluster.statuses() == [1, 1]
        for log in [cluster.first.log(), cluster.others[0].log()]:
            end = log[log.rindex("this host ends:" if "this host ends:" in log else "the server ends:") :]
            assert "kernel_7" in end and "undeclared_thing" in end, log


def test_hosts_with_different_kernels_do_not_start(plait, tmp_path):
    for host in range(2):
        (tmp_path / str(host)).mkdir()
    hosts = {host: environment(tmp_path / str(host), [kernel(host)]) for host in range(2)}
    with Cluster(plait, 2, *EXPERTS, model=MODEL, environment_of=hosts, ready=False) as cluster:
        assert cluster.others[0].process.wait(30) == 1
        assert "kernels of all ranks" in cluster.others[0].log()


def test_a_rehearsal_that_is_wrong_is_refused_by_name(plait, tmp_path):
    variables = environment(tmp_path, [{**kernel(0), "seconds": "long"}])
    command = [plait, "serve", "--model-path", MODEL, "--port", "0"]
    variables = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    ended = subprocess.run(command, env=variables, capture_output=True, timeout=30)
    assert ended.returncode == 1
    assert b"PLAIT_REHEARSE_KERNELS" in ended.stderr and b"kernels[0].seconds" in ended.stderr, ended.stderr


def planned(plait, *flags):
    """How many kernels all ranks need, by `plait plan --kernels`."""
    command = [plait, "plan", "--kernels", "--json", "--model-path", DEMO_MODEL, *map(str, flags)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)["kernels"]


SMALL = ["--max-running-requests", "2", "--chunked-prefill-size", "16"]
ON_H200 = {"PLAIT_REHEARSE_KERNELS": "h200"}


def start_with_model_kernels(plait, *flags, **variables):
    """One server's (found, built, received), the seconds of its kernel phase, and how many kernels it says there are."""
    environment = {**ON_H200, **variables}
    prefix = ("env", *(f"{name}={value}" for name, value in environment.items()))
    with Server(plait, *SMALL, *flags, program_prefix=prefix) as server:
        reply = server.post("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 4}})
        assert reply.status_code == 200, reply.text
        assert server.metric("plait:compiles_after_ready_total") == 0
        (record,) = phases(server, "kernels")
        assert record["done"] == record["total"] and record["ended"], record
        (counts,) = built(server.log())
        return counts, record["seconds"], record["total"]


def test_a_models_own_kernels_are_built_once(plait, tmp_path):
    count = planned(plait, *SMALL)
    cold, cold_seconds, total = start_with_model_kernels(plait, "--kernel-cache-dir", tmp_path / "kernels")
    assert total == count and cold == (0, count, 0)
    warm, seconds, total = start_with_model_kernels(plait, "--kernel-cache-dir", tmp_path / "kernels")
    assert total == count and warm == (count, 0, 0)
    more = ["--max-running-requests", "64"]
    assert planned(plait, *SMALL, *more) > count, "the limits change nothing, so the counts show nothing"
    note(f"demo-fp8 on an h200: {count} kernels, cold {cold_seconds:.2f} s, warm {seconds:.3f} s")


def test_a_server_finds_what_plait_compile_has_built(plait, tmp_path):
    """Neither is told where: both keep kernels in the user's cache."""
    layout = ["--tp-size", "2", "--dp-size", "2", "--enable-dp-attention", "--moe-a2a-backend", "a2a"]
    command = [plait, "compile", "--model-path", DEMO_MODEL, *SMALL, *layout]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120, text=True).stdout
    count = planned(plait, *SMALL, *layout)
    assert said.startswith(f"{count} kernels for sm_90a are in {tmp_path}/plait/kernels: 0 were there, "), said
    counts, _, total = start_with_model_kernels(plait, *layout, XDG_CACHE_HOME=tmp_path)
    assert total == count and counts == (count, 0, 0)


def test_stages_on_hosts_of_their_own_build_a_models_kernels_together(plait, tmp_path):
    count = planned(plait, *SMALL, "--pp-size", 2)
    hosts = {host: {**ON_H200, "XDG_CACHE_HOME": tmp_path / str(host)} for host in range(2)}
    with Cluster(plait, 2, *SMALL, "--pp-size", 2, model=DEMO_MODEL, environment_of=hosts) as cluster:
        records = phases(cluster.first, "kernels")
        assert [record["total"] for record in records] == [count, count], records
        shares = [built(log)[0] for log in (cluster.first.log(), cluster.others[0].log())]
        assert cluster.first.metric("plait:compiles_after_ready_total") == 0
    assert all(share[1] > 0 for share in shares) and sum(share[1] for share in shares) >= count, shares
    note(f"two stages on two hosts, {count} kernels: built {shares[0][1]} and {shares[1][1]}")
