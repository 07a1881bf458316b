"""The main job from end to end: start a service, ask it what a transformer needs, print the answer, stop everything.

Run by ``make demo``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurespeed import Client
from featurespeed.cli.output import deliver
from featurespeed.progress import LineListener

SPEC = Path(__file__).parent / "transformer.yaml"
OUTPUT = Path("demo-output")


@contextmanager
def running_service() -> Iterator[str]:
    """A service on a free port with its embedded defaults; its address. It is stopped at the end, whatever happens."""
    command = [sys.executable, "-m", "featurespeed", "serve", "--port", "0", "--data-dir", str(OUTPUT / "service")]
    log_file = OUTPUT / "service.log"
    with log_file.open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as service:
        try:
            assert service.stdout is not None
            line = service.stdout.readline()
            if not line:
                raise SystemExit(f"the service did not start; see {log_file}")
            print(line, end="", file=sys.stderr)
            yield line.split()[-1]
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()


def main() -> None:
    """Ask, print, keep the JSON."""
    OUTPUT.mkdir(exist_ok=True)
    report_file = OUTPUT / "report.json"
    with running_service() as address, Client(address) as client:
        print(f"asking for {SPEC}; starting Ray takes a few seconds", file=sys.stderr)
        report = client.recommend(SPEC, on_event=None if sys.stderr.isatty() else LineListener())
        deliver(report, as_json=False, out=report_file)
    print(f"\nThe whole report is in {report_file}; the service is stopped.")


if __name__ == "__main__":
    main()
