"""uniser-jax: one diffusion transformer that removes lens flare, haze, shadows and reflections from photographs."""

__version__ = "0.1.0"
