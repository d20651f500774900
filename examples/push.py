"""Push a compressed model to the Hub. Without --yes, only list what would be uploaded: nothing leaves this machine.

python examples/push.py you/vim-digits-stm40
hf auth login && python examples/push.py you/vim-digits-stm40 --yes
"""

import sys
import tempfile
from pathlib import Path

import stm


def main(repo_id: str, *flags: str) -> None:
    small = stm.compress(stm.load("vim-digits"), rate=0.4)
    if "--yes" in flags:
        print(small.push_to_hub(repo_id, private=True, commit_message="vim-digits at rate 0.4"))
        return
    with tempfile.TemporaryDirectory() as scratch:
        small.save_pretrained(folder := Path(scratch, "model"))
        for file in sorted(folder.iterdir()):
            print(f"would upload {file.name} ({file.stat().st_size:,} bytes) to {repo_id}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/push.py OWNER/NAME [--yes]")
    main(*sys.argv[1:])
