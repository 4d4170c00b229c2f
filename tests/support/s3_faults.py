"""Writers on an S3 server that fails: killed, answered with errors, cut off, paused beyond their lease, two at once.

Every writer is a forked process that records the store of the crash tests at an S3 URL. After each run the store is
opened, compared with the truth and verified; then a writer without faults finishes it, and it must be complete.

    PYTHONPATH=src:tests python -m support.s3_faults [--runs N] [--seed S] [--counts FILE] [KIND ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KINDS = ("killed", "500", "503", "403", "lost", "cut", "paused", "two writers", "two ranks")
LEASE = 4.0  # seconds in runs with a paused writer, instead of two minutes


class FaultyServer:
    """A WSGI layer over moto that fails some requests.

    Its settings come with a request to /__faults__: the kind, the share of the requests that fail, and a seed.
    500, 503 and 403 are answered without doing anything; `lost` does what was asked and answers 500; `cut` sends half
    of the body and ends the connection.
    """

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application
        self._kind, self._share, self._choose = "", 0.0, random.Random(0)

    def __call__(self, environment: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environment["PATH_INFO"] == "/__faults__":
            settings = json.loads(environment["wsgi.input"].read(int(environment["CONTENT_LENGTH"])))
            self._kind, self._share = settings["kind"], settings["share"]
            self._choose = random.Random(settings["seed"])
            start_response("200 OK", [("Content-Length", "0")])
            return [b""]
        if not self._kind or self._choose.random() >= self._share:
            return self._application(environment, start_response)
        if self._kind in ("500", "503", "403"):
            length = int(environment.get("CONTENT_LENGTH") or 0)
            environment["wsgi.input"].read(length)
            return self._fail(start_response, self._kind)
        answers: list[tuple[str, list[tuple[str, str]]]] = []
        body = b"".join(self._application(environment, lambda status, headers, *_: answers.append((status, headers))))
        if self._kind == "lost":
            return self._fail(start_response, "500")
        start_response(answers[0][0], answers[0][1])
        return [body[: len(body) // 2]]  # shorter than its Content-Length

    @staticmethod
    def _fail(start_response: Callable[..., Any], kind: str) -> list[bytes]:
        code = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}[kind]
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the test</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(f"{kind} {code}", headers)
        return [body]


def serve(pipe: Any) -> None:
    """Run the server; send its port through the pipe."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    application = FaultyServer(DomainDispatcherApplication(create_backend_app))
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    server = make_server("127.0.0.1", 0, application, threaded=True)
    pipe.send(server.port)
    server.serve_forever()


class Runs:
    """Runs of writers against one server.

    Args:
        port: of the server.
        seed: chooses the moments of faults.
    """

    def __init__(self, port: int, seed: int) -> None:
        self._endpoint = f"http://127.0.0.1:{port}"
        self._seed, self._paused = seed, False
        self._said = Path(tempfile.mkstemp()[1])  # what the last process said
        self._fork = multiprocessing.get_context("fork")

    def faults(self, kind: str, share: float = 0.0, seed: int = 0) -> None:
        """Set which requests fail from now on."""
        body = json.dumps({"kind": kind, "share": share, "seed": seed}).encode()
        request = urllib.request.Request(f"{self._endpoint}/__faults__", data=body, method="PUT")
        urllib.request.urlopen(request).read()

    def start(self, function: Callable[..., object], *arguments: Any) -> Any:
        """Start a process; its exit code is 0, 3 after an error of ours, 4 after another one."""
        process = self._fork.Process(target=self._child, args=(function, *arguments))
        process.start()
        return process

    def call(self, function: Callable[..., object], *arguments: Any) -> int:
        """Run a function in a process and return its exit code."""
        return self.wait(self.start(function, *arguments))

    def wait(self, process: Any) -> int:
        """Return the exit code of a process; 5 after five minutes, as a process that hangs."""
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
            return 5
        return int(process.exitcode)

    def _child(self, function: Callable[..., object], *arguments: Any) -> None:
        import fsspec

        from stratalens.store.errors import StratalensError
        from stratalens.store.storage import leases
        from support.crash_scenarios import BrokenPromiseError

        warnings.simplefilter("ignore")
        if self._paused:
            leases.LEASE = LEASE
        client = {"retries": {"max_attempts": 1}, "read_timeout": 20}
        settings = {"key": "k", "secret": "s", "endpoint_url": self._endpoint, "config_kwargs": client}
        fsspec.config.conf["s3"] = settings
        code, text = 0, ""
        try:
            function(*arguments)
        except StratalensError as error:
            code, text = 3, f"{type(error).__name__}: {error}"
        except BrokenPromiseError as error:
            code, text = 6, str(error)
        except BaseException:
            code, text = 4, traceback.format_exc()
        self._said.write_text(text)
        os._exit(code)

    def run(self, kind: str, number: int) -> str:
        """Run the case of a kind and a number; return what is wrong, or ""."""
        choose = random.Random(f"{self._seed} {kind} {number}")
        url = f"s3://strata/{kind.replace(' ', '-')}-{self._seed}-{number}/run.zarr"
        self._paused = kind == "paused"
        codes = self._act(kind, url, choose)
        self.faults("")
        if problem := self._problem(codes, kind, "a writer"):
            return problem
        if problem := self._problem([self.call(check, url, False)], "", "the check"):
            return problem
        for _ in range(3 if self._paused else 1):  # a busy machine may stand still for longer than the short lease
            if (code := self.call(finish_and_check, url)) != 3:
                break
            time.sleep(LEASE)
        return self._problem([code], "", "the last writer")

    def _problem(self, codes: list[int], kind: str, who: str) -> str:
        allowed = {0, 3, -signal.SIGKILL} if kind else {0}
        bad = [code for code in codes if code not in allowed]
        return f"{who} ended with {bad[0]}: {self._said.read_text()[-600:]}" if bad else ""

    def _act(self, kind: str, url: str, choose: random.Random) -> list[int]:
        if kind == "killed":
            return [self.call(killed, url, choose.randrange(1, 150), choose.random() < 0.5)]
        if kind in ("500", "503", "403", "lost", "cut"):
            started = choose.random() < 0.5 and self.call(killed, url, choose.randrange(20, 100), True)
            self.faults(kind, choose.choice([0.02, 0.1, 0.25]), choose.randrange(10**6))
            codes = [self.call(finish, url)]
            if choose.random() < 0.5:
                codes.append(self.call(check, url, False))
            return [*codes, started or 0]
        if kind == "paused":
            pipe, other = self._fork.Pipe()
            writer = self.start(paused, url, choose.randrange(30, 120), other)
            if pipe.poll(60):
                os.kill(writer.pid, signal.SIGSTOP)
                time.sleep(LEASE * 1.5)
                codes = [self.call(finish_elsewhere, url)]
                os.kill(writer.pid, signal.SIGCONT)
                pipe.send("continue")
            else:
                codes = []
            return [*codes, self.wait(writer)]
        shared = [(0, 2), (1, 2)] if kind == "two ranks" else [None, None]
        return [self.wait(writer) for writer in [self.start(finish, url, rank) for rank in shared]]


