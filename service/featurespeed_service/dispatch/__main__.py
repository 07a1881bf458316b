"""``python -m featurespeed_service.dispatch``: a process of its own, because a dispatcher owns the Ray driver."""

from __future__ import annotations

import argparse
import logging
import os
import threading
import time
from contextlib import closing

from featurespeed_service import logs, telemetry
from featurespeed_service.dispatch.cluster import Cluster, ClusterLost
from featurespeed_service.dispatch.connecting import connect
from featurespeed_service.dispatch.dispatcher import Dispatcher
from featurespeed_service.dispatch.process import SignsOfLife, stop_on_signals, stop_with_parent, wait_for_store
from featurespeed_service.dispatch.reaching import wait_for
from featurespeed_service.opening import CannotStart, opened, refuse, settings_of
from featurespeed_service.settings import Settings
from featurespeed_service.store.interface import Store
from featurespeed_service.telemetry import Traces
from featurespeed_workers.ray_tasks import load_engine

log = logs.get(__name__)

WARM_UP_SECONDS = 60.0
"""How long workers may take to start before jobs are claimed all the same."""
CLUSTER_LOST = 75
"""Exit status (EX_TEMPFAIL): another dispatcher, with another Ray, can go on."""


def main() -> int:
    """Run until SIGTERM, SIGINT or, with ``--exit-with-parent``, the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m featurespeed_service.dispatch", description=main.__doc__)
    parser.add_argument("--exit-with-parent", action="store_true")
    parser.add_argument("--signs-of-life", type=int, metavar="FD", help="file descriptor to write to now and then")
    arguments = parser.parse_args()
    stop = threading.Event()
    stop_on_signals(stop)
    if arguments.exit_with_parent:
        threading.Thread(target=stop_with_parent, args=(stop,), daemon=True).start()
    signs = SignsOfLife(arguments.signs_of_life)
    try:
        settings = settings_of()
        logs.configure("dispatcher", settings)
        traces = telemetry.start("dispatcher", settings)
        if arguments.exit_with_parent:  # it was reached before: the supervisor's process has opened it
            wait_for_store(settings, stop)
        if settings.ray_address is not None:
            wait_for(settings.ray_address, stop)  # ray.init itself would wait for two minutes, and then end the process
        if stop.is_set():
            return 0
        with closing(traces), closing(opened(settings)) as store, connect(settings) as cluster:
            _work(store, cluster, settings, stop, signs, traces)
    except CannotStart as error:
        return refuse(error)
    return 0


def _work(
    store: Store, cluster: Cluster, settings: Settings, stop: threading.Event, signs: SignsOfLife, traces: Traces
) -> None:
    stop_on_signals(stop)  # ray.init has replaced the handlers
    logs.adopt()  # and brought its own for its log
    logs.catch_printed()  # Ray prints what raylets report
    signs.give()
    try:
        warm = cluster.warm_up()
        engine = load_engine(settings.engine)
        end = time.monotonic() + WARM_UP_SECONDS
        while not (stop.is_set() or cluster.wait(warm, 0.1) or time.monotonic() > end):
            signs.give()
        Dispatcher(store, cluster, settings, engine, traces, signs).run(stop)  # gives its jobs back, whatever happens
    except ClusterLost as error:
        log.error("the cluster is lost; the jobs go back to the queue", error=str(error))
        traces.close()
        logging.shutdown()
        os._exit(CLUSTER_LOST)  # Ray's own ending would wait for a node that is gone


if __name__ == "__main__":
    raise SystemExit(main())
