"""From a photograph of any size to the same file, restored."""
