"""The `veca` command: names the typed functions of this package, turns words into values and errors into one line."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.errors import USER_ERRORS, RequestError, said_by_system
from pipelines.progress import ProgressBar, to_stderr
from veca_core.errors import ModelError

app = typer.Typer(
    name="veca",
    help="Segments whole-slide images and GeoTIFFs at native resolution, with as many attention cores as you ask for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable result on stdout.")]
ModelName = Annotated[str, typer.Option("--model", "-m", help="A shipped model's name, or a model folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Cores = Annotated[str, typer.Option(help="auto, or a number of cores that the model can run with.")]
Memory = Annotated[
    str | None, typer.Option(help="Bound on memory (the GPU's, where one computes), like 6GiB; 80 % of what is free.")
]
Time = Annotated[str | None, typer.Option(help="Bound on the network's time for an image, like 90s or 10min.")]
Window = Annotated[int | None, typer.Option(min=1, help="Side of a window in pixels; the model's own.")]
SpacingText = Annotated[
    str | None, typer.Option(help="Size of the image's own pixels, like 0.25um or 0.3m; or native: read as is.")
]
Bands = Annotated[
    str | None, typer.Option(help="Bands to read, in the model's order: names, or numbers from 1, like 4,1,2.")
]
Overlap = Annotated[int | None, typer.Option(min=0, help="Pixels that windows share; an eighth.")]
Exports = Annotated[str, typer.Option(help="What to write beside labels.zarr.")]
Tissue = Annotated[bool, typer.Option(help="Leave out parts of slides without tissue.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all of them unless given.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="A field to change: schedule.seed=1.")]


@app.command()
def segment(
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders of images, patterns in quotes, or @list.txt with a path a line."),
    ],
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder or s3://, gs://, az:// address for the results.")],
    cores: Cores = "auto",
    memory: Memory = None,
    time: Time = None,
    device: Device = "auto",
    window: Window = None,
    overlap: Overlap = None,
    spacing: SpacingText = None,
    exports: Exports = "mask,regions,areas,preview",
    bands: Bands = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a tile cannot be decoded.")] = False,
    tissue: Tissue = True,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also look into the folders below.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make a finished result again.")] = False,
    dask: Annotated[
        str | None, typer.Option(help="Run on a Dask cluster: tcp://host:8786, a scheduler file, or local:4.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Segment slides or GeoTIFFs into labels, mask, areas and a preview.

    Example: veca segment slides/ --model nuclei --out results
    """
    from pipelines.images import list_images

    listed = list_images(images, recursive=recursive)
    # What comes now loads torch, which takes seconds: a wrong path is told before.
    from pipelines.bundle import Bundle
    from pipelines.device import parse_bytes
    from pipelines.job import Options
    from pipelines.pace import parse_time
    from pipelines.segmentation import segment_all
    from veca_core import load_model

    use_threads(threads)
    options = Options(
        cores=parse_cores(cores),
        window=window,
        overlap=overlap,
        memory=parse_bytes(memory) if memory else None,
        time=parse_time(time) if time else None,
        device=device,
        spacing=parse_spacing(spacing),
        exports=parse_names(exports),
        bands=parse_names(bands),
        strict=strict,
        tissue=tissue,
        overwrite=overwrite,
        dask=dask,
        threads=threads,
    )
    loaded = load_model(model)
    place = check_out(out)
    with ProgressBar("blocks") as bar:
        results = segment_all(listed, loaded, out, options, report=bar.say, tick=bar.tick)
    done = [result for result in results if isinstance(result, Bundle)]
    for bundle in done:
        to_stderr(f"{place}/{bundle.name}: {', '.join(bundle.run.outputs)}")
    if as_json:
        print_json([
            {"folder": f"{place}/{r.name}", "run": r.run.model_dump(mode="json")}
            if isinstance(r, Bundle) else {"image": str(r.image), "error": r.reason}
            for r in results
        ])  # fmt: skip
    if len(done) < len(results):
        to_stderr(f"{len(results) - len(done)} of {len(results)} images failed; {place}/summary.csv says why")
        raise typer.Exit(1)


