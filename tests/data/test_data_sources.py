"""Sources: layouts, manifests, splits, shards, prepared TFDS sets."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llmcodec_jax import audio
from llmcodec_jax.audio import AudioError
from llmcodec_jax.data.arrayrecords import MAGIC, unpack
from llmcodec_jax.data.folders import FolderSource, LibriSpeechSource
from llmcodec_jax.data.prepare import prepare
from llmcodec_jax.data.records import ArraySound, EncodedSound
from llmcodec_jax.data.sources import open_mixture, open_source, split_source
from llmcodec_jax.data.tfds import TfdsSource
from llmcodec_jax.data.words import Aligned, read_words
from tests.tiny import TONE_RATE, make_loader, tone, write_corpus

TFDS_SETS = Path(__file__).parent / "tfds_sets"


@pytest.fixture
def tfds_dir(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS_SETS))


def samples(record) -> np.ndarray:
    return record.sound.read(0, record.sound.samples)


# LibriSpeech's layout


def test_librispeech_layout(tmp_path):
    source = LibriSpeechSource(write_corpus(tmp_path))
    source = pickle.loads(pickle.dumps(source))
    assert len(source) == 18
    record = source.record(7)
    assert (record.name, record.text) == ("2-7-0001", "SPEAKER 2 SAYS 1")
    assert record.name == source.name(7)
    assert record.speaker == source.group(7) == "2"
    np.testing.assert_allclose(samples(record), tone(0.85, 210), atol=1e-4)


def test_librispeech_gaps_are_told_not_fatal(tmp_path, caplog):
    write_corpus(tmp_path)
    (tmp_path / "1/7/1-7-0002.flac").unlink()
    audio.write(tmp_path / "1/7/1-7-0100.flac", tone(1.0), TONE_RATE)
    source = LibriSpeechSource(tmp_path)
    assert "1 transcribed clips have no audio" in caplog.text
    names = [source.name(i) for i in range(len(source))]
    assert "1-7-0002" not in names
    assert source.record(names.index("1-7-0100")).text is None


def test_librispeech_alignments(tmp_path):
    write_corpus(tmp_path)
    times = '1-7-0001 ",SPEAKER,,ONE" "0.100,0.400,0.500,0.850"\n'
    (tmp_path / "1/7/1-7.alignment.txt").write_text(times)
    (tmp_path / "1/7/1-7-0002.words.tsv").write_text("# seconds\n0.5\t0.9\tsays\n0.1\t0.4\twho\n")
    source = LibriSpeechSource(tmp_path)
    assert source.record(1).words == ((0.1, 0.4, "SPEAKER"), (0.5, 0.85, "ONE"))
    assert source.record(2).words == ((0.1, 0.4, "who"), (0.5, 0.9, "says"))
    assert source.record(3).words == ()
    for bad in ('"A,B" "0.1"', '"A" "soon"', "A 0.1", '"A" ""'):
        (tmp_path / "1/7/1-7.alignment.txt").write_text(f"\n1-7-0001 {bad}\n")
        with pytest.raises(AudioError, match=r"alignment\.txt:2"):
            source.record(1)


@pytest.mark.usefixtures("tfds_dir")
def test_alignments_of_a_set_that_has_none(tmp_path):
    """By the corpus's own ids, which a TFDS record holds inside."""
    (tmp_path / "any" / "1").mkdir(parents=True)
    (tmp_path / "any/1/1-1.alignment.txt").write_text('1-1-0004 "TONE,FOUR" "0.1,0.25"\n')
    with pytest.raises(AudioError, match="no SPEAKER-CHAPTER"):
        Aligned(open_source("tfds:tiny_speech:train_clean"), tmp_path / "any" / "2")
    (part,) = open_mixture("tfds:tiny_speech:train_clean", alignments=tmp_path)
    records = [part.source.record(index) for index in range(len(part.source))]
    words = {record.utterance: record.words for record in records}
    assert words["1-1-0004"] == ((0.0, 0.1, "TONE"), (0.1, 0.25, "FOUR"))
    assert [bool(found) for found in words.values()].count(True) == 1


def test_librispeech_of_something_else(tmp_path):
    audio.write(tmp_path / "a.wav", tone(1.0), TONE_RATE)
    with pytest.raises(AudioError, match="use folder:DIR"):
        LibriSpeechSource(tmp_path)
    with pytest.raises(AudioError, match="no such folder"):
        LibriSpeechSource(tmp_path / "nowhere")


# Folders and manifests


