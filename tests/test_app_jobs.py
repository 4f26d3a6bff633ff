"""The app's jobs: the queue, cancellation, time limits, and errors in the work."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")

from showface.app.guard import Limits
from showface.app.jobs import Jobs, JobStoppedError, QueueFullError

from support.app import (
    FIELDS,
    FakeInpainter,
    fake_models,
    running,
    send_form,
    wait_until,
)


class Gate(FakeInpainter):
    """A filler that waits until it is let through."""

    def __init__(self) -> None:
        self.open = threading.Event()
        super().__init__(lambda: self.open.wait(20))


def test_a_full_queue_and_places_in_it():
    gate = Gate()
    with running(fake_models(gate), Limits(waiting=2)) as client, ThreadPoolExecutor(4) as pool:
        status = lambda job: client.get(f"/api/jobs/{job}").json  # noqa: E731
        tasks = []
        for number in range(3):
            tasks.append(pool.submit(client.post, "/api/inpaint", FIELDS | {"job": f"job-{number}"}))
            wait_until(lambda number=number: status(f"job-{number}")["state"] == ("queued" if number else "running"))
        wait_until(lambda: status("job-0")["stage"] == "finding faces")
        assert status("job-0") == {"state": "running", "position": 0, "stage": "finding faces", "fraction": 0.05}
        assert status("job-2") == {"state": "queued", "position": 2, "stage": "waiting", "fraction": 0.0}
        full = client.post("/api/inpaint", FIELDS)
        assert full.status == 429
        assert int(full.headers["retry-after"]) >= 1
        assert full.detail == "the queue is full: try again in 1 second"
        gate.open.set()
        assert [task.result().status for task in tasks] == [200, 200, 200]
        assert status("job-0")["state"] == "unknown"


def test_two_jobs_with_one_id():
    gate = Gate()
    with running(fake_models(gate)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/api/inpaint", FIELDS | {"job": "same"})
        wait_until(lambda: gate.begun)
        second = client.post("/api/inpaint", FIELDS | {"job": "same"})
        assert (second.status, "its own id" in second.detail) == (400, True)
        gate.open.set()
        assert first.result().status == 200


def test_hanging_up_stops_the_job():
    gate = Gate()
    with running(fake_models(gate)) as client:
        state = lambda job: client.get(f"/api/jobs/{job}").json["state"]  # noqa: E731
        running_job = send_form(client, FIELDS | {"job": "running"})
        wait_until(lambda: gate.begun)
        queued_job = send_form(client, FIELDS | {"job": "queued"})
        wait_until(lambda: state("queued") == "queued")
        queued_job.close()
        wait_until(lambda: state("queued") == "unknown")
        running_job.close()
        time.sleep(0.1)
        gate.open.set()
        wait_until(lambda: state("running") == "unknown")
        assert (gate.begun, gate.ended) == (1, 0)  # the one stopped at its next stage, the other never began
        assert client.post("/api/inpaint", FIELDS).status == 200


def test_a_job_has_a_time_limit():
    gate = Gate()
    with running(fake_models(gate), Limits(job_seconds=0.3)) as client:
        answer = client.post("/api/inpaint", FIELDS)
        assert (answer.status, "0.3 seconds" in answer.detail) == (504, True)
        gate.open.set()
        wait_until(lambda: client.post("/api/inpaint", FIELDS).status == 200)
        assert gate.ended == 1


def test_an_unexpected_error_shows_nothing(caplog: pytest.LogCaptureFixture):
    def fail() -> None:
        raise RuntimeError("a secret of /root")

    with running(fake_models(FakeInpainter(fail))) as client:
        answer = client.post("/api/inpaint", FIELDS)
    assert (answer.status, answer.detail) == (500, "showface failed at this photo: its log says where")
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text.replace('raise RuntimeError("a secret of /root")', "")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")]
)
def test_too_little_memory(error: Exception):
    def fail() -> None:
        raise error

    with running(fake_models(FakeInpainter(fail))) as client:
        answer = client.post("/api/inpaint", FIELDS)
    assert (answer.status, "memory of this machine" in answer.detail) == (413, True)


def test_jobs_without_a_server():
    jobs = Jobs(waiting=1, seconds=5)
    open_gate = threading.Event()
    first = jobs.submit(lambda progress: open_gate.wait(5))
    wait_until(lambda: first.state == "running")
    second = jobs.submit(lambda progress: 2)
    with pytest.raises(QueueFullError):
        jobs.submit(lambda progress: 3)
    jobs.stop(second)
    with pytest.raises(JobStoppedError):
        second.future.result(1)
    third = jobs.submit(lambda progress: progress("x", float("inf")) or progress("x", -1))
    open_gate.set()
    assert first.future.result(5) == (True, [])
    third.future.result(5)
    assert third.fraction == 0
    assert jobs.close(5)
    with pytest.raises(JobStoppedError):
        jobs.submit(lambda progress: None)
