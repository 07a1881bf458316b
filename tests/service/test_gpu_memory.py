"""The memory of a GPU, where no setting names it, is what a warm worker on it tells."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from featurespeed_service.dispatch import cluster
import ray
from featurespeed_service.settings import Settings

ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
cluster.warm_up_task = ray.remote(lambda engine: 15 * 2**30)  # as there is no GPU here to ask
found = cluster.Cluster(Settings())
if sys.argv[1] == "at the start":
    found.warm_up()
else:  # the node has come after the start
    found.refresh()
print(found.capacity.share(2**30).gpus)
assert found.wait(found._warm, 60)
found.refresh()
print(found.capacity.share(2**30).gpus)
"""


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_cell_takes_the_part_of_a_gpu_that_its_estimate_says(when):
    """1 GiB by estimate, 1.5 with the margin, of 15 GiB: a tenth; all of the GPU before anybody has told."""
    found = subprocess.run([sys.executable, "-c", SCRIPT, when], capture_output=True, text=True, timeout=120)
    assert found.stdout.split() == ["1.0", "0.1"], found.stderr[-2000:]