@app.command()
def plan(
    image: Annotated[str, typer.Argument(help="An image.")],
    model: ModelName,
    memory: Memory = None,
    time: Time = None,
    device: Device = "auto",
    cores: Cores = "auto",
    window: Window = None,
    overlap: Overlap = None,
    spacing: SpacingText = None,
    exports: Exports = "mask,regions,areas,preview",
    bands: Bands = None,
    tissue: Tissue = True,
    as_json: Json = False,
) -> None:
    """Show what would be chosen for an image: memory, time and accuracy of cores and windows.

    Time is in proportion to the chosen row, marked by an arrow.
    """
    from dataclasses import asdict

    from pipelines.device import parse_bytes
    from pipelines.job import Options
    from pipelines.pace import parse_time
    from pipelines.planning import plan as look_ahead
    from veca_core import load_model

    options = Options(
        cores=parse_cores(cores),
        window=window,
        overlap=overlap,
        memory=parse_bytes(memory) if memory else None,
        time=parse_time(time) if time else None,
        device=device,
        spacing=parse_spacing(spacing),
        exports=parse_names(exports),
        bands=parse_names(bands),
        tissue=tissue,
    )
    check_exists(image)
    planned = look_ahead(image, load_model(model), options)
    if as_json:
        print_json([{**asdict(row.plan), "time": row.time, "mean_iou": row.mean_iou, "chosen": row.chosen,
                     "fits": row.fits} for row in planned.choices])  # fmt: skip
    else:
        print_lines([str(planned)])


@app.command()
def info(image: Annotated[str, typer.Argument(help="An image.")], bands: Bands = None, as_json: Json = False) -> None:
    """Say what an image is: size, bands, pixel size, levels, place."""
    from pipelines.describe import info as look
    from pipelines.describe import info_lines

    check_exists(image)
    facts = look(image, parse_names(bands))
    print_json(facts) if as_json else print_lines(info_lines(facts))


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model, or all that are shipped.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for a page about that model.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped models, or show the card of one model; with --out as a page, its elastic curve drawn."""
    from pipelines.models import model_info, model_lines
    from pipelines.models import models as shipped
    from veca_core import load_card

    if out:
        from pipelines.model_page import write_model_page

        if not name:
            raise RequestError("--out writes the page of one model; name it")
        check_folder(out)
        print_lines(str(path) for path in write_model_page(name, out))
        return
    found = [model_info(name)] if name else shipped()
    if as_json:
        print_json(found)
        return
    for entry in found:
        print_lines(model_lines(load_card(name or entry["name"]), entry["megabytes"]))


@app.command()
def doctor(device: Device = "auto", threads: Threads = None, as_json: Json = False) -> None:
    """Check a device: results, memory and speed. Exit status 1 where something is not as promised."""
    from dataclasses import asdict

    from pipelines.doctor import doctor as examine

    use_threads(threads)
    checks = []
    for check in examine(device):
        checks.append(check)
        if not as_json:
            print_lines([check.line()])
    if as_json:
        print_json([asdict(check) for check in checks])
    failed = [check.name for check in checks if check.passed is False]
    if failed:
        to_stderr(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
        raise typer.Exit(1)


@app.command()
def samples(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to put them into.")] = Path("samples"),
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Draw a slide instead; needs no network.")] = False,
) -> None:
    """Fetch a real slide and a real GeoTIFF to try things on."""
    from pipelines.samples import samples as get

    check_folder(out)
    print_lines(str(path) for path in get(out, synthetic=synthetic, report=to_stderr))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, or a folder with images/ and masks/.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; a stopped run goes on there.")],
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget the run that is there.")] = False,
    memory: Annotated[str | None, typer.Option(help="Bound on memory, like 6GiB; none where it is not given.")] = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Train a model on images and masks.

    Example: veca train docs/models/nuclei.yaml --out runs/nuclei
    """
    from pipelines.config import read_data, read_recipe
    from pipelines.device import parse_bytes
    from pipelines.team import joined
    from pipelines.training import train as run

    checked = (read_data if recipe.is_dir() else read_recipe)(recipe, changes or ())
    bound = parse_bytes(memory) if memory else None
    check_folder(out)
    with joined(os.environ, device) as team:
        trained = run(
            checked, out, device=device, threads=threads, overwrite=overwrite, memory=bound, team=team, report=to_stderr
        )
    if not team.leads:
        return
    to_stderr(f"best model: {trained.folder} (mean IoU {trained.mean_iou:.4f} at step {trained.step})")
    if as_json:
        print_json({"model": str(trained.folder), "mean_iou": trained.mean_iou, "step": trained.step})


