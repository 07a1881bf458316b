"""A Ray of several nodes on this machine, started by a process of its own: Ray reads its configuration when imported.

Its workers find the engine ``stand_in``.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

HERE = Path(__file__).parent

MEMORY = 80 * 2**20


class RayNodes:
    """The cluster, protected by a token; ends with the context, whatever became of its parts."""

    def __init__(self, token: str, directory: Path):
        self.computed, self.places = directory / "computed", directory / "places"
        for file in (self.computed, self.places):
            file.touch()
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "STAND_IN_LOG": str(self.computed),
            "STAND_IN_PLACES": str(self.places),
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        own = psutil.Process(self._process.pid)
        family = own.children(recursive=True)
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        family += own.children(recursive=True) if own.is_running() else []
        for process in [*family, own]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(20)
        self._process.stdout.close()

    def add(self, **options):
        """A node more, the first one the head; gives its id."""
        return self._ask("add", {"object_store_memory": MEMORY, **options})

    def kill(self, node_id):
        """kill -9 of a node's raylet, with which its workers end, and of what Ray has beside it."""
        self._ask("kill", node_id)

    def _ask(self, what, of):
        print(json.dumps([what, of]), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):  # Ray prints too
                told = json.loads(line)
                self.address = told["address"]
                return told["node"]
        raise AssertionError("the cluster has died")


def main():
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    nodes = {}
    for line in sys.stdin:
        what, of = json.loads(line)
        if what == "add":
            node = cluster.add_node(**of)
            nodes[node.node_id] = node
        else:
            node = nodes.pop(of)
            cluster.remove_node(node, allow_graceful=False)  # waits too: a worker stays as long as its raylet's zombie
        print(json.dumps({"node": node.node_id, "address": cluster.address}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
