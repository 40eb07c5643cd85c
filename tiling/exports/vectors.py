"""Regions for maps: a GeoPackage or a GeoParquet in the raster's CRS. Written in batches."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyogrio
import pyproj
from affine import Affine
from numpy.typing import NDArray
from pyarrow import parquet
from pyogrio.errors import DataLayerError, DataSourceError, GeometryError

from tiling.errors import ImageError
from tiling.exports.files import printable
from tiling.exports.outlines import Ring, placed
from tiling.exports.regions import MeasuredRegion, RegionWishes
from tiling.labels import Labels

_BATCH: Final = 4096
"""Regions that are written at once, at most."""
_BYTES: Final = 1 << 23
"""Of geometry that are held until they are written, unless a single region has more."""
_MOST: Final = 10**9
"""Bytes that one geometry may have: what SQLite takes, and Arrow holds."""
_POLYGON: Final = 3
"""Number of the type in WKB (OGC 06-103r4, 8.2.3)."""
_EPOCH: Final = "1970-01-01T00:00:00.000Z"
"""When a GeoPackage says that it was changed: the same regions give the same bytes."""


class _Batches:
    """Collects regions as rows of a table, and writes them when there are many."""

    def __init__(self, path: Path, labels: Labels, tags: Mapping[str, str], wishes: RegionWishes) -> None:
        self.path = path
        self.crs = labels.georef.crs
        self.tags = {key: printable(text) for key, text in tags.items()}
        self.count = 0
        self._place = labels.georef.transform
        self._objects = wishes.objects
        self._names = {c.value: printable(c.name) for c in labels.classes}
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self.schema = _schema(labels)

    def add(self, region: MeasuredRegion) -> None:
        """Takes a region; raises OSError where the disk is full."""
        wkb, shell = _wkb(region, self._place)
        self._rows.append(self._row(region) | {"geometry": wkb, "shell": shell})
        self._bytes += len(wkb)
        if len(wkb) > _MOST:
            name, corners = self._names[region.label.value], len(wkb) // 16
            raise ImageError(
                f"{self.path.name}: a region of {name} has {corners:,} corners, more than such a file can hold in one; "
                "simplify the regions, leave its class out, or export geojson"
            )
        del wkb
        if len(self._rows) == _BATCH or self._bytes >= _BYTES:
            self._flush()

    def close(self, *, complete: bool) -> None:
        """Writes what is left."""
        if complete:
            self._flush()

    def write(self, batch: pa.Table, bounds: NDArray[np.float64]) -> None:
        """Appends rows whose column `geometry` holds WKB; `bounds` (n, 4) are min x, min y, max x, max y."""
        raise NotImplementedError

    def _flush(self) -> None:
        bounds = _bounds([row.pop("shell") for row in self._rows], self._place)
        geometry = _binary([row.pop("geometry") for row in self._rows])
        columns = [pa.array([row[name] for row in self._rows], self.schema.field(name).type) for name in self.names]
        self.write(pa.Table.from_arrays([*columns, geometry], schema=self.schema), bounds)
        self.count += len(self._rows)
        self._rows, self._bytes = [], 0

    @property
    def names(self) -> list[str]:
        """Of the columns but the geometry."""
        return [name for name in self.schema.names if name != "geometry"]

    def _row(self, region: MeasuredRegion) -> dict[str, Any]:
        small, large = ("um2", "mm2") if region.unit == "um2" else ("m2", "ha")
        return {
            "id": str(region.id),
            "class": self._names[region.label.value],
            "value": region.label.value,
            "color": f"#{bytes(region.label.color).hex()}",
            "pixels": region.pixels,
            f"area_{small}": region.area,
            f"area_{large}": None if region.area is None else region.area * (1e-6 if small == "um2" else 1e-4),
            f"perimeter_{small[:-1]}": region.perimeter,
        }


class GeoPackage(_Batches):
    """A GeoPackage with the layer `regions`."""

    def write(self, batch: pa.Table, bounds: NDArray[np.float64]) -> None:  # noqa: ARG002 - GDAL finds them itself
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _EPOCH})
        first = self.count == 0 and not self.path.exists()
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)  # there is none to give
                pyogrio.write_arrow(
                    batch,
                    self.path,
                    layer="regions",
                    driver="GPKG",
                    geometry_name="geometry",
                    geometry_type="Polygon",
                    crs=self.crs,
                    append=not first,
                    dataset_metadata=self.tags if first else None,
                )
        except (DataSourceError, DataLayerError, GeometryError) as error:
            raise OSError(f"{self.path}: the regions could not be written ({error}); is the disk full?") from error

    def close(self, *, complete: bool) -> None:
        super().close(complete=complete)
        if complete and pyogrio.read_info(self.path, force_feature_count=True)["features"] != self.count:
            raise OSError(f"{self.path}: the regions could not be written; is the disk full?")


class GeoParquet(_Batches):
    """A GeoParquet file, version 1.1: WKB, and the CRS as PROJJSON."""

    def __init__(self, path: Path, labels: Labels, tags: Mapping[str, str], wishes: RegionWishes) -> None:
        super().__init__(path, labels, tags, wishes)
        self._writer = parquet.ParquetWriter(
            path,
            self.schema,
            compression="zstd",
            use_dictionary=["class", "color"],
            write_statistics=["value", "pixels"],
        )
        self._bounds: NDArray[np.float64] | None = None

    def write(self, batch: pa.Table, bounds: NDArray[np.float64]) -> None:
        self._writer.write_table(batch)
        seen = bounds if self._bounds is None else np.vstack([self._bounds, bounds])
        self._bounds = np.concatenate([seen[:, :2].min(0), seen[:, 2:].max(0)]) if len(seen) else None

    def close(self, *, complete: bool) -> None:
        super().close(complete=complete)
        if complete:
            self._writer.add_key_value_metadata({"geo": json.dumps(self._about()), **self.tags})
        self._writer.close()

    def _about(self) -> dict[str, Any]:
        crs = pyproj.CRS.from_user_input(self.crs).to_json_dict() if self.crs else None
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs}
        if self._bounds is not None:
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _binary(values: list[bytes]) -> pa.Array:
    """An Arrow array; a single large value is not copied."""
    if len(values) != 1:
        return pa.array(values, pa.binary())
    offsets = pa.py_buffer(np.array([0, len(values[0])], np.int32).tobytes())
    return pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(values[0])])


def _schema(labels: Labels) -> pa.Schema:
    small, large = ("um2", "mm2") if labels.georef.unit == "um" else ("m2", "ha")
    return pa.schema(
        [
            ("id", pa.string()),
            ("class", pa.string()),
            ("value", pa.int32()),
            ("color", pa.string()),
            ("pixels", pa.float64()),
            (f"area_{small}", pa.float64()),
            (f"area_{large}", pa.float64()),
            (f"perimeter_{small[:-1]}", pa.float64()),
            pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"}),
        ]
    )


def _wkb(region: MeasuredRegion, place: Affine) -> tuple[bytes, Ring]:
    """The polygon in world coordinates as little-endian WKB, made ring by ring, and its shell in pixels.

    Shells run counter-clockwise where y points up.
    """
    shell, holes = region.region.shell, region.region.holes
    parts = [struct.pack("<BII", 1, _POLYGON, 1 + len(holes))]
    for ring in region.rings:
        corners = placed(np.concatenate([ring, ring[:1]]), place)
        parts += [struct.pack("<I", len(corners)), (corners if place.determinant < 0 else corners[::-1]).tobytes()]
    return b"".join(parts), shell


def _bounds(shells: Sequence[Ring], place: Affine) -> NDArray[np.float64]:
    """(n, 4): smallest and largest x and y of each shell."""
    corners = [placed(shell, place) for shell in shells]
    return np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in corners]).reshape(-1, 4)
