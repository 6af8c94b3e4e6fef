"""The one door: every form a codec was ever written in opens, and what cannot is named."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from llmcodec_jax.codec import hub, registry, store
from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.layout import LayoutError
from tests.tiny import SMALL

FIELDS_OF_THE_FIRST_FORMAT = (
    *("sample_rate", "hop", "width", "encoder_layers", "decoder_layers", "head_dim"),
    *("ffn_multiple", "conv_kernel", "conv_norm", "codebook_size", "code_dim", "levels"),
    *("partitions", "search_chunk", "dtype", "remat"),
)


def assert_same(one, two):
    one, two = (flatten_dict(jax.device_get(dict(tree))) for tree in (one, two))
    assert set(one) == set(two)
    for path, value in one.items():
        assert np.asarray(value).tobytes() == np.asarray(two[path]).tobytes(), path


def old_description(codec):
    """What codec.json and the metadata of a .safetensors held before they named architectures."""
    return {name: getattr(codec, name) for name in FIELDS_OF_THE_FIRST_FORMAT}


def published(small):
    return registry.family("auv").to_published(*small)


def old_folder(path, small):
    path.mkdir(parents=True)
    safetensors.numpy.save_file(
        published(small),
        path / "codec.safetensors",
        {"codec": json.dumps(old_description(small[0]))},
    )
    (path / "codec.json").write_text(json.dumps(old_description(small[0])))
    return path


def old_export(path, small):
    path = path.with_suffix(".safetensors")
    metadata = {"format": "np", "codec": json.dumps(old_description(small[0]))}
    safetensors.numpy.save_file(published(small), path, metadata)
    return path


def bare_weights(path, small):
    safetensors.numpy.save_file(published(small), path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text('{"head_dim": 16}')
    return path.with_suffix(".safetensors")


def torch_file(path, small):
    store.save_torch(path.with_suffix(".pt"), *small)
    path.with_suffix(".json").write_text('{"head_dim": 16}')
    return path.with_suffix(".pt")


def new_folder(path, small):
    store.save_codec_folder(path, *small)
    return path


def run_folder(path, small):
    store.save_codec_folder(path / "codec", *small)
    return path


def new_export(path, small):
    store.save_safetensors(path.with_suffix(".safetensors"), *small)
    return path.with_suffix(".safetensors")


def model_folder(path, small):
    path.mkdir()
    safetensors.numpy.save_file(published(small), path / "model.safetensors")
    (path / "config.json").write_text('{"head_dim": 16}')
    return path


FORMS = [old_folder, old_export, bare_weights, torch_file, new_folder, run_folder, new_export]


@pytest.mark.parametrize("write", [*FORMS, model_folder], ids=lambda f: f.__name__)
def test_every_form_opens_with_every_bit(tmp_path, small, write):
    codec, variables = store.load(write(tmp_path / "one", small))
    assert codec == small[0]
    assert_same(variables, small[1])


def test_our_folder_names_tensors_by_their_path(tmp_path, small):
    store.save_codec_folder(tmp_path, *small)
    description = json.loads((tmp_path / "codec.json").read_text())
    assert (description["architecture"], description["format"]) == ("auv", 1)
    names = set(safetensors.numpy.load_file(tmp_path / "codec.safetensors"))
    assert names == {"/".join(path) for path in flatten_dict(dict(small[1]))}


def test_bfloat16_folder_rounds_matrices_alone(tmp_path, small):
    store.save_codec_folder(tmp_path, *small, dtype="bfloat16")
    _, variables = store.load(tmp_path)
    whole, rounded = (flatten_dict(jax.device_get(dict(v))) for v in (small[1], variables))
    changed = {path for path in whole if not np.array_equal(whole[path], rounded[path])}
    assert {path[-1] for path in changed} == {"kernel", "depthwise", "direction"}
    assert all(rounded[path].dtype == np.asarray(whole[path]).dtype for path in whole)


def test_a_path_wins_over_a_shipped_name(tmp_path, small, monkeypatch):
    assert store.load("mini")[0].width == 192
    store.save_codec_folder(tmp_path / "mini", *small)
    monkeypatch.chdir(tmp_path)
    assert store.load("mini")[0] == small[0]


def broken(tmp_path, small, **changes):
    store.save_codec_folder(tmp_path, *small)
    config = json.loads((tmp_path / "codec.json").read_text()) | changes
    (tmp_path / "codec.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": "32"}, "width is '32', not a valid int"),
        ({"width": -1}, "width is -1"),
        ({"width": 1e9}, "width is 1"),
        ({"width": True}, "width is True"),
        ({"width": 64}, r"head|not the expected architecture"),
        ({"hop": 0}, "hop is 0|fields describe no codec"),
        ({"levels": 10**6}, "levels is 1000000"),
        ({"encoder_layers": 10**6}, "encoder_layers is 1000000"),
        ({"conv_norm": "x"}, "conv_norm"),
        ({"partitions": [[0, "a"]]}, "partitions is"),
        ({"colour": 1}, "no fields colour"),
        ({"architecture": "nothing"}, "no codec architecture 'nothing'"),
        ({"architecture": ["auv"]}, "no codec architecture"),
        ({"format": 99}, "codec format 99"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, small, changes, said):
    with pytest.raises(LayoutError, match=said) as error:
        store.load(broken(tmp_path, small, **changes))
    assert str(tmp_path / "codec.") in str(error.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)])
def test_an_unreadable_description_is_named(tmp_path, small, text):
    store.save_codec_folder(tmp_path, *small)
    (tmp_path / "codec.json").write_bytes(text)
    with pytest.raises(LayoutError, match=r"codec\.json"):
        store.load(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path, small):
    codec, variables = small
    variables = jax.tree.map(np.array, jax.device_get(dict(variables)))
    variables["params"]["quantizer"]["level_0"]["codebook"][3, 1] = np.nan
    store.save_codec_folder(tmp_path, codec, variables)
    with pytest.raises(LayoutError, match="quantizer/level_0/codebook holds NaN"):
        store.load(tmp_path)


def test_damaged_weights_are_named(tmp_path, small):
    store.save_codec_folder(tmp_path, *small)
    weights = tmp_path / "codec.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:7], whole[:200], whole[:-100], b"\xff" * 8 + whole[8:]):
        weights.write_bytes(damaged)
        with pytest.raises(LayoutError, match=r"codec\.safetensors: not a readable"):
            store.load(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"codec\.safetensors"):
        store.load(tmp_path)


def test_what_a_run_expects_is_checked(tmp_path, small):
    store.save_codec_folder(tmp_path, *small)
    assert store.load(tmp_path, small[0].clone(dtype="bfloat16"))[0].dtype == "bfloat16"
    with pytest.raises(LayoutError, match="codec of 16000 Hz, not 24000 Hz"):
        store.load(tmp_path, AUV(**SMALL, sample_rate=24_000))
    with pytest.raises(LayoutError, match=r"codebook: \(96, 8\) instead of \(97, 8\)"):
        store.load(tmp_path, AUV(**SMALL | {"codebook_size": 97}))


def test_a_folder_of_one_checkpoint_is_that_checkpoint(tmp_path, small):
    torch_file(tmp_path / "only", small)
    (tmp_path / "only.json").rename(tmp_path / "other.json")
    assert store.load(tmp_path)[0] == small[0].clone(head_dim=64)
    shutil.copy(tmp_path / "only.pt", tmp_path / "two.pt")
    with pytest.raises(FileNotFoundError, match=r"only\.pt, two\.pt: name one of them"):
        store.load(tmp_path)


def test_foreign_tensors_are_recognised_as_such(tmp_path):
    safetensors.numpy.save_file({"some.weight": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(LayoutError, match=r"x\.safetensors: tensors of no known codec.*some\.w"):
        store.load(tmp_path / "x.safetensors")


def test_the_digest_is_of_what_decides_codes(small, tmp_path):
    codec, variables = small
    expected = store.digest(codec, variables)
    store.save_codec_folder(tmp_path, codec, variables)
    assert store.digest(*store.load(tmp_path)) == expected
    assert store.digest(codec.clone(dtype="bfloat16"), variables) == expected
    changed = jax.tree.map(np.array, jax.device_get(dict(variables)))
    changed["batch_stats"]["quantizer"]["level_0"]["usage"][0] = 0.5
    assert store.digest(codec, changed) == expected
    changed["params"]["quantizer"]["level_0"]["codebook"][0, 0] += 1
    assert store.digest(codec, changed) != expected


def cached_repository(cache, small):
    """A repository as the Hub library keeps it, so that nothing needs the network."""
    commit = "0" * 40
    place = cache / "models--someone--codec"
    model_folder(place.joinpath("snapshots"), small).rename(place / "moved")
    (place / "snapshots").mkdir()
    (place / "moved").rename(place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)


def test_the_hub_is_read_through_its_cache(tmp_path, small, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--someone--codec").mkdir()
    cached_repository(tmp_path, small)
    assert store.load("hf:someone/codec")[0] == small[0]
    file = "hf:someone/codec/model.safetensors"
    assert store.load(file)[0] == small[0].clone(head_dim=64)
    for absent in ("hf:someone/other", "hf:someone/codec@v2", "hf:someone/codec/nothing.pt"):
        with pytest.raises(hub.HubError, match=f"{absent}: not in the cache"):
            store.load(absent)
    with pytest.raises(hub.HubError, match="write hf:OWNER/NAME"):
        store.load("hf:codec")
