"""Every family's published files, damaged or hostile: refused by file and tensor, nothing run."""

import pickle

import numpy as np
import pytest
import safetensors.numpy

from llmcodec_jax.codec import layout, store, torch_file
from llmcodec_jax.codec.layout import LayoutError
from tests.codec.test_codec_files import archive
from tests.parity.golden import DATA, FAMILIES, read, weights


def modern(name):
    return next(iter(layout.modern_names({name: np.zeros(0)})))


class Published:
    """A family's small published checkpoint as files."""

    def __init__(self, family, folder):
        meta, _ = read(DATA / f"{family}.npz")
        self.tensors, self.folder = weights(meta), folder
        module = FAMILIES[family]
        codec, _ = module.from_published(self.tensors, meta["config"])
        ignored = getattr(module, "unused", lambda codec: {})(codec)
        self.read = [name for name in self.tensors if modern(name) not in ignored]

    def load(self, name, **changed):
        """The file of these tensors, some of them changed (None: left out), through the store."""
        tensors = {**self.tensors, **changed}
        path = self.folder / f"{name}.safetensors"
        kept = {name: np.ascontiguousarray(x) for name, x in tensors.items() if x is not None}
        safetensors.numpy.save_file(kept, path)
        return store.load(path)

    def some(self):
        """Names from the beginning, the middle and the end, of more than one dimension."""
        names = [name for name in self.read if self.tensors[name].ndim > 1]
        return names[0], names[len(names) // 2], names[-1]


@pytest.fixture(scope="module", params=FAMILIES)
def published(request, tmp_path_factory):
    return Published(request.param, tmp_path_factory.mktemp(request.param))


def test_a_missing_tensor_is_named_with_its_file(published):
    for name in published.some():
        with pytest.raises(LayoutError) as error:
            published.load("missing", **{name: None})
        assert "missing.safetensors: " in str(error.value)
        # Where it ends a stack of layers that is counted, its neighbours are too many.
        layer = modern(name).rsplit(".", 2)[0]
        assert layer in str(error.value) or "no known codec" in str(error.value)


def test_a_tensor_of_another_shape_is_named_with_its_file(published):
    for name in published.some():
        value = published.tensors[name]
        longer = np.concatenate([value, value[:1]])
        with pytest.raises(LayoutError, match=r"longer\.safetensors: "):
            published.load("longer", **{name: longer})
        with pytest.raises(LayoutError, match=r"empty\.safetensors: "):
            published.load("empty", **{name: value[:0]})
        with pytest.raises(LayoutError, match=r"flat\.safetensors: "):
            published.load("flat", **{name: value.reshape(-1)})


def test_a_value_that_is_no_number_is_named_with_its_file(published):
    name = published.some()[1]
    broken = published.tensors[name].copy()
    broken.flat[0] = np.nan
    with pytest.raises(LayoutError, match=r"nan\.safetensors: .* holds NaN"):
        published.load("nan", **{name: broken})


class Runs:
    """Marks a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_pickle_with_the_familys_names_runs_nothing(published):
    mark = published.folder / "mark"
    names = list(published.tensors)
    for hidden in ({names[0]: Runs(mark)}, {"state_dict": {names[-1]: [Runs(mark)]}}):
        archive(published.folder / "evil.pt", pickle.dumps(hidden, protocol=2))
        with pytest.raises(torch_file.TorchFileError, match=r"evil\.pt"):
            store.load(published.folder / "evil.pt")
        assert not mark.exists()