def test_folder_of_many_formats(tmp_path):
    for place, kind in (("a/one.wav", None), ("two.flac", None), ("b/three.ogg", "VORBIS")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / place, tone(1.0, rate=16000), 16000, subtype=kind)
    soundfile.write(tmp_path / "four.opus", tone(1.0, rate=16000), 16000, "OPUS", format="OGG")
    soundfile.write(tmp_path / "five.mp3", tone(1.0, rate=16000), 16000)
    (tmp_path / "a" / "one.txt").write_text(" what one says\n")
    source = FolderSource(tmp_path)
    assert [source.name(i) for i in range(5)] == ["a/one", "b/three", "five", "four", "two"]
    assert source.record(0).text == "what one says"
    assert source.record(1).text is None
    for index in range(5):
        wav = samples(source.record(index))
        assert abs(len(wav) - 16000) < 0.2 * 16000
        assert 0.25 < np.sqrt(np.mean(wav**2)) < 0.32  # of a sine of 0.4


def test_manifest(tmp_path):
    for name in ("x/1.wav", "x/2.wav", "y.wav", "not listed.wav"):
        audio.write(tmp_path / name, tone(1.0), TONE_RATE)
    rows = (
        'path\ttext\tspeaker\tdomain\nx/1.wav\tsaid "one"\tann\tspeech\n\nx/2.wav\t\tbob\tmusic\n'
    )
    (tmp_path / "manifest.tsv").write_bytes(b"\xef\xbb\xbf" + rows.replace("\n", "\r\n").encode())
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 2
    first, second = source.record(0), source.record(1)
    assert (first.name, first.text, first.speaker) == ("x/1", 'said "one"', "ann")
    assert (second.text, second.domain, source.group(1)) == (None, "music", "bob")
    other = tmp_path / "other.tsv"
    other.write_text("path\ny.wav\nmissing.wav\n")
    source = open_source(f"folder:{other}")
    assert source.record(0).name == "y"
    with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
        source.record(1)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r":1: the first line must name the columns"),
        (b"a.wav\thello\n", r":1: the first line must name the columns"),
        (b"path\tpath\na.wav\tb.wav\n", r":1: the first line"),
        (b"path\ttext\na.wav\n", r":2: 1 columns, the header has 2"),
        (b"path\ttext\na.wav\tone\nb.wav\tone\ttwo\n", r":3: 3 columns"),
        (b"path\ttext\na.wav\tone\n\na.wav\ttwo\n", r":4: a.wav is already on line 2"),
        (b"path\tdomain\na.wav\tbirdsong\n", r":2: domain 'birdsong'"),
        (b"path\ttext\n\tno path\n", r":2: the path is empty"),
        (b"path\ttext\na\0.wav\tnul\n", r":2: "),
        (b"path\ttext\n\n\n", r"names no audio file"),
        (b"path\ttext\na.wav\t\xff\xfe\n", r"UTF-8"),
    ],
)
def test_bad_manifests_are_refused_by_line(tmp_path, content, complaint):
    (tmp_path / "manifest.tsv").write_bytes(content)
    with pytest.raises(AudioError, match=complaint) as error:
        FolderSource(tmp_path)
    assert "manifest.tsv" in str(error.value)


def test_very_long_manifest_fields(tmp_path):
    audio.write(tmp_path / "a.wav", tone(1.0), TONE_RATE)
    (tmp_path / "manifest.tsv").write_text("path\ttext\na.wav\t" + "word " * 100_000 + "\n")
    assert len(FolderSource(tmp_path).record(0).text) > 400_000


def test_names_stay_unique(tmp_path):
    for name in ("a.wav", "a.flac", "b.wav"):
        audio.write(tmp_path / name, tone(1.0), TONE_RATE)
    source = FolderSource(tmp_path)
    assert [source.name(i) for i in range(3)] == ["a.flac", "a.wav", "b"]


def test_bad_words_name_the_line(tmp_path):
    path = tmp_path / "a.words.tsv"
    for content in ("0.1\tword\n", "0.1\tx\tword\n", "0.5\t0.1\tword\n", "-1\t0.1\tword\n"):
        path.write_text("0\t1\tfine\n" + content)
        with pytest.raises(AudioError, match=r"a.words.tsv:2"):
            read_words(path.read_text(), path)


# Sounds


def test_array_sounds_are_scaled_and_checked():
    wav = tone(0.1)
    for array in (wav, (wav * 32768).astype(np.int16), np.stack([wav, wav], 1)):
        np.testing.assert_allclose(
            ArraySound(array, TONE_RATE, "x").read(10, 50), wav[10:50], atol=1e-4
        )
    with pytest.raises(AudioError, match="x: holds no samples"):
        ArraySound(np.zeros(0), TONE_RATE, "x")
    with pytest.raises(AudioError, match="NaN"):
        ArraySound(np.array([0.0, np.nan]), TONE_RATE, "x").read(0, 2)


