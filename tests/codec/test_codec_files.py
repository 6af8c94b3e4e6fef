"""Checkpoints in and out: bits kept, hostile and damaged files refused."""

import contextlib
import json
import pickle
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from llmcodec_jax.codec import store, torch_file
from llmcodec_jax.codec.auv import published
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.layout import LayoutError
from llmcodec_jax.codec.registry import from_fields, to_fields
from llmcodec_jax.codec.store import save_codec_folder, save_safetensors, save_torch
from tests.codec.small_codec import SMALL, init

GOLDEN = Path(__file__).parents[1] / "parity/data/auv_small.pt"


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_import_export_import_keeps_every_bit(tmp_path):
    codec, variables = store.load(GOLDEN)
    theirs = torch_file.read_state_dict(GOLDEN)
    save_torch(tmp_path / "again.pt", codec, variables)
    save_safetensors(tmp_path / "again.safetensors", codec, variables)
    save_codec_folder(tmp_path / "run/codec", codec, variables)
    for path in ("again.pt", "again.safetensors", "run/codec", "run"):
        again, back = store.load(tmp_path / path)
        assert again == codec
        assert_same(back, variables)
    exported = torch_file.read_state_dict(tmp_path / "again.pt")
    assert list(exported) == list(theirs)
    for name, value in theirs.items():
        assert exported[name].dtype == value.dtype
        assert exported[name].shape == value.shape
        if not name.endswith("window"):  # a buffer: Hann to the last bit but one
            assert exported[name].tobytes() == value.tobytes(), name


def test_same_weights_give_the_same_file(tmp_path, small):
    for name in ("a.pt", "b.pt"):
        save_torch(tmp_path / name, *small)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.parametrize("fields", [dict(levels=3), dict(conv_norm="rms", ffn_multiple=2)])
def test_other_architectures_survive_the_folder(tmp_path, fields):
    codec = AUV(**SMALL, **fields)
    variables = init(codec)
    save_codec_folder(tmp_path, codec, variables)
    again, back = store.load(tmp_path)
    assert again == codec
    assert_same(back, jax.device_get(variables))


def test_fields_survive_json():
    codec = AUV(partitions=((0, 5), (0, 6), (0, 9), (0, 9), (5, 9)), dtype="bfloat16")
    assert from_fields(AUV, json.loads(json.dumps(to_fields(codec)))) == codec
    with pytest.raises(ValueError, match="no fields widht"):
        from_fields(AUV, {"widht": 3})


def test_sidecar_tells_what_shapes_cannot(tmp_path):
    (tmp_path / "auv.pt").write_bytes(GOLDEN.read_bytes())
    (tmp_path / "auv.json").write_text('{"head_dim": 32, "sample_rate": 24000}')
    codec, _ = store.load(tmp_path / "auv.pt")
    assert (codec.head_dim, codec.sample_rate, codec.width) == (32, 24000, 128)


def test_wrong_architecture_names_the_first_tensors(small):
    with pytest.raises(LayoutError) as error:
        store.load(GOLDEN, expect=small[0])
    assert "params/decoder/conformer/layers/attention/out/bias: (3, 128) instead of (1, 32)" in (
        str(error.value)
    )
    assert "more" in str(error.value)


def test_missing_and_extra_tensors_are_named(tmp_path, small):
    tensors = published.to_published(*small)
    tensors["token2wav.extra"] = tensors.pop("token2wav.istft_head.out.bias")
    torch_file.write_state_dict(tmp_path / "x.pt", tensors)
    with pytest.raises(LayoutError, match=r"out.bias: missing\n.*extra: not part"):
        store.load(tmp_path / "x.pt")


def test_missing_codec_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        store.load(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"codec\.json"):
        store.load(tmp_path)


def archive(path, description, storages=()):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", description)
        for key, data in enumerate(storages):
            file.writestr(f"archive/data/{key}", data)
    return path


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_hostile_pickle_is_refused_and_not_run(tmp_path):
    target = tmp_path / "written"
    for protocol in (2, 4):
        bad = archive(tmp_path / "bad.pt", pickle.dumps({"auv": Hostile(target)}, protocol))
        with pytest.raises(torch_file.TorchFileError, match=r"bad.pt: refused.*open"):
            torch_file.read_state_dict(bad)
        assert not target.exists()


