"""Progress on a real (pseudo) terminal, and none where there is no terminal."""

import os
import pty
import subprocess
import sys

CODE = """
from featurespeed.contract import MeasurementEvent, Progress
from featurespeed.events import StatusEvent
from featurespeed.progress import progress_on_terminal
with progress_on_terminal(None) as listener:
    if listener is None:
        print("none")
    else:
        listener(StatusEvent(status="running"))
        listener(MeasurementEvent(seed=7, step=0, loss=2.5, angles=()))
        listener(Progress(cells_done=1, cells_total=2, fraction=0.5, message="a [message]"))
"""


def run_on_terminal(code: str) -> tuple[str, str]:
    """What the code prints to stdout (a pipe) and to stderr (a terminal)."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux's way to say that the other side has closed
        pass
    finally:
        os.close(ours)
    stdout, _ = process.communicate(timeout=20)
    return stdout, shown.decode()


def test_bar_on_a_terminal() -> None:
    stdout, stderr = run_on_terminal(CODE)
    assert stdout == ""
    assert "1/2 done, a [message]" in stderr
    assert "50%" in stderr


def test_none_without_rich() -> None:
    stdout, stderr = run_on_terminal('import sys; sys.modules["rich"] = None' + CODE)
    assert (stdout, stderr) == ("none\n", "")


def test_none_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("none\n", "")
