"""A folder to upload, and `hf:` reading it back from a server that answers as the Hub does."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import llmcodec_jax
from llmcodec_jax import export
from llmcodec_jax.codec import store
from tests.tiny import RATE, babble

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPORT = {
    "mean": {"mel": 0.5, "stoi": None},
    "interval": {"mel": 0.1},
    "categories": {},
    "items": {"a.wav": {}, "b.wav": {}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("hub")
    (place / "voices.json").write_text(json.dumps(REPORT))
    arguments = f"--codec mini --format hub --output {place / 'out'} --licence cc-by-sa-3.0"
    assert export.main([*arguments.split(), "--report", str(place / "voices.json")]) == 0
    return place / "out"


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of its server for one model, OWNER/mini, at one commit."""

    def __init__(self, folder, *args):
        self.folder = folder
        super().__init__(*args)

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        file = self.folder / path.rpartition("/")[2]
        if path.startswith("/api/models/OWNER/mini/tree/"):
            sizes = {p.name: p.stat().st_size for p in sorted(self.folder.iterdir())}
            listing = [
                {"type": "file", "path": name, "size": size, "oid": name}
                for name, size in sizes.items()
            ]
            data = json.dumps(listing).encode()
        elif path.startswith("/api/models/OWNER/mini"):
            names = [{"rfilename": p.name} for p in sorted(self.folder.iterdir())]
            listing = {"id": "OWNER/mini", "sha": COMMIT, "siblings": names}
            data = json.dumps(listing).encode()
        elif path.startswith(f"/OWNER/mini/resolve/{COMMIT}/") and file.is_file():
            data = file.read_bytes()
        else:
            return self.send_error(404)
        self.send_response(200)
        headers = {"ETag": f'"{file.name}-1"', "X-Repo-Commit": COMMIT, "Content-Length": len(data)}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)
        return None

    def log_message(self, *_):
        pass


def test_the_folder_says_what_is_in_it(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "codec.json", "codec.safetensors", "example.py"}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: llmcodec-jax\n")
    assert "\nlicense: cc-by-sa-3.0\n---\n" in card
    assert "16,000 Hz, 1 x 8,192 codes, 50 frames or 650 bits a second" in card
    assert "| voices | 2 | 0.500 ± 0.100 | – |" in card
    assert "`T = ceil(samples / 320)`. Code `i` is the language model's token `<CODEC_i>`" in card
    assert "## The card it came with\n\n### mini" in card
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")], "nothing left over"


def test_its_example_runs(folder, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "in.wav", babble(0.5, 1), RATE)
    command = [sys.executable, str(folder / "example.py"), "in.wav", "out.wav"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, cwd=tmp_path, check=True, env=environment, capture_output=True)
    assert soundfile.info(tmp_path / "out.wav").frames == 25 * 320


def test_hf_reads_it_back_from_a_server(folder, tmp_path):
    """In a process of its own: the Hub's library reads its endpoint and cache when imported."""
    handler = functools.partial(Hub, folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
            "JAX_PLATFORMS": "cpu",
            "NO_PROXY": "127.0.0.1",
        }
        code = (
            "from llmcodec_jax.codec import hub, store\n"
            "assert not hub.is_cached('hf:OWNER/mini')\n"
            "print(store.digest(*store.load('hf:OWNER/mini')))\n"
            "assert hub.is_cached('hf:OWNER/mini')\n"
            "try: hub.fetch('hf:OWNER/other')\n"
            "except hub.HubError as error: print(error)\n"
        )
        run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=ROOT)
        done = run([sys.executable, "-c", code], env={**os.environ, **settings}, check=False)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    digest, refused = done.stdout.splitlines()
    assert digest == llmcodec_jax.load_codec("mini").digest
    assert "OWNER/other" in refused


def test_a_run_without_licence_or_scores_says_so(folder, tmp_path, capsys):
    assert (
        export.main(["--run", str(folder), "--format", "hub", "--output", str(tmp_path / "o")]) == 0
    )
    assert "--licence" in capsys.readouterr().out
    card = (tmp_path / "o/README.md").read_text()
    assert "license:" not in card.split("---")[1]
    assert "None were given" in card
    assert card.count("library_name") == 1, "an exported card's front matter is not repeated"
    first, second = (store.load(path)[1] for path in (folder, tmp_path / "o"))
    np.testing.assert_equal(first, second)


def test_options_of_other_formats_are_refused(tmp_path):
    arguments = ["--codec", "mini", "--format", "pt", "--licence", "x", "--output"]
    with pytest.raises(SystemExit):
        export.main([*arguments, str(tmp_path / "a")])