@pytest.mark.parametrize(
    "description",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",  # a constructor without arguments
        b"\x80\x02}q\x00(h\x00h\x00u.",  # a dict as its own key
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02}",  # ends early
        b"\x80\x02.",  # nothing on the stack
        b"\x80\x02K\x01u.",  # no mark
        b"\x80\x02h\x05.",  # nothing remembered
        b"",
        b"\xff\xfe\x00garbage",
        b"\x80\x02X\xff\xff\xff\x7fab.",  # a string longer than the file
    ],
)
def test_malformed_descriptions_are_refused(tmp_path, description):
    with pytest.raises(torch_file.TorchFileError, match=r"bad\.pt"):
        torch_file.read_state_dict(archive(tmp_path / "bad.pt", description))


def test_every_truncation_is_an_error_not_a_crash(tmp_path, small):
    save_torch(tmp_path / "whole.pt", *small)
    whole = (tmp_path / "whole.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    for size in [0, 1, 100, *range(1000, len(whole), len(whole) // 20), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(torch_file.TorchFileError, match=r"cut\.pt"):
            torch_file.read_state_dict(cut)


def test_damaged_bytes_are_an_error_or_a_layout_error(tmp_path, small):
    """Flipping bytes anywhere may only end in a refusal; the zip checksums catch the weights."""
    save_torch(tmp_path / "whole.pt", *small)
    whole = bytearray((tmp_path / "whole.pt").read_bytes())
    start = whole.index(b"tokenizer.stft_head") - 200
    rng = np.random.default_rng(0)
    for position in [*rng.integers(0, len(whole), 40), *range(start, start + 400, 7)]:
        damaged = whole.copy()
        damaged[position] ^= 0x55
        (tmp_path / "bad.pt").write_bytes(damaged)
        # A clear refusal or nothing; any other exception fails this test.
        with contextlib.suppress(torch_file.TorchFileError, LayoutError):
            store.load(tmp_path / "bad.pt")


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    writer = torch_file._Writer()
    writer.tensor("w", np.zeros((2, 3), np.float32), "0")
    good = writer.finish()
    for old, new in [
        (b"J\x02\x00\x00\x00J\x03", b"J\x09\x00\x00\x00J\x03"),  # shape [9, 3] of 6 elements
        (b"QJ\x00\x00\x00\x00", b"QJ\x01\x00\x00\x00"),  # offset 1
        (b"J\x06\x00\x00\x00tQ", b"J\xff\xff\xff\x7ftQ"),  # 2 ** 31 elements claimed
    ]:
        assert good.count(old) == 1
        bad = archive(tmp_path / "bad.pt", good.replace(old, new), [bytes(24)])
        with pytest.raises(torch_file.TorchFileError, match=r"bad\.pt"):
            torch_file.read_state_dict(bad)


def test_state_dict_under_its_key_and_older_names(tmp_path, small):
    """Training checkpoints nest the codec under `auv` beside other numbers."""
    codec, variables = small
    tensors = published.to_published(codec, variables)
    writer = torch_file._Writer()
    for index, (name, value) in enumerate(tensors.items()):
        name = name.replace(".parametrizations.weight.original0", ".weight_g")
        writer.tensor(
            name.replace(".parametrizations.weight.original1", ".weight_v"), value, str(index)
        )
    state = writer.finish()[2:-1]
    nested = b"\x80\x02}(X\x03\x00\x00\x00auv" + state + b"X\x04\x00\x00\x00stepK\x07u."
    path = archive(tmp_path / "nested.pt", nested, [v.tobytes() for v in tensors.values()])
    again, back = store.load(path)
    assert again == codec.clone(head_dim=64)  # which shapes cannot tell
    assert_same(back["params"], jax.device_get(variables["params"]))
