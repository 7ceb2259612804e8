"""Several hosts of one engine: network namespaces with addresses of their own, and the processes in them.

Where namespaces are not permitted, hosts are loopback addresses. Everything made here is named after this process and
removed at the end.
"""

import contextlib
import ctypes
import itertools
import os
import pathlib
import signal
import subprocess
import tempfile

from harness import Server, process_runs, wait_until

_clusters = itertools.count(1)
_CLONE_NEWNET = 0x40000000


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def namespaces_permitted():
    name = f"plait-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    _ip("netns", "del", name)
    return True


class Network:
    """Namespaces on one bridge, and this process beside them: what it connects to is reached from the bridge's own."""

    def __init__(self, hosts):
        self.number = next(_clusters)
        self.hub = f"plait-{os.getpid()}-{self.number}-hub"
        self.names = [f"plait-{os.getpid()}-{self.number}-h{i}" for i in range(hosts)]
        self.addresses = [f"10.97.{self.number % 250}.{i + 1}" for i in range(hosts)]
        self.outside = os.open("/proc/self/ns/net", os.O_RDONLY)

    def __enter__(self):
        try:
            _ip("netns", "add", self.hub)
            _ip("-n", self.hub, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self.hub, "addr", "add", f"10.97.{self.number % 250}.254/24", "dev", "bridge")
            _ip("-n", self.hub, "link", "set", "bridge", "up")
            for i, (name, address) in enumerate(zip(self.names, self.addresses)):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"host{i}", "netns", self.hub)
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", self.hub, "link", "set", f"host{i}", "master", "bridge", "up")
            self._move_to(os.open(f"/run/netns/{self.hub}", os.O_RDONLY))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._move_to(self.outside)
        for name in [*self.names, self.hub]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def prefix(self, host):
        return ("ip", "netns", "exec", self.names[host])

    @staticmethod
    def _move_to(descriptor):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)


class Loopback:
    """Hosts as addresses of the loopback interface."""

    def __init__(self, hosts):
        number = next(_clusters)
        self.addresses = [f"127.97.{number % 250}.{i + 1}" for i in range(hosts)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def prefix(self, _):
        return ()


class OtherHost:
    """`plait serve` with a --node-rank above 0."""

    def __init__(self, plait, *flags, model, program_prefix):
        self.log_file = tempfile.NamedTemporaryFile(prefix="plait-", suffix=".log", delete=False)
        command = [*program_prefix, str(plait), "serve", "--model-path", str(model), *flags]
        self.process = subprocess.Popen(command, stdout=self.log_file, stderr=subprocess.STDOUT)

    def log(self):
        return pathlib.Path(self.log_file.name).read_text(errors="replace")

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log_file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log_file.name)


class Cluster:
    """A server on several hosts. `flags_of`: more flags of single hosts; `environment_of`: their variables."""

    MEETING_PORT = 29500

    def __init__(self, plait, hosts, *flags, model, flags_of=None, environment_of=None, ready=True):
        self.plait, self.count, self.model, self.ready = plait, hosts, model, ready
        self.flags = [str(flag) for flag in flags]
        self.flags_of = flags_of or {}
        self.environment_of = environment_of or {}

    def __enter__(self):
        self.cleanup = contextlib.ExitStack()
        network = Network if namespaces_permitted() else Loopback
        try:
            self.network = self.cleanup.enter_context(network(self.count))
            self.start()
        except BaseException:
            self.cleanup.close()
            raise
        return self

    def start(self):
        meeting = f"{self.network.addresses[0]}:{self.MEETING_PORT}"
        common = [*self.flags, "--nnodes", str(self.count), "--dist-init-addr", meeting]
        self.others = []
        for host in range(1, self.count):
            other = OtherHost(
                self.plait, *common, "--node-rank", str(host), *self.flags_of.get(host, ()),
                model=self.model_of(host), program_prefix=self.prefix(host),
            )  # fmt: skip
            self.cleanup.callback(other.stop)
            self.others.append(other)
        self.first = Server(
            self.plait, *common, *self.flags_of.get(0, ()),
            model=self.model_of(0), host=self.network.addresses[0], program_prefix=self.prefix(0),
        )  # fmt: skip
        self.cleanup.callback(self.first.stop)
        if self.ready:
            self.first.wait_ready()

    def prefix(self, host):
        variables = [f"{name}={value}" for name, value in self.environment_of.get(host, {}).items()]
        return (*self.network.prefix(host), "env", *variables)

    def model_of(self, host):
        return self.model[host] if isinstance(self.model, dict) else self.model

    def __exit__(self, *_):
        self.cleanup.close()

    # -- processes

    def servers(self):
        """[hosts] pids of the `plait serve` processes."""
        return [self.first.process.pid, *(other.process.pid for other in self.others)]

    def engine(self, host):
        """The engine process of a host, or None while there is none."""
        pid = self.servers()[host]
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def wait_engine(self, host):
        return wait_until(lambda: self.engine(host), 20, f"host {host} has an engine process")

    def log(self, host):
        return [self.first, *self.others][host].log()

    def logs(self):
        return "\n".join(f"-- host {host}\n{self.log(host)}" for host in range(self.count))

    def gone(self):
        """No process of the cluster is left."""
        return None not in self.statuses()

    def statuses(self):
        """[hosts] exit statuses of the `plait serve` processes; None: runs."""
        return [process.poll() for process in [self.first.process, *(other.process for other in self.others)]]

    def send(self, number, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def wake(self, *pids):
        for pid in pids:
            self.send(signal.SIGCONT, pid)
