"""Trains RECIPE into OUT within a little less than a whole batch takes; prints bound, prediction and peak in bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pipelines.config import read_recipe
from pipelines.peak import peak_memory
from pipelines.training import Run

CPU = torch.device("cpu")

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, out = map(Path, sys.argv[1:])
    out.mkdir()
    run = Run.prepare(read_recipe(recipe), out, CPU, lambda _: None)
    run.settle(2**40)
    whole = run.learner.thrift.predicted
    assert whole is not None
    bound = int(0.93 * whole)
    run.settle(bound)
    run.go_on()
    found = {"whole": whole, "bound": bound, "predicted": run.learner.thrift.predicted, "peak": peak_memory(CPU)}
    sys.stdout.write(json.dumps(found) + "\n")
