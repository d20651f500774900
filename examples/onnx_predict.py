"""Classify a photograph with ONNX Runtime, numpy and Pillow alone: neither torch nor stm.

stm export vim-s-stm40 --format onnx
python examples/onnx_predict.py vim-s-stm40.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, photo: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    taken = about["stm.input"]
    if not taken["normalised"] or taken["shape"][0] not in (None, 1) or about["stm.output"] != "logits":
        sys.exit(f"{model} does not give logits for one normalised image: export it with --format onnx alone")
    prep = about["stm.preprocessing"]  # resize the short side, crop the center, scale and normalise
    image = Image.open(photo).convert("L" if len(prep["mean"]) == 1 else "RGB")
    scale = prep["resize"] / min(image.size)
    image = image.resize([int(side * scale) for side in image.size], Image.Resampling[prep["interpolation"].upper()])
    left, top = (round((side - prep["crop"]) / 2) for side in image.size)
    square = np.asarray(image.crop((left, top, left + prep["crop"], top + prep["crop"])))
    pixels = square.reshape(prep["crop"], prep["crop"], -1) / 255
    images = ((pixels - prep["mean"]) / prep["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    (logits,) = session.run(None, {taken["name"]: images})[0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    names = about["stm.label_names"] or [f"class {index}" for index in range(len(logits))]
    for index in np.argsort(-probabilities)[:5]:
        print(f"{100 * probabilities[index]:5.1f}%  {names[index]}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/onnx_predict.py MODEL.onnx PHOTO")
    main(*sys.argv[1:])
