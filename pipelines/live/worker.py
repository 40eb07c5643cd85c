"""`python -m pipelines.live.worker`: the process that holds the network. JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import USER_ERRORS

Request = dict[str, Any]


class Worker:
    """Does one request after another; a request can be stopped while it waits or runs."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self.say = say
        self.stopped: set[str] = set()
        self.models: dict[str, tuple[Any, Any]] = {}
        """By name: the state of its files, and the model."""
        self.tasks: dict[str, Callable[[Request], None]] = {
            "warm": self.warm, "plan": self.plan, "segment": self.segment, "attention": self.attention,
            "export": self.export, "correct": self.correct, "excerpt": self.excerpt,
        }  # fmt: skip

    def do(self, request: Request) -> None:
        """One request; whatever goes wrong is told in one line, and ends that request only."""
        try:
            self.tasks[request["do"]](request)
        except (*USER_ERRORS, OSError) as error:
            self.say({"id": request["id"], "event": "failed", "reason": " ".join(str(error).split())})
        except Exception as error:  # the page goes on whatever one region does
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.say({"id": request["id"], "event": "failed", "reason": reason})

    def warm(self, request: Request) -> None:
        """Loads a model and lets it see one window."""
        import torch

        model = self.model(request["model"])
        side = min(model.card.window, 256)
        with torch.inference_mode():
            model.network(torch.zeros(1, len(model.card.bands.names), side, side))
        self.say({"id": request["id"], "event": "ready"})

    def plan(self, request: Request) -> None:
        """What a region would be run with, in lines for people."""
        from pipelines.choices import describe, table
        from pipelines.live.region import region_box

        job = self.job(request)
        box = region_box(job, request["corners"])
        windows = sum(1 for _ in job.grid.touching(box))
        lines = [f"{box.width} x {box.height} px in {windows} window(s); {job.view.note}", describe(job.plan)]
        self.say({"id": request["id"], "event": "planned", "lines": lines, "table": table(job.choices())})

    def segment(self, request: Request) -> None:
        from pipelines.bundle import image_fingerprint
        from pipelines.choices import describe
        from pipelines.live.record import LiveRecord
        from pipelines.live.region import new_board, predict_region, publish, region_box
        from pipelines.peak import peak_memory

        started = time.monotonic()
        name, folder = request["id"], Path(request["folder"])
        job, corners = self.job(request), request["corners"]
        box = region_box(job, corners)
        board = new_board(job, box, Path(request["board"]))
        self.say({"id": name, "event": "started", "plan": describe(job.plan)})
        count = 0

        def shown(cell: Any) -> None:
            nonlocal count
            count += cell.pixels
            area = [cell.y, cell.x, cell.height, cell.width]
            self.say({"id": name, "event": "cell", "cell": area, "done": count / box.pixels})

        whole = predict_region(job, box, corners, board, shown, lambda: name in self.stopped)
        if count == 0:
            self.say({"id": name, "event": "stopped"})
            return
        folder.mkdir(parents=True)
        publish(job, box, board, folder, job.fingerprint)
        seconds = time.monotonic() - started
        import torch

        record = LiveRecord(
            title=request["title"], image=job.source.path, fingerprint=image_fingerprint(job.source.path),
            model=job.model.card.name, digest=job.model.digest, cores=job.plan.cores, window=job.plan.window,
            overlap=job.plan.overlap, corners=tuple(tuple(c) for c in corners), finished=whole,
            seconds=round(seconds, 2), peak_memory=peak_memory(torch.device(job.plan.device)),
            plan=describe(job.plan),
        )  # fmt: skip
        record.write(folder)
        self.say({"id": name, "event": "finished", "whole": whole, "seconds": round(seconds, 2)})

    def attention(self, request: Request) -> None:
        from pipelines.live.attention import attention_maps, attention_window, write_maps

        job = self.job(request)
        window = attention_window(job, tuple(request["centre"]))
        maps = attention_maps(job, window)
        write_maps(maps, Path(request["file"]))
        y, x = job.view.scale
        patch = job.model.network.encoder.config.patch
        covers = [window.y * y, window.x * x, maps.shape[2] * patch * y, maps.shape[3] * patch * x]
        self.say({"id": request["id"], "event": "seen", "shape": list(maps.shape), "covers": covers})

    def export(self, request: Request) -> None:
        """Makes further files from a finished label image."""
        from tiling.exports import EXPORTS
        from tiling.labels import Labels

        folder = Path(request["folder"])
        labels = Labels.open(folder / "labels.zarr")
        made = [path.name for name in request["names"] for path in EXPORTS[name](labels, folder, None, {})]
        self.say({"id": request["id"], "event": "exported", "files": made})

    def correct(self, request: Request) -> None:
        """Writes a mask with its corrections, and what was painted as shapes to train on."""
        from pipelines.live.corrected import write_corrected
        from pipelines.live.corrections import Corrections

        files = write_corrected(Corrections(Path(request["folder"])))
        self.say({"id": request["id"], "event": "exported", "files": [path.name for path in files]})

    def excerpt(self, request: Request) -> None:
        """Writes files of a part of a mask."""
        from pipelines.live.corrections import Corrections
        from pipelines.live.excerpt import write_excerpt
        from tiling.labels import Labels

        labels, folder = Labels.open(Path(request["mask"]) / "labels.zarr"), Path(request["folder"])
        corrections = Corrections(Path(request["corrections"])) if request["corrections"] else None
        folder.mkdir(parents=True)
        try:
            files = write_excerpt(labels, corrections, request["corners"], request["values"], request["names"], folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.say({"id": request["id"], "event": "exported", "files": [path.name for path in files]})

    def job(self, request: Request) -> Any:
        """The plan for the image of a request."""
        from pipelines.job import Job, Options
        from tiling import Spacing, open_image

        spacing = request.get("spacing")
        options = Options(
            cores=request.get("cores"),
            memory=request.get("memory"),
            spacing=spacing if spacing in (None, "native") else Spacing.parse(spacing),
            exports=(),
        )
        source = open_image(request["image"])
        # No finished result lies in a folder of this name, so the plan is made for these wishes alone.
        return Job.prepare(source, self.model(request["model"]), Path(request.get("folder", "")) / "no result", options)

    def model(self, name: str) -> Any:
        """A model, loaded once, and again where its files were written anew; the last two are kept."""
        from veca_core import load_model
        from veca_core.weights import CARD, WEIGHTS, find_model

        files = [(find_model(name) / file).stat() for file in (WEIGHTS, CARD)]
        state = [(file.st_mtime_ns, file.st_ino, file.st_size) for file in files]
        known = self.models.get(name)
        if known is None or known[0] != state:
            self.models.pop(name, None)
            self.models[name] = state, load_model(name)
            while len(self.models) > 2:
                self.models.pop(next(iter(self.models)))
        return self.models[name][1]


def main() -> int:
    """Serves requests until its input ends: when the page's process goes, this one goes too."""
    if hasattr(os, "nice"):
        os.nice(5)  # looking goes before computing
    lock = threading.Lock()
    out = sys.stdout

    def say(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")
            out.flush()

    sys.stdout = sys.stderr  # what a library prints is no message
    worker = Worker(say)
    waiting: queue.Queue[Request | None] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "stop":
                worker.stopped.add(request["id"])
            else:
                waiting.put(request)
        waiting.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (request := waiting.get()) is not None:
        if request["id"] in worker.stopped:
            say({"id": request["id"], "event": "stopped"})
        else:
            worker.do(request)
    return 0


if __name__ == "__main__":
    sys.exit(main())
