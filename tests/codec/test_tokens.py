"""Token files: what is written is read, what is damaged or hostile is refused by name."""

import io
import resource
import struct
import zipfile

import numpy as np
import pytest

from llmcodec_jax.codec import tokens
from llmcodec_jax.codec.tokens import TokenError, Tokens

CODES = np.arange(40, dtype=np.int32) % 7


def old_fields(**changes):
    """What files held before they said which codec made them."""
    return dict(codes=CODES, sample_rate=np.int32(16_000), num_samples=np.int64(12_795)) | changes


def npy(value) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def archive(path, fields, compression=zipfile.ZIP_STORED):
    """Fields, each an array or the raw bytes of one, as a `.npz`."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, value in fields.items():
            file.writestr(f"{name}.npy", value if isinstance(value, bytes) else npy(value))
    return path


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + data


def test_every_field_survives(tmp_path):
    for codes in (CODES, np.stack([CODES, CODES[::-1]], axis=1)):
        tokens.write(tmp_path / "x.npz", Tokens(codes, 24_000, 12_800, 7, 320, "toy", "ab"))
        again = tokens.read(tmp_path / "x.npz")
        np.testing.assert_array_equal(again.codes, codes)
        assert again.codes.dtype == np.int32
        assert (again.sample_rate, again.num_samples, again.codebook_size) == (24_000, 12_800, 7)
        assert (again.hop, again.architecture, again.codec) == (320, "toy", "ab")
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["<i4", "<i8", "<u2", "|u1"])
def test_older_and_foreign_files_are_read(tmp_path, save, kind):
    save(tmp_path / "x.npz", **old_fields(codes=CODES.astype(kind), other=np.zeros(3)))
    again = tokens.read(tmp_path / "x.npz")
    np.testing.assert_array_equal(again.codes, CODES)
    assert (again.codebook_size, again.hop, again.architecture, again.codec) == (None,) * 4


def test_transposed_codes_keep_their_order(tmp_path):
    codes = np.asfortranarray(np.arange(12, dtype=np.int32).reshape(4, 3))
    np.savez(tmp_path / "x.npz", **old_fields(codes=codes, num_samples=np.int64(1280)))
    np.testing.assert_array_equal(tokens.read(tmp_path / "x.npz").codes, codes)


PLAIN = "{'descr': '<i4', 'fortran_order': False, 'shape': (%s), }\n"
HOSTILE = {
    "a terabyte of codes": dict(codes=header(PLAIN % "900000000000,", bytes(160))),
    "negative shape": dict(codes=header(PLAIN % "-1,", bytes(160))),
    "more digits than a number": dict(codes=header(PLAIN % ("9" * 400 + ","), bytes(160))),
    "shape that overflows": dict(codes=header(PLAIN % ", ".join(["9" * 18] * 2), bytes(160))),
    "shape of many axes": dict(codes=header(PLAIN % ", ".join(["1"] * 100), bytes(4))),
    "nested header": dict(codes=header("(" * 900 + ")" * 100)),
    "header that is code": dict(codes=header("__import__('os').system('true')")),
    "empty header": dict(codes=header("")),
    "structured type": dict(codes=np.zeros(4, [("a", "i4"), ("b", "i4")])),
    "objects": dict(codes=header(PLAIN.replace("<i4", "|O") % "1,", bytes(8))),
    "times": dict(codes=np.zeros(3, "datetime64[s]")),
    "floats": dict(codes=CODES.astype(np.float32)),
    "text": dict(codes=np.array(["a"])),
    "three axes": dict(codes=np.zeros((2, 2, 2), np.int32)),
    "no axes": dict(codes=np.int32(3)),
    "no codes": dict(codes=np.zeros(0, np.int32)),
    "no levels": dict(codes=np.zeros((4, 0), np.int32)),
    "negative codes": dict(codes=-CODES - 1),
    "codes beyond 31 bits": dict(codes=np.full(4, 2**40)),
    "short data": dict(codes=npy(CODES)[:-4]),
    "long data": dict(codes=npy(CODES) + b"\0"),
    "no magic": dict(codes=b"hello"),
    "empty entry": dict(codes=b""),
    "another version": dict(codes=b"\x93NUMPY\x09\x00" + npy(CODES)[8:]),
    "rate of several": dict(sample_rate=np.array([1, 2])),
    "rate in words": dict(sample_rate=np.array("x")),
    "rate of zero": dict(sample_rate=np.int32(0)),
    "negative length": dict(num_samples=np.int64(-5)),
    "codes of another codebook": dict(codebook_size=np.int32(3)),
    "codes of another length": dict(hop=np.int32(100)),
    "a name without end": dict(architecture=np.array("x" * 100_000)),
    "a name in numbers": dict(codec=np.int32(1)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_fields_are_refused(tmp_path, name):
    with pytest.raises(TokenError, match=r"x\.npz"):
        tokens.read(archive(tmp_path / "x.npz", old_fields(**HOSTILE[name])))


@pytest.mark.parametrize("missing", ["codes", "sample_rate", "num_samples"])
def test_missing_fields_are_named(tmp_path, missing):
    fields = old_fields()
    del fields[missing]
    with pytest.raises(TokenError, match=rf"x\.npz.*{missing}"):
        tokens.read(archive(tmp_path / "x.npz", fields))


def test_a_bomb_is_refused_before_it_is_read(tmp_path):
    """Three megabytes that claim six gigabytes, in truth or as a lie."""
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("codes.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header(PLAIN % "100000000,"))
        for _ in range(400):
            entry.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TokenError, match=r"bomb\.npz: codes claims 41943\d+ bytes, more than"):
        tokens.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_many_fields_are_refused(tmp_path):
    fields = old_fields(**{f"x{i}": np.zeros(1) for i in range(100)})
    with pytest.raises(TokenError, match="fields, more than"):
        tokens.read(archive(tmp_path / "x.npz", fields))


def test_no_damage_of_an_archive_escapes(tmp_path):
    """Truncations, flipped bytes, every compression, encryption: each is refused or read."""
    rng = np.random.default_rng(0)
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    path, refused, read = tmp_path / "x.npz", 0, 0
    for kind in kinds:
        good = archive(path, old_fields(codebook_size=np.int32(7)), kind).read_bytes()
        mutants = [good[:size] for size in range(0, len(good), 61)]
        for position in range(0, len(good), 3):
            damaged = bytearray(good)
            damaged[position] ^= int(rng.integers(1, 256))
            mutants.append(bytes(damaged))
        for flag in (1, 0x41, 0x800):  # of the central directory: encrypted, strong, utf-8
            mutants.append(
                good.replace(
                    b"PK\x01\x02\x14\x03\x14\x00\x00\x00",
                    b"PK\x01\x02\x14\x03\x14\x00" + struct.pack("<H", flag),
                )
            )
        for mutant in mutants:
            path.write_bytes(mutant)
            try:
                tokens.read(path)
                read += 1
            except TokenError:
                refused += 1
    assert refused > 900
    assert read > 0  # names, dates and attributes of entries matter to nobody
