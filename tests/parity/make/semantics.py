"""Makes data/semantics.npz: hidden states of small random HuBERT and wav2vec 2.0 models.

    python tests/parity/make/semantics.py        # needs torch and transformers

Run from the repository's root in an environment of its own; the product needs neither.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model

sys.path.insert(0, ".")
from tests.parity.seeded import seeded_tensors, seeded_wav

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
LARGE = dict(feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True)
MODELS = {
    "hubert_base": (HubertModel, HubertConfig(**SIZES)),
    "hubert_large": (HubertModel, HubertConfig(**SIZES, **LARGE)),
    "wav2vec2_base": (Wav2Vec2Model, Wav2Vec2Config(**SIZES)),
    "wav2vec2_large": (Wav2Vec2Model, Wav2Vec2Config(**SIZES, **LARGE)),
}
LENGTHS = (6000, 4100)

values, configs = {}, {}
for name, (cls, config) in MODELS.items():
    model = cls(config).eval()
    state = model.state_dict()
    tensors = seeded_tensors({key: tuple(value.shape) for key, value in state.items()})
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    for number, length in enumerate(LENGTHS):
        wav = seeded_wav(length, number)
        wav = (wav - wav.mean()) / np.sqrt(wav.var() + 1e-7)
        with torch.no_grad():
            output = model(torch.from_numpy(wav)[None], output_hidden_states=True)
        # Versions differ in whether the last of `hidden_states` is normed: the output always is.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        values[f"{name}/{number}"] = torch.cat(states).numpy()
    configs[name] = config.to_diff_dict()
    values[f"{name}/names"] = np.array(sorted(state))
data = Path("tests/parity/data")
np.savez_compressed(data / "semantics.npz", **values)
(data / "semantics.json").write_text(json.dumps(configs, indent=1) + "\n")