def finish(url: str, rank: tuple[int, int] | None = None) -> None:
    """Record a stage, or what is missing of it; of two ranks each records its blocks."""
    from stratalens.store.writing.writer import ActivationWriter
    from support.crash_scenarios import STAGES, is_derived, make, record, true_values

    if rank is None:
        record(url, stages=STAGES[:1])  # type: ignore[arg-type]
        return
    store = make(url)  # type: ignore[arg-type]
    with (
        ActivationWriter(store, shared=True) as writer,
        writer.stage(STAGES[0], order=0, fingerprint=f"f-{STAGES[0]}") as stage,
    ):
        for block in stage.pending(*rank):
            buffer = stage.buffer(block)
            for variable in block.variables:
                if not is_derived(writer.store, variable):
                    rows = range(block.start, block.stop)
                    buffer.write(variable, rows, true_values(variable, STAGES[0], block.index, writer.store))
            stage.submit(buffer)


def finish_and_check(url: str) -> None:
    """Record what is missing, and check that the store is complete."""
    finish(url)
    check(url, True)


def finish_elsewhere(url: str) -> None:
    """Record as a process of another machine, which cannot see whether the first one lives."""
    from stratalens.store.storage import leases

    leases._machine = lambda: ["elsewhere", "", ""]
    finish(url)


def _count_changes(act: Callable[[int], None]) -> None:
    """Call `act` with the number of each upload or removal, before it and after it."""
    from stratalens.store.storage.object_store import RemoteStorage

    number = [0]
    for name in ("_put", "create"):
        real = getattr(RemoteStorage, name)

        def counted(self: Any, *arguments: Any, real: Callable[..., Any] = real) -> Any:
            number[0] += 1
            act(number[0])
            result = real(self, *arguments)
            act(-number[0])
            return result

        setattr(RemoteStorage, name, counted)


def killed(url: str, moment: int, before: bool) -> None:
    """Record, and end by SIGKILL at one upload."""

    def act(number: int) -> None:
        if number == (moment if before else -moment):
            os.kill(os.getpid(), signal.SIGKILL)

    _count_changes(act)
    finish(url)


def paused(url: str, moment: int, pipe: Any) -> None:
    """Record; before one upload say so, and wait."""

    def act(number: int) -> None:
        if number == moment:
            pipe.send("paused")
            pipe.recv()

    _count_changes(act)
    finish(url)


def check(url: str, complete: bool) -> None:
    """Compare a store with the truth; raise BrokenPromiseError where it is wrong."""
    from stratalens.store import open_store
    from support.crash_scenarios import STAGES, check_store, require

    check_store(url, {"created", f"complete {STAGES[0]}"} if complete else ())  # type: ignore[arg-type]
    if complete:
        require(open_store(url).recorded.values.all(), "rows of the finished store are missing")


@contextlib.contextmanager
def running(seed: int = 0) -> Iterator[Runs]:
    """Run a server in a process; yield the runs against it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        import s3fs  # noqa: F401 - forked processes have it at once

        import support.crash_scenarios  # noqa: F401

        runs = Runs(here.recv(), seed)
        runs.call(_make_bucket)
        yield runs
    finally:
        server.terminate()
        server.join()


def _make_bucket() -> None:
    import fsspec

    fsspec.filesystem("s3").makedirs("strata", exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--runs", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--counts", type=Path, help="file of results; runs that it has are not repeated")
    options = parser.parse_args()
    lines = options.counts.read_text().splitlines() if options.counts and options.counts.exists() else []
    results = {(kind, seed, number): problem for kind, seed, number, problem in map(json.loads, lines)}
    with running(options.seed) as runs:
        for number in range(options.runs):
            for kind in options.kinds:
                if (place := (kind, options.seed, number)) in results:
                    continue
                results[place] = problem = runs.run(kind, number)
                if options.counts:
                    with options.counts.open("a") as file:
                        file.write(json.dumps([*place, problem]) + "\n")
                if problem:
                    sys.stdout.write(f"{kind}, run {number}: {problem}\n")
                    sys.stdout.flush()
    for kind in options.kinds:
        problems = [problem for (name, _, _), problem in results.items() if name == kind]
        sys.stdout.write(f"{kind}: {len(problems)} runs, {sum(map(bool, problems))} faults\n")
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
