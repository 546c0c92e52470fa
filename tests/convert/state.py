"""State dicts and trees through the table, whole."""

import numpy as np
import torch

from convert import mapping


def numpy_state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


def ours_of(rows: tuple[mapping.Row, ...], shapes, state: dict[str, np.ndarray]):
    """A torch state dict as our tree."""
    tensors = mapping.plan(rows, shapes)
    mapping.check(tensors, {key: value.shape for key, value in state.items()}, "the state dict")
    leaves = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in mapping.flatten(shapes).items()}
    for tensor in tensors:
        for part, values in mapping.to_ours(tensor, state[tensor.key]):
            leaves[part.path][part.slices] = values
    return mapping.unflatten(leaves)


def torch_of(rows: tuple[mapping.Row, ...], tree) -> dict[str, np.ndarray]:
    """Our tree as a torch state dict."""
    leaves = mapping.flatten(tree)
    return {tensor.key: mapping.to_torch(tensor, leaves.__getitem__) for tensor in mapping.plan(rows, tree)}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
