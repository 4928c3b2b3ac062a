from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from csrm_guard.encoding import Window
from csrm_guard.packing import collate, pack
from csrm_guard_export.onnx import INPUTS, export_onnx
from csrm_guard_train.checkpoint import start
from csrm_guard_train.recipe import Recipe
from tests.tiny import make_backbone

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RULES = [(101, 30, 31, 102), (101, 40, 102), (101, 50, 51, 52, 102)]
SEQUENCES = [
    pack(Window((10, 11, 12), (20, 21, 22, 23), 0, 1), RULES),
    pack(Window((9,) * 30, (8, 7), 0, 1), RULES[:2]),
]


@pytest.mark.parametrize("kind", ["mpnet", "modernbert", "deberta-v2", "llama"])
def test_the_graph_of_every_backbone_scores_as_torch_does(kind: str, tmp_path: Path):
    trained = start(Recipe(backbone=kind, dropout=0.0), make_backbone(tmp_path / kind, kind))
    with torch.no_grad():
        for weight in trained.model.parameters():
            if weight.dim() > 1:  # fresh weights are so small that every graph would agree
                weight.normal_(0.0, 0.5)
    export_onnx(trained.model, tmp_path / "model.onnx", trained.recipe.limits)
    batch = collate(SEQUENCES)
    arrays = {name: getattr(batch, name) for name in INPUTS}
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    theirs = session.run(None, arrays)[0]
    ours = trained.model(*(torch.from_numpy(array) for array in arrays.values())).detach().numpy()
    assert ours.std() > 0.01
    assert np.abs(ours - theirs).max() < 1e-4
