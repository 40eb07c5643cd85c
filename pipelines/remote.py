"""Results in an object store: made in a folder of this machine, one image at a time, and sent when finished."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipelines.bundle import LABELS, RUN, Bundle, RunRecord
from pipelines.errors import RequestError
from pipelines.job import Job, absolute
from tiling import ImageError, storage
from tiling.exports import FILES


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of results behind an address, and where they are made before they are sent.

    A bundle counts as finished once its run.json is there, which is taken away first and sent last. What could not be
    sent stays on this machine, and the same command sends it.
    """

    url: str
    scratch: Path
    """Holds one bundle at a time, and those that an interruption left."""

    @classmethod
    def of(cls, out: str | Path) -> Store | None:
        """The store that `out` names; None for a folder. Raises RequestError for an address that takes no files."""
        url = storage.restored(str(out)).rstrip("/")
        if not storage.is_url(url):
            return None
        if url.lower().startswith("http"):
            raise RequestError(f"{url}: results cannot be written over http; give a folder, or s3://, gs:// or az://")
        mark = hashlib.sha256(url.encode()).hexdigest()[:16]
        return cls(url, Path.home() / ".cache" / "veca" / f"unsent-{mark}")

    def check(self) -> None:
        """Raises RequestError where the store does not take files from here."""
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            probe = self.scratch / ".veca-probe"
            probe.touch()
            storage.send(probe, f"{self.url}/.veca-probe")
            storage.delete(f"{self.url}/.veca-probe")
        except ImageError as error:
            raise RequestError(f"{error}; choose another --out") from error
        except OSError as error:
            raise RequestError(f"cannot write into {self.scratch}: {error.strerror}; results are made there") from error

    def run(self, name: str) -> RunRecord | None:
        """The record of a finished bundle; None where there is none."""
        path = f"{self.url}/{name}/{RUN}"
        if storage.size(path) is None:
            return None
        try:
            return RunRecord.model_validate_json(storage.read_all(path))
        except ValidationError:
            return None

    def sent(self, job: Job) -> RunRecord | None:
        """The record of the result that is there already, if it is of the same request."""
        sent = None if job.options.overwrite else self.run(job.folder.name)
        return sent if sent and sent.request == job.request else None

    def refuse_another(self, job: Job) -> None:
        """Raises RequestError where the store holds the result of another image, unless that may be overwritten."""
        there = None if job.options.overwrite else self.run(job.folder.name)
        if there is not None and there.image.path != absolute(job.source.path):
            place = f"{self.url}/{job.folder.name}"
            raise RequestError(f"{place} holds the result of {there.image.path}; choose another --out, or --overwrite")

    def send(self, bundle: Bundle) -> Bundle:
        """Replaces what the store holds under the bundle's name, and removes the bundle here."""
        target = f"{self.url}/{bundle.name}"
        storage.delete(f"{target}/{RUN}")
        for name in storage.names(target):
            if name.split("/")[0] in (LABELS, *FILES):
                storage.delete(f"{target}/{name}")
        files = sorted(p for p in bundle.folder.rglob("*") if p.is_file() and p.name != RUN)
        for file in [*files, bundle.folder / RUN]:
            storage.send(file, f"{target}/{file.relative_to(bundle.folder).as_posix()}")
        shutil.rmtree(bundle.folder)
        return bundle

    def fetch(self, name: str) -> Path:
        """A file of the store's own folder, like the summary, brought here where it is there."""
        path = self.scratch / name
        path.unlink(missing_ok=True)
        if storage.size(f"{self.url}/{name}") is not None:
            path.write_bytes(storage.read_all(f"{self.url}/{name}"))
        return path
