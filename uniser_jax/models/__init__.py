"""Diffusion transformers in the FLUX.2 block structure, and what turns images into their tokens."""
