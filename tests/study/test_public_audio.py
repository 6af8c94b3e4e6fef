"""The study's public data: what the packages unpack to becomes sources that `reproduce` reads."""

import io
import struct

import numpy as np
import pytest
import soundfile

from llmcodec_jax import audio
from llmcodec_jax.data import embedded
from llmcodec_jax.study import public_audio
from llmcodec_jax.study.material import find_sources
from tests.data.test_data_embedded import sound_packages, write_g722
from tests.tiny import tone


def catalogue(entries: dict[str, np.ndarray], rate: int) -> bytes:
    """A catalogue of sounds with the given titles."""
    table, body, start = b"", b"", 8 * len(entries)
    for title, wav in entries.items():
        file = io.BytesIO()
        soundfile.write(file, wav, rate, format="WAV", subtype="PCM_16")
        name = title.encode() + b"\0"
        mark = 1 << 31 if not table else 0
        table += struct.pack("<II", start + len(body) | mark, len(file.getvalue()))
        body += bytes([len(name)]) + name + file.getvalue()
    return table + body


@pytest.fixture
def packages(monkeypatch):
    """Stands in for Debian's archive: the same layouts, in small and of our own."""

    def unpack(names, folder):
        (folder / f"usr/share/doc/{names[0]}").mkdir(parents=True)
        (folder / f"usr/share/doc/{names[0]}/copyright").write_text(f"licence of {names[0]}")
        if names[0] == "asterisk-moh-opsound-g722":
            write_g722(folder / "song.g722", tone(21.0, 300, 16_000))
        elif names[0] == "openttd-opensfx":
            sounds = {
                "Horn. By A.": tone(0.5, 200, 44_100),
                "Nothing": np.zeros(0),
                "Bell": tone(0.25, 900, 44_100),
            }
            (folder / "opensfx.cat").write_bytes(catalogue(sounds, 44_100))
        else:
            sound_packages(folder, names[1].rsplit("-", 1)[1])

    monkeypatch.setattr(public_audio, "fetch_debian", unpack)
    monkeypatch.setattr(embedded, "fetch_debian", unpack)
    monkeypatch.setattr(public_audio, "build_spoken", lambda folder, count: None)


def test_every_source_is_read_as_what_it_is(packages, tmp_path, monkeypatch):
    public_audio.build(tmp_path)
    found = find_sources(tmp_path, {"speech": 0.8, "music": 0.1, "audio": 0.1})
    names = {spec.rpartition("/")[2]: (spec.partition(":")[0], domain) for spec, _, domain in found}
    prompts = {f"prompts_{language}": ("librispeech", "speech") for language in embedded.CREDITS}
    assert names == prompts | {"music": ("folder", "music"), "sound": ("folder", "audio")}
    assert len(list((tmp_path / "music").glob("*.flac"))) == 2  # the last second is dropped
    assert (tmp_path / "music" / "COPYRIGHT.txt").read_text().startswith("licence of asterisk-moh")
    wav = audio.load(tmp_path / "sound" / "sfx_002.flac", 16_000)
    assert len(wav) == 4_000
    assert not (tmp_path / "sound" / "sfx_001.flac").exists()  # holds no sample
    assert "sfx_000: Horn. By A.\n" in (tmp_path / "sound" / "ATTRIBUTION.txt").read_text()
    assert "Carlo Flora" in (tmp_path / "prompts_it" / "ATTRIBUTION.txt").read_text()
    speakers = [next((tmp_path / f"prompts_{which}").glob("?")).name for which in ("en", "ru")]
    assert speakers == ["1", "5"]
    for module in (public_audio, embedded):
        monkeypatch.setattr(module, "fetch_debian", None)  # would fail: nothing is fetched again
    public_audio.build(tmp_path)


@pytest.mark.parametrize("damage", [lambda d: d[:3], lambda d: d[:60], lambda d: b"\x40" + d[1:]])
def test_damaged_catalogues_are_refused(damage):
    whole = catalogue({"a": tone(0.2, 300, 8_000), "b": tone(0.2, 300, 8_000)}, 8_000)
    assert [title for title, _ in public_audio.read_catalogue(whole)] == ["a", "b"]
    with pytest.raises(audio.AudioError, match="catalogue"):
        list(public_audio.read_catalogue(damage(whole)))