@app.command()
def distill(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe: images, a teacher, and stages.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; a stopped run goes on there.")],
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train an encoder on images without labels, to see what a teacher sees.

    Example: veca distill docs/models/distill-aerial.yaml --out runs/distilled
    """
    from pipelines.distill_recipe import read_distill_recipe
    from pipelines.distillation import distill as run

    checked = read_distill_recipe(recipe)
    check_folder(out)
    encoder = run(checked, out, device=device, threads=threads, report=to_stderr)
    to_stderr(f"encoder: {encoder}; start a training from it with network.pretrained")
    if as_json:
        print_json({"encoder": str(encoder)})


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a model folder.")],
    data: Annotated[Path, typer.Argument(help="The YAML recipe of the data, or a folder with images/ and masks/.")],
    cores: Annotated[str, typer.Option(help="all, or budgets like 8,64.")] = "all",
    everything: Annotated[bool, typer.Option("--everything", help="All scenes, not only those held back.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for a page of scores and samples.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the scores into the model's card.")] = False,
    against: Annotated[
        str | None, typer.Option(help="A rival to train alike, in --out: smp:Unet:tu-tf_efficientnet_lite0.")
    ] = None,
    changes: Changes = None,
    window: Window = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model on labelled scenes: overlap, borders, calibration and objects, for each number of cores.

    Example: veca evaluate runs/mine/best recipe.yaml --against smp:Unet:tu-tf_efficientnet_lite0 --out runs/scores
    """
    from dataclasses import replace

    from pipelines.config import read_data, read_recipe
    from pipelines.evaluation import check_classes, evaluate_rival, record_scores, write_evaluation
    from pipelines.evaluation import evaluate as run
    from pipelines.rival import fair_terms
    from pipelines.summary import Samples
    from veca_core import load_model

    if against and not out:
        raise RequestError("--against trains a rival, which needs a folder; give one with --out")
    if record and everything:
        raise RequestError("a card records what held-back scenes gave; leave out --everything, or --record")
    use_threads(threads)
    recipe = (read_data if data.is_dir() else read_recipe)(data, changes or ())
    budgets = None if cores == "all" else [parse_cores(part) or 0 for part in cores.split(",")]
    loaded = load_model(model)
    if recipe.data.masks:
        check_classes(loaded.card, recipe.classes)
    terms = fair_terms(recipe, loaded.card, against) if against else None
    if out:
        check_folder(out)
    options: dict[str, Any] = {"everything": everything, "window": window, "device": device, "report": to_stderr}
    samples = Samples(loaded.card.classes)
    result = run(
        loaded, recipe.data, cores=budgets, recording=record, comparing=bool(against), see=samples.see, **options
    )
    if against and terms and out:
        score = evaluate_rival(loaded, terms, out, **options)
        result = replace(result, rivals=((against, score),), notes=(*result.notes, *filter(None, [terms.start])))
    if out:
        write_evaluation(result, out, samples)
    if record:
        record_scores(loaded, result)
    if as_json:
        print_json(result.content())
    else:
        print_lines([result.table()])


@app.command()
def convert(
    bundles: Annotated[list[Path], typer.Argument(help="Results: the folders that hold a run.json.")],
    exports: Annotated[str, typer.Option(help="mask, regions, geojson, geopackage, geoparquet, areas, preview ...")],
    simplify: Annotated[str | None, typer.Option(help="Leave out corners of regions up to this, like 1.5px.")] = None,
    min_area: Annotated[str | None, typer.Option(help="Leave out smaller regions, like 20um2 or 100m2.")] = None,
    classes: Annotated[str | None, typer.Option(help="Regions of these classes only, like nucleus.")] = None,
    objects: Annotated[str, typer.Option(help="What QuPath makes of regions: annotation or detection.")] = "annotation",
    origin: Annotated[str, typer.Option(help="Of a bounded slide's pixels: slide or bounds.")] = "slide",
    as_json: Json = False,
) -> None:
    """Make more exports of finished results; needs no model.

    Example: veca convert results/slide --exports geojson --classes nucleus --objects detection
    """
    from pipelines.conversion import convert as run
    from pipelines.conversion import parse_wishes

    wishes = parse_wishes(simplify, min_area, classes, objects, origin)
    names = [name.strip() for name in exports.split(",") if name.strip()]
    done = [run(bundle, names, wishes, report=to_stderr) for bundle in bundles]
    if as_json:
        print_json([{"folder": str(b.folder), "run": b.run.model_dump(mode="json")} for b in done])


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a model folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")],
    format: Annotated[str, typer.Option(help="onnx or torch-export.")] = "onnx",  # noqa: A002 - the word people know
    cores: Annotated[str, typer.Option(help="all, or budgets like 8,64: a file each. The largest alone.")] = "auto",
    as_json: Json = False,
) -> None:
    """Write a model for other runtimes: raw pixels in, class probabilities out, of any size and batch.

    Example: veca export nuclei --format onnx --cores 8,64 --out exported
    """
    from pipelines.portable import check_format, export_model
    from veca_core import load_model

    check_format(format)
    loaded = load_model(model)
    budgets: list[int] | None = None
    if cores == "all":
        budgets = list(loaded.network.encoder.config.budgets)
    elif cores != "auto":
        budgets = [parse_cores(part) or 0 for part in cores.split(",")]
    check_folder(out)
    paths = export_model(loaded, out, format=format, cores=budgets, report=to_stderr)
    if as_json:
        print_json([str(path) for path in paths])


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A folder of results.")]) -> None:
    """Write report.html, one page about all results of a folder that needs nothing else."""
    from pipelines.report import write_report

    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; give the --out folder of a segmentation")
    print_lines([str(write_report(folder))])