def test_pieces_of_a_file_are_those_of_the_whole(tmp_path):
    audio.write(tmp_path / "a.flac", tone(2.0), TONE_RATE)
    sound = EncodedSound(tmp_path / "a.flac")
    whole = sound.read(0, sound.samples)
    np.testing.assert_array_equal(sound.read(700, 9000), whole[700:9000])
    np.testing.assert_array_equal(sound.read(3, 4), whole[3:4])


# Specs and splits


@pytest.mark.parametrize("spec", ["", "librispeech", "librispeech:", "s3:bucket", "folder"])
def test_unknown_sources_name_the_known_ones(spec):
    with pytest.raises(ValueError, match="librispeech:DIR, folder:DIR, arrayrecord:GLOB"):
        open_source(spec)


def test_splits_are_disjoint_and_stable(tmp_path):
    source = LibriSpeechSource(write_corpus(tmp_path, speakers=12, clips=8))
    names = lambda part: {part.name(i) for i in range(len(part))}  # noqa: E731
    train = split_source(source, "train", eval_fraction=0.2)
    held = split_source(source, "eval", eval_fraction=0.2)
    assert not names(train) & names(held)
    assert len(train) + len(held) == 96
    assert 8 <= len(held) <= 32
    assert held.record(0).name == held.name(0)
    fewer = split_source(source, "eval", eval_fraction=0.2, eval_max=5)
    assert len(fewer) == 5
    assert names(fewer) < names(held)
    for file in sorted(tmp_path.rglob("3-7*")):  # other data next to a record moves nothing
        file.unlink()
    again = split_source(LibriSpeechSource(tmp_path), "eval", eval_fraction=0.2)
    assert names(again) == {name for name in names(held) if not name.startswith("3-")}
    voices = split_source(source, "eval", eval_fraction=0.2, by="speaker")
    others = split_source(source, "train", eval_fraction=0.2, by="speaker")
    speakers = {voices.group(i) for i in range(len(voices))}
    assert speakers
    assert not speakers & {others.group(i) for i in range(len(others))}
    with pytest.raises(AudioError, match="leave none for 'eval'"):
        split_source(source, "eval", eval_fraction=0.0)


def test_mixture_entries(corpus):
    parts = open_mixture([corpus, (corpus, 2.0), [corpus, 0.5, "music"]])
    assert [(part.weight, part.domain) for part in parts] == [(1, None), (2, None), (0.5, "music")]
    with pytest.raises(ValueError, match="no source"):
        open_mixture([])
    with pytest.raises(ValueError, match=r"expected \(source, weight, domain\)"):
        open_mixture([(corpus, 1.0, "speech", "more")])


# ArrayRecord shards


@pytest.mark.parametrize("codec", ["flac", "opus"])
def test_prepared_shards_hold_the_source(tmp_path, codec):
    folder = write_corpus(tmp_path / "in")
    (folder / "1/7/1-7-0003.words.tsv").write_text("0.1\t0.4\twho\n")
    (folder / "2/7/2-7-0000.flac").write_bytes(b"broken")
    output = tmp_path / "out"
    counts = prepare(f"librispeech:{folder}", output, shards=3, sample_rate=16_000, codec=codec)
    assert counts == {"written": 17, "skipped": 1, "kept_shards": 0}
    assert "2-7-0000" in (output / "skipped.txt").read_text()
    source = pickle.loads(pickle.dumps(open_source(f"arrayrecord:{output}")))
    original = LibriSpeechSource(folder)
    by_name = {original.name(i): i for i in range(len(original))}
    assert sorted(source.name(i) for i in range(17)) == sorted(set(by_name) - {"2-7-0000"})
    for index in range(17):
        record = source.record(index)
        before = original.record(by_name[record.name])
        assert record.name == source.name(index)
        assert source.group(index) == record.speaker == before.speaker
        assert (record.text, record.words) == (before.text, before.words)
        wav = audio.resample(samples(before), TONE_RATE, 16_000)
        assert record.sound.rate == 16_000
        assert len(samples(record)) == len(wav)
        error = np.sqrt(np.mean((samples(record) - wav) ** 2))
        assert error < (1e-4 if codec == "flac" else 0.1)


