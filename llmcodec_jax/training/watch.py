"""A page that follows a run while it goes on: python -m llmcodec_jax.training.watch RUN

Progress, the headline numbers so far, before and after, and the newest losses, drawn anew from the
run's files every few seconds. The run is only read; the page is served to this computer alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from llmcodec_jax.errors import UserError, answer_errors
from llmcodec_jax.pages import html, plots
from llmcodec_jax.pages.serving import serve
from llmcodec_jax.training import card, lock, report, summary
from llmcodec_jax.training.checkpoint import CONFIG_NAME
from llmcodec_jax.training.journal import read_rows

OLDER_CONFIG = "config.json"  # of runs before version 0.2
HOST = "127.0.0.1"


class Progress(NamedTuple):
    """How far a run is."""

    step: int  # steps done, as the newest row says
    total: int  # 0 where no config says
    at_work: bool  # whether a process holds the folder
    seconds_left: float | None  # at the pace of the last rows

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return 0 < self.total <= self.step


def read_progress(workdir: Path, rows: list[dict]) -> Progress:
    """From the run's rows, config and lock."""
    names = [workdir / name for name in (CONFIG_NAME, OLDER_CONFIG) if (workdir / name).is_file()]
    total = int(json.loads(names[0].read_text()).get("total_steps", 0)) if names else 0
    step = max((row["step"] + ("eval/mel" not in row) for row in rows), default=0)
    held = workdir / lock.NAME
    at_work = held.is_file() and time.time() - held.stat().st_mtime < lock.PATIENCE
    paces = [r["speed/steps_per_second"] for r in rows if r.get("speed/steps_per_second")][-5:]
    left = (total - step) * len(paces) / sum(paces) if paces and total > step else None
    return Progress(step, total, at_work, left)


def panel(progress: Progress) -> str:
    """The bar, and what the run is doing in words."""
    done = progress.finished
    doing = "finished" if done else "running" if progress.at_work else "not running"
    said = f"{doing}: step {progress.step:,}" + (f" of {progress.total:,}" * bool(progress.total))
    if progress.at_work and progress.seconds_left is not None:
        said += f", about {duration(progress.seconds_left)} left without evaluations"
    if not done and not progress.at_work:
        said += "; the command that started it resumes it"
    share = 1.0 if done else progress.step / progress.total if progress.total else 0.0
    return html.progress(share, said)


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def render(workdir: Path, every: int) -> str:
    """The page as the run stands now; asks to be fetched again until the run has finished."""
    rows = read_rows(workdir)
    progress = read_progress(workdir, rows)
    skipped = max((row.get("skipped") or 0 for row in rows), default=0)
    warning = f"{skipped} updates were skipped for a loss or gradient that was not finite."
    first = panel(progress) + (html.paragraph(warning, "warn") if skipped else "")
    first += html.links(card.neighbours(workdir, "")) + summary.first_screen(workdir, rows)
    curves = plots.curves(rows, report.PANELS)
    sections = [("Curves", html.cards(html.picture(figure, title) for title, figure in curves))]
    newest = next((row for row in reversed(rows) if any(n.startswith("loss/") for n in row)), {})
    losses = [[n.removeprefix("loss/"), v] for n, v in newest.items() if n.startswith("loss/")]
    if losses:
        sections.append((f"Losses at step {newest['step']}", html.table(["loss", "value"], losses)))
    said = summary.verdict(rows) if summary.evaluations(rows) else "Nothing has been evaluated yet."
    refresh = 0 if progress.finished else every
    return html.page(f"Run {workdir.name}", said, sections if rows else [], first, refresh)


class WatchServer(ThreadingHTTPServer):
    """Serves a run's page on this computer; a page is drawn once for each state of the rows."""

    daemon_threads = True

    def __init__(self, workdir: Path, every: int, port: int):
        self.workdir, self.every = workdir, every
        self._drawn: tuple[object, str] = (None, "")
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://localhost:{self.server_address[1]}/"

    def page(self) -> str:
        """`render`, from memory where nothing has been added."""
        rows, held = self.workdir / "metrics.jsonl", self.workdir / lock.NAME
        state = (rows.stat().st_mtime_ns if rows.exists() else 0, held.exists())
        if self._drawn[0] != state or held.exists():
            self._drawn = (state, render(self.workdir, self.every))
        return self._drawn[1]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: WatchServer  # ty: ignore[incompatible-mutable-override]

    def do_GET(self):
        """The page, and the run's own pages beside it."""
        name = self.path.partition("?")[0].lstrip("/")
        beside = self.server.workdir / name
        if name == "":
            self._send(HTTPStatus.OK, self.server.page().encode("utf-8", "backslashreplace"))
        elif name in card.PAGES and beside.is_file():
            self._send(HTTPStatus.OK, beside.read_bytes())
        else:
            self._send(HTTPStatus.NOT_FOUND, b"no such page")

    def _send(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@answer_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="llmcodec watch",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="run folder of the trainer")
    parser.add_argument("--every", type=int, default=10, help="seconds between two looks")
    parser.add_argument("--port", type=int, default=7861, help="0 takes a free one")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    args = parser.parse_args(argv)
    if not any((args.run / name).is_file() for name in (CONFIG_NAME, "metrics.jsonl")):
        raise UserError(f"{args.run}: no run here (neither {CONFIG_NAME} nor metrics.jsonl)")
    if args.every < 1:
        parser.error("--every must be at least 1")
    serve(
        lambda: WatchServer(args.run, args.every, args.port),
        f"{HOST}:{args.port}",
        f"{args.run}: {{url}} (Ctrl-C ends it; the run goes on)",
        browser=not args.no_browser,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