@app.command()
def view(
    folders: Annotated[list[Path], typer.Argument(help="Folders of images and results.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; a free one unless given.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="A further name of this machine, for its network.")] = None,
    base_map: Annotated[
        str | None, typer.Option(help="A map service below rasters, like https://HOST/{z}/{x}/{y}.png.")
    ] = None,
    base_map_credit: Annotated[str, typer.Option(help="Who made the base map; shown on it.")] = "",
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Look at images and results in a browser, and segment what you draw."""
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"there is no folder {folder}; give a folder of images or results")
    # -P: an app.py in the current folder is not ours.
    command = [sys.executable, "-P", "-m", "app", "--host", host]
    command += ["--port", str(port)] if port else []
    command += [part for given in name or [] for part in ("--name", given)]
    command += ["--base-map", base_map, "--base-map-credit", base_map_credit] if base_map else []
    command += [*([] if browser else ["--no-browser"]), "--", *map(str, folders)]
    try:
        status = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        status = 0
    raise typer.Exit(status)


def main() -> None:
    """What `veca` runs: exit status 0 all done, 1 something failed, 2 called wrongly."""
    # tifffile and others log what they tolerate in files; our own messages say what matters.
    logging.disable(logging.WARNING)
    try:
        app()
    except (RequestError, ModelError) as error:
        to_stderr(f"veca: {error}")
        sys.exit(2)
    except USER_ERRORS as error:
        to_stderr(f"veca: {error}")
        sys.exit(1)
    except SystemExit as error:
        if error.code == 130:  # how Typer ends after Ctrl-C
            # What Zarr had begun to write is left undone on purpose.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            logging.disable(logging.CRITICAL)
            anew = "--overwrite" in sys.argv
            to_stderr(f"veca: stopped; the same command {'starts anew' if anew else 'goes on from here'}")
        raise
    except OSError as error:
        to_stderr(f"veca: {said_by_system(error)}")
        sys.exit(1)


def parse_cores(text: str) -> int | None:
    """'auto' -> None; raises RequestError for what is no number."""
    if text == "auto":
        return None
    if not text.strip().isdecimal():
        raise RequestError(f"cannot read {text!r} as a number of cores; write auto, or a number like 32")
    return int(text)


def parse_names(text: str | None) -> tuple[str, ...]:
    """'a, b' -> ('a', 'b'); nothing -> ()."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def parse_spacing(text: str | None) -> Any:
    """'native', a Spacing, or None."""
    from tiling import Spacing

    if text is None or text == "native":
        return text
    try:
        return Spacing.parse(text)
    except ValueError as error:
        raise RequestError(str(error)) from error


def check_exists(image: str) -> None:
    """Raises RequestError for a path that is not there."""
    from tiling import storage

    if not storage.is_url(image) and not Path(image).exists():
        raise RequestError(f"{image}: no such file")


def check_out(out: Path) -> str:
    """Makes sure that results can go there, and gives the place's name: a folder, or an address of a store."""
    from pipelines.remote import Store

    store = Store.of(out)
    if store is None:
        check_folder(out)
        return str(out)
    store.check()
    return store.url


def check_folder(out: Path) -> None:
    """Makes a folder for results; raises RequestError where none can be made or written."""
    from tiling import storage

    if storage.is_url(storage.restored(str(out))):
        raise RequestError(f"{storage.restored(str(out))}: give a folder of this machine")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".veca-probe"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(f"cannot write into {out}: {error.strerror}; choose another --out") from error


def use_threads(threads: int | None) -> None:
    """Sets torch's CPU threads."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_lines(lines: Any) -> None:
    for line in lines:
        typer.echo(line)