def test_prepare_resumes_where_it_was_interrupted(tmp_path):
    folder = write_corpus(tmp_path / "in")
    (folder / "1/7/1-7-0001.flac").write_bytes(b"broken")
    whole, output = tmp_path / "whole", tmp_path / "out"
    prepare(f"librispeech:{folder}", whole, shards=4, sample_rate=16_000)
    shutil.copytree(whole, output)
    shards = sorted(output.glob("*.array_record"))
    shards[1].unlink()
    shards[3].unlink()
    (output / f".{shards[3].name}.part").write_bytes(b"half a shard")
    untouched = shards[0].stat().st_mtime_ns
    assert (
        prepare(f"librispeech:{folder}", output, shards=4, sample_rate=16_000)["kept_shards"] == 2
    )
    assert shards[0].stat().st_mtime_ns == untouched
    for shard in sorted(whole.glob("data-*")):
        assert (output / shard.name).read_bytes() == shard.read_bytes()
    for other in ({"shards": 3}, {"shards": 4, "codec": "opus"}):
        with pytest.raises(ValueError, match="was begun with another"):
            prepare(f"librispeech:{folder}", output, sample_rate=16_000, **other)
    (output / "prepare.json").unlink()
    with pytest.raises(ValueError, match="choose another folder"):
        prepare(f"librispeech:{folder}", output, shards=4, sample_rate=16_000)


