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
from jaxtyping import UInt8
from ml_collections import ConfigDict

from uniser_jax import atomic, train, xla
from uniser_jax import config as schema
from uniser_jax.data.photos import Photos
from uniser_jax.effects import edit, gallery, masks
from uniser_jax.effects.edit import EditSampling, Rendering
from uniser_jax.effects.mixture import Mixture
from uniser_jax.errors import reason_of
from uniser_jax.evaluation import benchmarks, tables
from uniser_jax.metrics import log_to_terminal
from uniser_jax.restore.restorer import Restorer
from uniser_jax.status import duration

_SIDE = 384  # of the photograph that is restored for show
_SEED = 4


def demo(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes contact_sheet.png, the run, evaluation.json, evaluation.md and restored.png into `workdir`."""
    logging.info("1/4  rendering soft effects: %s", workdir / "contact_sheet.png")
    training, held_out = train.open_examples(config)
    if not (workdir / "contact_sheet.png").exists():
        photos = [training.photos[index] for index in range(min(4, len(training.photos)))]
        gallery.write_png(workdir / "contact_sheet.png", gallery.contact_sheet(photos, config.seed))

    logging.info("2/4  training %d steps: %s", config.steps, workdir)
    train.train(config, workdir)

    logging.info("3/4  evaluating on photographs held out from training: %s", workdir / "evaluation.md")
    restorer = Restorer.from_checkpoint(workdir)
    items = benchmarks.rendered_edits(
        held_out.photos, config.data.size, config.evaluation.count, config.evaluation.seed
    )
    results = benchmarks.evaluate(restorer, items)
    atomic.write(workdir / "evaluation.json", tables.to_json(results))
    atomic.write(workdir / "evaluation.md", tables.to_markdown(results))

    logging.info("4/4  restoring a held-out photograph: %s", workdir / "restored.png")
    gallery.write_png(workdir / "restored.png", showcase(restorer, held_out.photos))


def showcase(restorer: Restorer, photos: Photos) -> UInt8[np.ndarray, "h w c"]:
    """Held-out photographs: degraded, restored whole, at half strength, inside a mask only, and clean."""
    rows, names = [], []
    mixtures = (("haze",), ("shadow", "haze"), ("flare",), ("reflection",))
    for index, effects in enumerate(mixtures):
        rng = np.random.default_rng((_SEED, index))
        photo, other = (gallery.square(photos[(index + k) % len(photos)], _SIDE) for k in (0, 1))
        scene = edit.scene_from_photo(photo, other, 2.0)
        sampling = EditSampling(mixture=Mixture(strength_min=0.8), noise=0.0)
        rendering = Rendering(scene, edit.sample(rng, scene, sampling, effects=effects, task="remove effects"))
        degraded = rendering.expose(rendering.recipe.strengths)
        mask = np.round(255 * masks.draw(rng, degraded.shape[:2], "ellipse", count=1)).astype(np.uint8)
        task = edit.task_of("remove", effects[0]) if len(effects) == 1 else "remove effects"
        rows.append(
            [
                degraded,
                restorer(degraded, task),
                restorer(degraded, task, strength=0.5),
                np.repeat(mask[..., None], 3, -1),
                restorer(degraded, task, mask=mask),
                rendering.clean(),
            ]
        )
        names.append(task)
    return gallery.grid(rows, ["input", "restored", "half strength", "mask", "in the mask only", "clean"], names)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for a mistake of the caller's."""
    parser = argparse.ArgumentParser("uniser demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    known, overrides = parser.parse_known_args(argv)
    xla.prepare()
    log_to_terminal()
    started = time.monotonic()
    try:
        demo(schema.read(known.config, overrides), known.workdir)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"uniser demo: {reason_of(error)}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write((known.workdir / "evaluation.md").read_text() + _next(known.workdir, time.monotonic() - started))
    return 0


def _next(workdir: pathlib.Path, seconds: float) -> str:
    return f"""
Done in {duration(seconds)}. In {workdir}/:
  contact_sheet.png  the effects, a mixture, its mask, exact targets
  metrics.jsonl, tensorboard/, samples/, checkpoints/  the training run
  evaluation.md, evaluation.json  the table above
  restored.png  held-out photographs: degraded, restored, at half strength, in a mask only, clean
Next:
  .venv/bin/uniser restore PHOTO.jpg -o better.jpg --task haze --strength 0.7
  .venv/bin/uniser train --config=configs/tiny.py --workdir=runs/mine --config.data.photos=FOLDER --config.steps=20000
"""


if __name__ == "__main__":
    sys.exit(main())
