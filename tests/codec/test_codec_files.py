"""Checkpoints in and out: bits kept, hostile and damaged files refused."""

import contextlib
import json
import pickle
import resource
import time
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
from tests.tiny import SMALL, init

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


def reference(key=b"0", count=b"K\x04", shape=b"(K\x04t", stride=b"(K\x01t", offset=b"K\x00"):
    """The pickle of one tensor."""
    identity = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key
    identity += b"X\x03\x00\x00\x00cpu" + count + b"tQ"
    arguments = b"(" + identity + offset + shape + stride + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def name(text):
    return b"X" + len(text).to_bytes(4, "little") + text


NESTED = b"K\x01" + b"2\x86" * 60  # a tuple of a tuple twice of a tuple twice ...


@pytest.mark.parametrize(
    "description",
    [
        b"\x80\x02}" + NESTED + b"K\x01s.",
        b"\x80\x02}(" + NESTED + b"K\x01u.",
        b"\x80\x02ccollections\nOrderedDict\n]" + NESTED + b"K\x01\x86a\x85R.",
        b"\x80\x02" + NESTED + b")R.",  # as a function, which an error message would show
        b"\x80\x02(" + name(b"storage") + NESTED + name(b"0") + name(b"cpu") + b"K\x01tQ.",
        b"\x80\x02(" + name(b"storage") + b"ctorch\nFloatStorage\n" + NESTED + b"K\x01K\x01tQ.",
        b"\x80\x02" + reference(shape=NESTED) + b".",
        b"\x80\x02" + reference(shape=b"(" + b"K\x01" * 100 + b"t") + b".",
        b"\x80\x02" + reference(count=b"\x8a\x0f" + b"\xff" * 14 + b"\x7f") + b".",
        b"\x80\x02" + b"]" * (3 << 20) + b".",
        b"\x80\x02" + NESTED * 60_000 + b".",
        b"\x80\x04" + NESTED + NESTED + b"\x93.",
    ],
    ids=range(12),
)
def test_a_small_description_cannot_ask_for_much(tmp_path, description):
    """Time and memory are bounded whatever a description says of itself."""
    path = tmp_path / "bad.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", description)
        file.writestr("archive/data/0", bytes(16))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(torch_file.TorchFileError, match=r"bad\.pt"):
        torch_file.read_state_dict(path)
    assert time.process_time() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB


def test_shared_and_deflated_storages_cannot_multiply(tmp_path):
    """A storage of 256 MiB of zeros in a file of 256 KiB, and one that two thousand names share."""
    four = reference()
    many = b"".join(name(b"w%d" % i) + b"h\x01" for i in range(2000))
    shared = b"\x80\x02}q\x00" + name(b"w") + four + b"q\x01sq\x00(" + many + b"u."
    wide = shared.replace(b"K\x04", b"M\x00\x40")  # 2 ** 14 elements
    path = archive(tmp_path / "shared.pt", wide, [bytes(1 << 16)])
    with pytest.raises(torch_file.TorchFileError, match="its tensors claim 131137536 bytes"):
        torch_file.read_state_dict(path)
    count = b"J" + (1 << 26).to_bytes(4, "little")
    bomb = b"\x80\x02}" + name(b"w") + reference(count=count, shape=b"(" + count + b"t") + b"s."
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bomb)
        with file.open("archive/data/0", "w") as entry:
            for _ in range(256):
                entry.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(torch_file.TorchFileError, match="its tensors claim 268435456 bytes"):
        torch_file.read_state_dict(tmp_path / "bomb.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_tied_tensors_and_nested_state_dicts_are_read(tmp_path):
    one = name(b"encoder") + b"}" + name(b"w") + reference() + b"q\x01ss"
    two = name(b"decoder") + b"}" + name(b"w") + b"h\x01ss"
    values = np.arange(4, dtype=np.float32)
    path = archive(tmp_path / "x.pt", b"\x80\x02}" + one + two + b".", [values.tobytes()])
    found = torch_file.read_state_dict(path)
    assert list(found) == ["encoder.w", "decoder.w"]
    np.testing.assert_array_equal(found["decoder.w"], values)


def test_bigcodecs_encoder_is_read_beside_its_generator(tmp_path):
    one = name(b"CodecEnc") + b"}" + name(b"w") + reference() + b"q\x01ss"
    two = name(b"generator") + b"}" + name(b"w") + b"h\x01ss"
    raw = np.arange(4, dtype=np.float32).tobytes()
    path = archive(tmp_path / "x.pt", b"\x80\x02}" + one + two + b".", [raw])
    assert list(torch_file.read_state_dict(path)) == ["CodecEnc.w", "generator.w"]
    path = archive(
        tmp_path / "y.pt", b"\x80\x02}" + two.replace(b"h\x01", reference()) + b".", [raw]
    )
    assert list(torch_file.read_state_dict(path)) == ["w"]