def test_prepare_command_with_worker_processes(tmp_path):
    folder = write_corpus(tmp_path / "in")
    command = [sys.executable, "-m", "llmcodec_jax.data.prepare", "--workers", "1", "--shards", "2"]
    command += ["--sample-rate", "16000"]
    command += ["--source", f"librispeech:{folder}", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert "written 18, skipped 0, kept_shards 0" in done.stdout, done.stderr
    done = subprocess.run(
        [*command, "--codec", "opus"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "codec ('flac', now 'opus')" in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_shards(tmp_path):
    with pytest.raises(AudioError, match=r"no \.array_record file"):
        open_source(f"arrayrecord:{tmp_path}/*")
    prepare(
        f"librispeech:{write_corpus(tmp_path / 'in')}",
        tmp_path / "out",
        shards=2,
        sample_rate=16_000,
    )
    (shard, _) = sorted((tmp_path / "out").glob("*.names"))
    names = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(names[1:]))
    with pytest.raises(AudioError, match="18 records but 17 names"):
        open_source(f"arrayrecord:{tmp_path}/out/*.array_record")
    shard.unlink()
    with pytest.raises(AudioError, match="is missing beside it"):
        open_source(f"arrayrecord:{tmp_path}/out")
    header = b'{"name": "a", "domain": "birdsong"}', b'{"name": 3}', b'["name"]', b"[" * 10_000
    bad = [MAGIC + len(head).to_bytes(4, "little") + head for head in header]
    for data in (*bad, b"", b"tf.Example", MAGIC + b"\xff\xff\xff\xff{", MAGIC + b"\2\0\0\0{}"):
        with pytest.raises(AudioError, match="there"):
            unpack(data, "there")


def damage(data: bytes, kind: str) -> bytes:
    """A flipped bit, zeros, or a missing piece in the middle of a shard's second record."""
    place = data.find(b"fLaC", data.find(b"fLaC") + 1) + 900
    if kind == "flipped bit":
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    if kind == "zeros":
        return data[:place] + bytes(64) + data[place + 64 :]
    return {"cut": data[:place], "missing bytes": data[:place] + data[place + 7 :], "empty": b""}[
        kind
    ]


@pytest.mark.parametrize("kind", ["flipped bit", "zeros"])
def test_one_damaged_record_is_replaced_and_counted(tmp_path, kind):
    prepare(
        f"librispeech:{write_corpus(tmp_path / 'in')}",
        tmp_path / "out",
        shards=2,
        sample_rate=16_000,
    )
    shard = min((tmp_path / "out").glob("*.array_record"))
    shard.write_bytes(damage(shard.read_bytes(), kind))
    source = open_source(f"arrayrecord:{tmp_path}/out")
    unusable = []
    for index in range(18):
        try:
            source.record(index)
        except AudioError as error:
            unusable.append(str(error))
    assert len(unusable) == 1
    assert "out, record" in unusable[0]
    assert "is damaged" in unusable[0]
    options = dict(sample_rate=TONE_RATE, clip_samples=8000, hop=320)
    spec = f"arrayrecord:{tmp_path}/out"
    with make_loader(spec, batch_size=6, split="all", **options) as loader:
        for _ in range(9):
            assert len(next(loader).wav) == 6
        assert loader.skipped()["count"] >= 3  # once an epoch
        assert set(loader.skipped()["reasons"]) == set(unusable)


@pytest.mark.parametrize("kind", ["cut", "missing bytes", "empty"])
def test_a_shard_that_is_not_whole_is_named_at_once(tmp_path, kind):
    prepare(
        f"librispeech:{write_corpus(tmp_path / 'in')}",
        tmp_path / "out",
        shards=3,
        sample_rate=16_000,
    )
    shard = sorted((tmp_path / "out").glob("*.array_record"))[1]
    shard.write_bytes(damage(shard.read_bytes(), kind))
    with pytest.raises(AudioError, match=f"{shard.name}: is no whole shard .*; copy it again, or"):
        open_source(f"arrayrecord:{tmp_path}/out")


def test_damaged_tfds_records_are_audio_errors(tmp_path):
    shutil.copytree(TFDS_SETS / "tiny_lazy", tmp_path / "tiny_lazy")
    (shard,) = (tmp_path / "tiny_lazy").rglob("*.array_record*")
    data = bytearray(shard.read_bytes())
    data[data.find(b"fLaC") + 600] ^= 4
    shard.write_bytes(data)
    source = TfdsSource("tiny_lazy", tmp_path)
    unusable = []
    for index in range(2):
        try:
            source.record(index)
        except AudioError as error:
            unusable.append(str(error))
    assert len(unusable) == 1
    assert "tiny_lazy/train/" in unusable[0]


def test_linked_folders_and_hidden_files_are_told(tmp_path, caplog):
    corpus = write_corpus(tmp_path / "in")
    (corpus / "3").rename(tmp_path / "elsewhere")
    (corpus / "3").symlink_to(tmp_path / "elsewhere")
    (corpus / "1/7/._1-7-0000.flac").write_bytes(b"of a Mac")
    for spec in (f"librispeech:{corpus}", f"folder:{corpus}"):
        caplog.clear()
        assert len(open_source(spec)) == 12
        assert "1 linked folders" in caplog.text
        assert "1 hidden files" in caplog.text


def test_truncated_recordings_are_skipped_by_name(tmp_path):
    """Half a WAV is a whole one with half its words, if nobody compares."""
    audio.write(tmp_path / "a.wav", tone(2.0), TONE_RATE)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"a\.wav: truncated, 15978 of 32000 bytes"):
        FolderSource(tmp_path).record(0)


# Prepared TFDS sets (written by TFDS itself, see tfds_sets/make.py)


@pytest.mark.usefixtures("tfds_dir")
def test_tfds_set_of_integers():
    source = pickle.loads(pickle.dumps(open_source("tfds:tiny_speech:train_clean+test")))
    assert len(source) == 7
    numbers = []
    for index in range(7):
        record = source.record(index)
        assert record.name == source.name(index)
        number = int(record.text.removeprefix("tone number "))
        numbers.append(number)
        assert record.speaker == str(number % 3)
        expected = 0.3 * np.sin(
            2 * np.pi * (300 + 50 * number) * np.arange(2400 + 80 * number) / 8000
        )
        np.testing.assert_allclose(samples(record), expected, atol=1e-4)
    assert sorted(numbers) == [0, 1, 2, 3, 4, 8, 9]
    assert source.name(6) == "tiny_speech/test/1"
    assert len(open_source("tfds:tiny_speech:1.0.0:test")) == 2
    assert len(TfdsSource(f"{TFDS_SETS}/tiny_speech/1.0.0:test")) == 2


@pytest.mark.usefixtures("tfds_dir")
def test_tfds_sets_of_files_and_floats():
    lazy = open_source("tfds:tiny_lazy")
    assert {lazy.record(i).text for i in (0, 1)} == {"lazy 0", "lazy 1"}
    stereo = open_source("tfds:tiny_float").record(0)
    assert stereo.text is None
    for record, gain in ((lazy.record(0), 1.0), (stereo, 0.75)):
        wav = samples(record)
        tone_ = 0.3 * gain * np.sin(2 * np.pi * 440 * np.arange(len(wav)) / 16000)
        np.testing.assert_allclose(wav, tone_, atol=1e-4)


@pytest.mark.usefixtures("tfds_dir")
@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("nothing", "Prepare it once where TensorFlow is installed"),
        ("tiny_speech:dev", "no split dev; it has train_clean, train_other, test"),
        ("tiny_speech", "train_other.*this shard is missing"),
    ],
)
def test_tfds_sets_that_are_not_there(spec, complaint):
    with pytest.raises(AudioError, match=complaint):
        open_source(f"tfds:{spec}")


def test_tfds_needs_no_tensorflow():
    code = (
        "import sys\n"
        "from llmcodec_jax.data.tfds import TfdsSource\n"
        f"source = TfdsSource('tiny_speech:test', {str(TFDS_SETS)!r})\n"
        "print(source.record(0).sound.read(0, 5).shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "(5,) False", done.stderr
