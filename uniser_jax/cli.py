"""The command line: `uniser train | restore | evaluate | preview | status | aot`. A caller's mistake is one line and code 2.

Code 1 is an evaluation that is not complete, or an error of the program, with its traceback; a lack of memory is one line
where nothing is trained.
"""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from uniser_jax import atomic, xla
from uniser_jax.errors import reason_of
from uniser_jax.types import EFFECTS, TASKS

Command = Callable[[argparse.Namespace, list[str]], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    xla.prepare()
    argv = list(sys.argv[1:] if argv is None else argv)
    place = next((index for index, word in enumerate(argv) if not word.startswith("-")), len(argv))
    name, given = "".join(argv[place : place + 1]), argv[:place] + argv[place + 1 :]
    if name in ("train", "status", "aot"):  # parsers of their own, and what they log does not depend on --verbose
        module = importlib.import_module(f"uniser_jax.{name}")
        return module.main([word for index, word in enumerate(given) if index >= place or word != "--verbose"])
    arguments, rest = _parser().parse_known_args(argv)
    from uniser_jax.metrics import log_to_terminal  # from here on jax is worth its second

    log_to_terminal(arguments.verbose)
    try:
        return arguments.command(arguments, rest) or 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"uniser {arguments.command.__name__}: {reason_of(error)}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not _lacks_memory(error):
            raise
        sys.stderr.write(f"uniser {arguments.command.__name__}: not enough memory: {reason_of(error)}\n")
        return 1


def _lacks_memory(error: Exception) -> bool:
    """Whether Python, OpenCV or XLA could not allocate what it was asked for."""
    import cv2

    text = str(error)  # not OpenCV's code, which is kept by the class, and may be that of another error
    of_opencv = isinstance(error, cv2.error) and "Insufficient memory" in text
    of_xla = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text
    return isinstance(error, MemoryError) or of_opencv or of_xla


def restore(arguments: argparse.Namespace, rest: list[str]) -> None:
    """`uniser restore in.jpg -o out.jpg`."""
    _no_more(rest)
    from uniser_jax.restore import files
    from uniser_jax.restore.restorer import resolve_task

    # Cheap checks come before jax starts and weights are read.
    if len(arguments.task) > 1:
        raise ValueError("--task: expected one; 'effects' removes all at once")
    task = resolve_task(*(arguments.task or ["effects"]))
    photo = files.read_photo(arguments.input)
    mask = None if arguments.mask is None else files.read_mask(arguments.mask, photo.pixels.shape[:2])
    files.check_output(arguments.output, photo)
    restorer = _restorer(arguments)
    logging.info("%r, %d x %d px", TASKS[task], photo.pixels.shape[1], photo.pixels.shape[0])
    pixels = restorer(photo.pixels, task=task, mask=mask, strength=arguments.strength, steps=arguments.steps)
    files.write_photo(arguments.output, photo, pixels)
    print(arguments.output)


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    """`uniser evaluate --checkpoint RUN [--pairs MANIFEST | --held-out] [--protocol NAME] --json PATH`.

    Returns 1 where pairs are left out, for the table is not complete.
    """
    _no_more(rest)
    if arguments.pairs and arguments.held_out:
        raise ValueError("--held-out renders its own effects: give --photos or nothing beside it, not --pairs")
    if arguments.pairs and arguments.count:
        raise ValueError("--count is for rendered edits: all pairs of a manifest are evaluated")
    for output in filter(None, (arguments.json, arguments.markdown)):
        if output.is_dir():
            raise ValueError(f"{str(output)!r} is a folder: expected a file to write")
    from uniser_jax.data.photos import open_photos, split
    from uniser_jax.evaluation import benchmarks, tables
    from uniser_jax.evaluation.protocols import PROTOCOLS

    if arguments.protocol not in PROTOCOLS:
        raise ValueError(f"--protocol {arguments.protocol!r} is unknown; known: {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[arguments.protocol]
    restorer = _restorer(arguments)
    if arguments.codec_only and restorer.latents is None:
        raise ValueError("--codec-only: this run works on pixels, and has no autoencoder")
    config = restorer.config
    assert config is not None, "a checkpoint has one"
    left_out: list[str] = []
    if arguments.pairs:
        items = benchmarks.real_pairs(arguments.pairs, protocol.crop, left_out)
    else:
        if arguments.photos:
            photos = open_photos(arguments.photos, config.data.min_side)
        else:
            photos = split(open_photos(config.data.photos, config.data.min_side), config.data.holdout)[1]
        count = arguments.count or config.evaluation.count
        rendered = benchmarks.held_out_edits if arguments.held_out else benchmarks.rendered_edits
        items = rendered(photos, config.data.size, count, config.evaluation.seed)
    if arguments.codec_only:
        results = benchmarks.ceiling(restorer.reconstruct, items, protocol)
    else:
        results = benchmarks.evaluate(restorer, items, protocol)
    if arguments.json:
        atomic.write(arguments.json, tables.to_json(results, left_out))
    if arguments.markdown:
        atomic.write(arguments.markdown, tables.to_markdown(results, left_out))
    print(tables.to_markdown(results, left_out), end="")
    if left_out:
        sys.stderr.write(f"uniser evaluate: not complete, without {len(left_out)} that cannot be used\n")
    return 1 if left_out else 0


def preview(arguments: argparse.Namespace, rest: list[str]) -> None:
    """`uniser preview --config=configs/tiny.py [--effect haze]`: what the trainer will see, with its parameters."""
    from uniser_jax import config as schema
    from uniser_jax import train
    from uniser_jax.effects import gallery

    if not arguments.output.parent.is_dir():
        raise ValueError(f"{arguments.output}: folder {arguments.output.parent} does not exist; make it first")
    config = schema.read(arguments.config, rest)
    if arguments.seed is not None:
        config.seed = arguments.seed
    examples, _ = train.open_examples(config)
    indices = arguments.index or examples.find(arguments.effect, arguments.count)
    gallery.write_png(
        arguments.output, gallery.example_sheet([(i, examples[i], examples.recipe(i)[1]) for i in indices])
    )
    for index in indices:
        print(f"{index}: {examples.recipe(index)[1].to_json()}")
    print(arguments.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("uniser", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="train | restore | evaluate | preview | status | aot")
    commands.add_parser("train", help="train a model: uniser train --config=configs/tiny.py --workdir=runs/x")
    commands.add_parser("status", help="how runs are doing: uniser status RUN...")
    commands.add_parser("aot", help="does it fit: uniser aot --config=configs/klein.py --topology=v5p:4x4x4")

    add = commands.add_parser("restore", allow_abbrev=False, help="remove soft effects from a photograph")
    add.set_defaults(command=restore)
    add.add_argument("input", type=pathlib.Path, help="the photograph: JPEG, PNG, WebP or TIFF")
    add.add_argument("-o", "--output", type=pathlib.Path, required=True, help="the file to write; it may be the input")
    _add_checkpoint(add)
    add.add_argument(
        "--task",
        action="append",
        default=[],
        help="haze, shadow, reflection, flare, or effects (default), which are all; 'add haze' and so on add one",
    )
    add.add_argument(
        "--mask", type=pathlib.Path, help="gray image of the photograph's size: white is restored, black is kept"
    )
    add.add_argument("--strength", type=float, default=1.0, help="0 keeps the photograph, 1 removes the whole effect")
    add.add_argument("--steps", type=int, help="Euler steps (default: the config's)")

    add = commands.add_parser("evaluate", allow_abbrev=False, help="PSNR and SSIM, input against restored, per effect")
    add.set_defaults(command=evaluate)
    _add_checkpoint(add)
    source = add.add_mutually_exclusive_group()
    source.add_argument(
        "--photos", help="photographs to render held-out edits on (default: the run's own held-out ones)"
    )
    source.add_argument("--pairs", type=pathlib.Path, help="a manifest.csv of real pairs")
    add.add_argument(
        "--held-out", action="store_true", help="render effects that no model is trained on: rain, smudges, stains, ..."
    )
    add.add_argument(
        "--protocol", default="uniform", help="how a benchmark scores, see uniser_jax.evaluation.protocols"
    )
    add.add_argument("--codec-only", action="store_true", help="what the autoencoder makes of the targets: the bound")
    add.add_argument("--count", type=_at_least(1), help="edits per effect (default: the config's)")
    add.add_argument("--json", type=pathlib.Path, help="a file for the table, as JSON")
    add.add_argument("--markdown", type=pathlib.Path, help="a file for the table, as it is printed")

    add = commands.add_parser(
        "preview", allow_abbrev=False, help="the examples a config trains on, with their parameters"
    )
    add.set_defaults(command=preview)
    add.add_argument("--config", required=True, help="configs/NAME.py, as a run is given; overrides may follow")
    output = pathlib.Path("preview.png")
    add.add_argument("-o", "--output", type=pathlib.Path, default=output, help=f"the sheet (default: {output})")
    add.add_argument("--effect", choices=EFFECTS, help="only examples with this effect")
    add.add_argument("--seed", type=int, help="of the stream (default: the config's)")
    add.add_argument("--index", type=_at_least(0), nargs="*", help="global indices of examples, such as a log names")
    add.add_argument("--count", type=_at_least(1), default=8, help="examples, where no index is given")
    for add in commands.choices.values():
        add.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="log what happens")
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=pathlib.Path, help="a run folder (default: the newest under runs/)")
    parser.add_argument(
        "--at", type=step_of, help="which checkpoint: a step, best (of the held-out loss) or newest (default)"
    )
    parser.add_argument("--base", type=pathlib.Path, help="its converted base, where that was moved since training")


def step_of(text: str) -> int | str | None:
    """What `--at` names: a step, `best`, or `newest` as None."""
    if text in ("newest", "best"):
        return None if text == "newest" else text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a step, best or newest")
    return int(text)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
        return int(text)

    return number


def _restorer(arguments: argparse.Namespace) -> Any:
    # A Restorer, whose module starts jax: it is imported only where it is used.
    from uniser_jax.checkpoint import newest_run
    from uniser_jax.restore.restorer import Restorer

    run = arguments.checkpoint or newest_run()
    return Restorer.from_checkpoint(run, step=arguments.at, base=arguments.base)


def _no_more(rest: list[str]) -> None:
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; see --help")


if __name__ == "__main__":
    sys.exit(main())
