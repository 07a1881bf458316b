"""Progress resumes: a stream that is cut at random and taken up by Last-Event-ID tells everything once."""

import random
import threading

from tests.service.conftest import Api
from tests.service.sse import read_events
from tests.service.test_api import claimed, submitted
from tests.service.test_events import assert_told_once, read_in_pieces, work


def test_progress_resumes(tmp_path, full, report):
    disconnects = 100 if full else 15
    with Api(tmp_path / "api") as api:
        job = submitted(api, 1)
        lease, stop = claimed(api, job), threading.Event()
        worker = threading.Thread(target=work, args=(api, lease, stop, 5 * disconnects))
        worker.start()
        try:
            seen, left = read_in_pieces(api, job.id, random.Random(1), disconnects)
        finally:
            stop.set()
            worker.join(60)
        assert left < 0
        assert_told_once(seen, read_events(api.http, job.id))
    kept = sum(kind != "progress" for _, kind, _ in seen)
    measured = f"{disconnects} disconnects, {kept} statuses and measurements: 0 missing, 0 twice"
    report.row("Progress resumes", "100 disconnects, no gap, no repeat", measured)
