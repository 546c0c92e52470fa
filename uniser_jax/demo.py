"""From a photograph to a restored photograph in minutes: render, train, evaluate, restore.

    python -m uniser_jax.demo --config=configs/tiny.py --workdir=runs/demo

Run again, it continues an unfinished training and keeps what is finished.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import metrics, train
from uniser_jax.data.pipeline import Examples
from uniser_jax.data.photos import open_photos
from uniser_jax.effects import edit, gallery
from uniser_jax.evaluation import benchmarks, tables
from uniser_jax.restore.restorer import Restorer

_RENDERED_SIDE = 512  # of the showcase photograph, at most


def demo(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes `contact_sheet.png`, the run itself, `evaluation.json`, `evaluation.md` and `restored.png` to `workdir`."""
    workdir.mkdir(parents=True, exist_ok=True)
    examples, held_out = train.open_examples(config)

    sheet = workdir / "contact_sheet.png"
    if not sheet.exists():
        logging.info("1/4 rendering soft effects on sample photographs")
        chosen = [examples.photos[index] for index in range(min(4, len(examples.photos)))]
        gallery.write_png(sheet, gallery.contact_sheet(chosen, config.seed))

    logging.info("2/4 training")
    train.train(config, workdir)

    restorer = Restorer.from_checkpoint(workdir)
    report = workdir / "evaluation.json"
    logging.info("3/4 evaluating on photographs held out from training")
    items = benchmarks.rendered_edits(
        held_out.photos, config.data.size, config.evaluation.count, config.evaluation.seed
    )
    results = benchmarks.evaluate(restorer, items)
    tables.write(report, tables.to_json(results))
    tables.write(workdir / "evaluation.md", tables.to_markdown(results))

    logging.info("4/4 restoring a held-out photograph")
    gallery.write_png(workdir / "restored.png", showcase(restorer, held_out, config))
