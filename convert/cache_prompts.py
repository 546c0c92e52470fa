"""What klein's text encoder makes of the closed prompt set, computed once.

    python -m convert.cache_prompts --text-encoder FOLDER OUT.safetensors
    python -m convert.from_diffusers FLUX.2-klein-base-4B runs/klein_base --prompts OUT.safetensors

FOLDER is a pipeline folder with `text_encoder/` and `tokenizer/`. Each of the eleven requests becomes a tensor [1, tokens,
features] under the name that exports use, all as long as the longest: 496 tokens of padding, which the stock pipeline lets the
transformer read, are left out, which fine-tuning absorbs. Needs torch and transformers, and memory for the encoder.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from convert import command, tensorfile
from uniser_jax.types import TASKS, prompt_name


def embed(folder: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Name to embedding, float32.

    Raises:
      ValueError: if the folder lacks an encoder or a tokenizer.
    """
    from diffusers import Flux2KleinPipeline
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pathlib.Path(folder)
    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder / part} is missing: name a pipeline folder with its text encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = AutoModelForCausalLM.from_pretrained(folder / "text_encoder", dtype="auto").eval()
    longest = max(_length(tokenizer, task) for task in TASKS)
    embedded = {}
    for task in TASKS:  # one at a time: the encoder is large
        values = Flux2KleinPipeline._get_qwen3_prompt_embeds(encoder, tokenizer, task, max_sequence_length=longest)
        embedded[prompt_name(task)] = values.detach().float().numpy()
    return embedded


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for a mistake of the caller's."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser("convert.cache_prompts", description=__doc__.splitlines()[0])
    parser.add_argument("--text-encoder", type=pathlib.Path, required=True, help="a pipeline folder")
    parser.add_argument("out", type=pathlib.Path, help="the .safetensors file to write")
    arguments = parser.parse_args(argv)

    def work() -> str:
        embedded = embed(arguments.text_encoder)
        announced = {name: (value.dtype, value.shape) for name, value in embedded.items()}
        tensorfile.write(arguments.out, announced, embedded.__getitem__)
        _, length, features = next(iter(embedded.values())).shape
        return f"{arguments.out}: {len(embedded)} prompts of {length} tokens, {features} features"

    return command.run(parser.prog, work)


def _length(tokenizer: object, task: str) -> int:
    """Tokens of a request as the pipeline words it."""
    messages = [{"role": "user", "content": task}]
    template = tokenizer.apply_chat_template  # type: ignore[attr-defined]
    text = template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return len(tokenizer(text)["input_ids"])  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
