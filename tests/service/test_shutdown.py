"""A request that is still running when the server stops waiting."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from tests.service.conftest import Api
from tests.service.service_process import wait_until
from tests.service.specs import spec


def test_what_is_not_done_at_the_stop_is_told_to_come_again(tmp_path):
    """The write waits for the database longer than the server stops; the key makes the second try safe."""

    def post(api):
        return api.http.post("/v1/jobs", json=spec(1), headers={"Idempotency-Key": "mine"})

    with Api(tmp_path / "api") as api, ThreadPoolExecutor(1) as pool:
        with closing(sqlite3.connect(api.settings.database_url.removeprefix("sqlite:///"))) as locked:
            locked.execute("BEGIN IMMEDIATE")
            waiting = pool.submit(post, api)
            wait_until(lambda: api._server.server_state.tasks, 20, "the request is being worked on")
            api._server.should_exit = True
            answer = waiting.result(20)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.headers["content-type"] == "application/problem+json"
        problem = json.loads(answer.text)
        assert problem["type"].endswith(":not-ready")
        assert "send it again" in problem["detail"]
