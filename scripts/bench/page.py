"""The clients of the page in `search.py`: they ask the server of another process, one alone and then many at once."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from side_by_side import Row, row

CLIENTS = 50
_ALONE, _EACH = 30, 6
"""Questions of the one client, and of each of the many."""


def many_at_once(case: str, folder: str, model: Any, rounds: int) -> list[Row]:
    """The 95th percentile beside the median of one client. Stops the bench if a question had no answer."""
    runs = [measure(folder, model) for _ in range(rounds)]
    if errors := sum(run["errors"] for run in runs):
        raise SystemExit(f"{case}: {errors:.0f} questions of {CLIENTS} clients had no answer")
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return [
        row(case, "95 %", "ms", 1e3 * middle["p95"], "one client", 1e3 * middle["alone"]),
        row(case, "first answer", "s", middle["first"]),
    ]


def measure(folder: str, model: Any) -> dict[str, float]:
    """Serves an index, and returns what the clients of another process found."""
    import uvicorn

    from mmcl.search import Index
    from mmcl.serve.app import create_app
    from mmcl.serve.gallery import Gallery
    from mmcl.serve.guard import Session
    from mmcl.serve.running import config_of, listen

    gallery = Gallery(Index.open(folder, model).store, model, "photos")
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        server = uvicorn.Server(config_of(create_app(gallery, Session(None, port))))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        command = [sys.executable, str(Path(__file__)), str(port)]
        finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        server.should_exit = True
        thread.join()
    found: dict[str, float] = json.loads(finished.stdout)
    return found


def ask(port: int, question: int) -> tuple[int, float]:
    """Status and seconds of an answer of 60 images."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", f"/api/search?q=question+{question}&k=60")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, time.perf_counter() - start


def main() -> None:
    port = int(sys.argv[1])
    first = ask(port, 0)[1]
    alone = [ask(port, number)[1] for number in range(_ALONE)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        many = list(pool.map(lambda number: ask(port, number), range(CLIENTS * _EACH)))
    seconds = sorted(one for _, one in many)
    print(
        json.dumps(
            {
                "first": first,
                "alone": statistics.median(alone),
                "p95": seconds[int(0.95 * len(seconds))],
                "errors": sum(status != 200 for status, _ in many),
            }
        )
    )


if __name__ == "__main__":
    main()
