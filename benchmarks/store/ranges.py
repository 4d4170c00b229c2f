"""Count requests, bytes and seconds of the first slab of a shared store, read from a web server with latency.

A slab is one layer of one stage over all rows. Each turn opens the store and reads one slab, as a colleague's first
cell does. The server runs on loopback in its own process and waits before every answer, as a distant one would.
*Pushed* is a store with the index that `stratalens push` writes; *copied* is the same folder without it. *From the
cache* reads a slab that the local cache of chunks has. The baseline downloads the files of the slab whole, sixteen at a
time, which is what a tool does that cannot read by ranges. *Useful bytes* are those of the slab.

    python -m benchmarks.store.ranges [FOLDER] [--blocks 6] [--layers 24] [--latency 0.05] [--rounds 5]
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.harness.document import Column, Report, Table, arguments, parse
from benchmarks.harness.measure import alternate, scratch
from benchmarks.store.read import make
from stratalens.store import open_store
from stratalens.store.interop.push import push_store
from stratalens.store.state.index import INDEX, LABELS
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at

TITLE, THEME = "Shared stores read by ranges", "Store"
LAYER = 1


def serve(folder: str, latency: float, pipe: Any) -> None:
    """Answer ranges from a folder after a pause; `/counts` returns and clears the number of requests and bytes."""
    counts = [0, 0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            if self.path == "/counts":
                self.send(200, f"{counts[0]} {counts[1]}".encode())
                counts[:] = [0, 0]
                return
            time.sleep(latency)
            file = Path(folder + self.path)
            if not file.is_file():
                counts[0] += 1
                self.send(404, b"")
                return
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            with file.open("rb") as source:
                if match:
                    source.seek(int(match[1]))
                data = source.read(int(match[2]) + 1 - int(match[1]) if match else -1)
            counts[0], counts[1] = counts[0] + 1, counts[1] + len(data)
            self.send(206 if match else 200, data)

        def send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def read_counts(address: str) -> tuple[int, int]:
    with urllib.request.urlopen(f"{address}/counts") as answer:
        requests, nbytes = map(int, answer.read().split())
    return requests, nbytes


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", nargs="?", default=scratch())
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--rounds", type=int, default=5)
    options = parse(parser, quick={"blocks": 2, "layers": 3, "rounds": 2, "latency": 0.005})
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(str(folder), options.latency, sender))
    process.start()
    try:
        with Report(__file__, options, "fsspec", "aiohttp", folders=[folder]) as report:
            measure(report, folder, f"http://127.0.0.1:{receiver.recv()}", options)
    finally:
        process.kill()
        process.join()
        shutil.rmtree(folder)


def measure(report: Report, folder: Path, address: str, options: Any) -> None:
    recorded = make(folder / "recorded.zarr", options.blocks, layers=options.layers)
    push_store(recorded, folder / "pushed.zarr")
    shutil.copytree(folder / "pushed.zarr", folder / "copied.zarr")
    for key in (INDEX, LABELS):
        (folder / "copied.zarr" / key).unlink()
    shutil.rmtree(recorded)
    layout = load(storage_at(folder / "pushed.zarr")).layouts["resid_post"]
    useful = layout.inner_nbytes * options.blocks
    files = [f"{address}/pushed.zarr/{layout.key(0, block)}" for block in range(options.blocks)]
    os.environ["STRATALENS_CACHE_DIR"] = str(folder / "cache")

    def slab(name: str, cache: str) -> Callable[[], None]:
        def work() -> None:
            os.environ["STRATALENS_CACHE_SIZE"] = cache
            values = open_store(f"{address}/{name}", dtype="bits").resid_post.isel(stage=0).sel(layer=LAYER).values
            assert values.nbytes == useful

        return work

    def whole_files() -> None:
        def one(url: str) -> int:
            with urllib.request.urlopen(url) as answer:
                return len(answer.read())

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(one, files)) == layout.file_nbytes * options.blocks

    methods: dict[str, Callable[[], object]] = {
        "whole files": whole_files,
        "ranges, pushed": slab("pushed.zarr", "0"),
        "ranges, copied": slab("copied.zarr", "0"),
        "from the cache": slab("pushed.zarr", "10 GB"),
    }
    columns = [
        Column("name", ""),
        Column("requests", "requests"),
        Column("bytes", "bytes", "MB"),
        Column("useful", "bytes / useful bytes"),
    ]
    table = Table("requests", "Opening and the first slab", columns, ours=["ranges, pushed"])
    methods["from the cache"]()  # fills it
    moved = {}
    for name, work in methods.items():
        read_counts(address)
        work()
        requests, nbytes = read_counts(address)
        moved[name] = nbytes / useful
        table.add(name=name, requests=requests, bytes=nbytes / 1e6, useful=moved[name])
        if name == "ranges, pushed":
            report.target("requests of opening and the first slab", [requests], at_most=9)
    table.note = f"{options.blocks} blocks of rows, {options.layers} layers, {useful / 1e6:.1f} useful MB"
    report.add(table)
    report.target("bytes of opening and the first slab relative to the slab", [moved["ranges, pushed"]], at_most=1.05)
    runs = alternate(methods, options.rounds, shuffle=True)
    title = f"First slab of {useful / 1e6:.1f} MB, {options.latency * 1e3:.0f} ms before each answer"
    report.timings("seconds", title, runs, "whole files", ours=["ranges, pushed"], amount=useful / 1e6)


if __name__ == "__main__":
    main()
