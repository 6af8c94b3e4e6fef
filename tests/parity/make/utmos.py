"""Makes data/utmos.json: scores of a small UTMOS with seeded weights, by the package utmos-pytorch.

    python tests/parity/make/utmos.py        # needs torch and utmos-pytorch

Run from the repository's root in an environment of its own; the product needs neither.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from utmos_pytorch import utmos_torch
from utmos_pytorch.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model

sys.path.insert(0, ".")
from tests.parity.seeded import seeded_tensors, seeded_wav

LENGTHS = (6000, 4100)
SIZES = dict(
    conv_feature_layers="[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] + [(16, 2, 2)]",
    encoder_layers=2,
    encoder_embed_dim=128,
    encoder_ffn_embed_dim=96,
    encoder_attention_heads=2,
    conv_pos=16,
)


class Small(utmos_torch.UTMOSModel):
    """The package's model at other sizes."""

    def __init__(self):
        nn.Module.__init__(self)
        encoder = utmos_torch.SSL_model(Wav2Vec2Model(Wav2Vec2Config(**SIZES)), 128)
        self.feature_extractors = nn.ModuleList([encoder, utmos_torch.DomainEmbedding(3, 24)])
        conditioner = utmos_torch.LDConditioner(input_dim=152, judge_dim=24, num_judges=300)
        projection = utmos_torch.Projection(1024, 40, nn.ReLU())
        self.output_layers = nn.ModuleList([conditioner, projection])


model = Small().eval()
shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
tensors = seeded_tensors(shapes)
model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
scores = []
for number, length in enumerate(LENGTHS):
    wav = torch.from_numpy(seeded_wav(length, number))[None, None]
    with torch.no_grad():
        out = model(wav, torch.zeros(1, dtype=torch.int), torch.full((1,), 288, dtype=torch.int))
    scores.append(float(out.mean(dim=1).squeeze() * 2 + 3))
found = {"lengths": LENGTHS, "scores": scores, "shapes": shapes}
Path("tests/parity/data/utmos.json").write_text(json.dumps(found, indent=1) + "\n")
print(scores)
