"""transformers reads a repository of ours, and one that it pushed, from the Hub on this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.client import SECRET
from tests.hub.conftest import Run
from tests.hub.server import Hub, Repo

CODE = f"""
import torch, stm, stm.integrations.transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
image = Image.linear_gradient("L").convert("RGB")
best = pipeline("image-classification", model="me/vim")(image)
ours = stm.load("me/vim", device="cpu")
with torch.inference_mode():
    probabilities = ours(stm.preprocess(image, ours)).softmax(-1)[0].sort(descending=True).values
print(max(abs(a["score"] - b) for a, b in zip(best, probabilities.tolist())) < 1e-6)
model = AutoModelForImageClassification.from_pretrained("me/vim")
with torch.no_grad():
    model.vim.head.weight.mul_(2)
print(model.push_to_hub("me/again", token={SECRET!r}).endswith("/me/again"))
x = AutoImageProcessor.from_pretrained("me/vim")(image, return_tensors="pt")["pixel_values"]
again = AutoModelForImageClassification.from_pretrained("me/again")
print(torch.equal(again(x).logits, model(x).logits), again.vim.config.extra["fine_tuned"])
"""


@pytest.mark.slow(seconds=60)
def test_a_repository_works_without_code_of_it(hub: Hub, python: Callable[[str], Run], folder: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: extra transformers")
    hub.repos["me/vim"] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
    done = python(CODE)
    assert (done.code, done.out.split()) == (0, ["True", "True", "True", "merged"]), done.err
