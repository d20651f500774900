"""Write the costs of the embedded model, vim-digits, on the pictures that need no data, to stm/assets/costs.

    python tools/fit_digits.py

So the first command that a newcomer runs need not compute them. Run it again when the model, the pictures or the way to
compute costs change: tests/contract/test_embedded_costs.py says so.
"""

from safetensors.torch import save_file

import stm
from stm.assets import FOLDER
from stm.data.fit_images import pictures
from stm.fitting import fit, key_of

if __name__ == "__main__":
    dense = stm.load("vim-digits")
    images = pictures(dense.config)
    fitting = fit(dense, images, keep=False)
    folder = FOLDER / "costs"
    for old in folder.glob("*.safetensors"):
        old.unlink()
    # float32: half the size, and 1e-7 of a cost is far below what another seed changes
    tensors = {"cost": fitting.effects.cost.float(), "probes": fitting.effects.probes}
    save_file(tensors, folder / f"{key_of(dense, images, fitting.sha256)}.safetensors")
