"""The safetensors reader, compared with the library that writes the files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from deltaw_client.tensor_file import unpack

SHAPES = st.lists(st.integers(0, 4), max_size=3)


@given(
    st.dictionaries(
        st.text("ab.01", min_size=1, max_size=8),
        st.tuples(SHAPES, st.sampled_from([np.float32, np.float64])),
        max_size=5,
    ),
    st.text(max_size=20).filter(lambda text: text.isprintable()),
)
def test_reader_returns_what_the_library_saved(
    kinds: dict[str, tuple[list[int], type[np.float32]]], response: str
) -> None:
    """Names, shapes, dtypes and bits of tensors survive."""
    generator = np.random.default_rng(7)
    tensors = {
        name: generator.standard_normal(shape).astype(kind) for name, (shape, kind) in kinds.items()
    }
    said, read = unpack(save(tensors, {"response": response}))
    assert said == response
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].tobytes() == tensor.tobytes()


def test_arrays_are_read_only_views() -> None:
    """An array is a view of the content and cannot be written."""
    content = save({"a": np.ones(3, np.float32)}, {"response": ""})
    _, read = unpack(content)
    assert not read["a"].flags.owndata
    assert not read["a"].flags.writeable


WHOLE = save({"a": np.ones((2, 3), np.float32)}, {"response": "{}"})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 7,
        b"\xff" * 64,
        WHOLE[:-1],
        WHOLE[:40],
        WHOLE.replace(b"F32", b"B16"),
        WHOLE.replace(b"[2,3]", b"[2,4]"),
        WHOLE.replace(b"[0,24]", b"[8,32]"),
        WHOLE.replace(b"response", b"respond."),
        save({"a": np.ones(3, np.float32)}),
    ],
)
def test_broken_file_raises_value_error(content: bytes) -> None:
    """A file that is cut off or contradicts itself raises ValueError and nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011 - numpy, json and this module each say it
        unpack(content)
