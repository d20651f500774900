"""Make stm/assets/imagenet1k.tsv, the table of ImageNet-1k's classes, from timm's wheel.

    pip download --no-deps timm
    python tools/imagenet_labels.py timm-*.whl stm/assets/imagenet1k.tsv

A class's label is the first lemma of its WordNet synset. If another class has the same first lemma, ignoring case, the
label is the whole list of lemmas. If even the lists are equal, the kind of thing stands behind them in parentheses.
"""

import argparse
import zipfile
from collections import Counter
from pathlib import Path

FOLDER = "timm/data/_info/"
KINDS = {"n02012849": "bird", "n03126707": "machine"}  # both are just "crane"


def labels_of(lemmas: dict[str, str]) -> dict[str, str]:
    """Return one label per class, unique even if case is ignored."""
    first = {wnid: text.split(", ")[0] for wnid, text in lemmas.items()}
    shared = Counter(label.casefold() for label in first.values())
    labels = {wnid: label if shared[label.casefold()] == 1 else lemmas[wnid] for wnid, label in first.items()}
    labels |= {wnid: f"{labels[wnid]} ({kind})" for wnid, kind in KINDS.items()}
    if len({label.casefold() for label in labels.values()}) != len(labels):
        raise SystemExit("labels are not unique: the table of kinds needs another entry")
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("table", type=Path)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        wnids = wheel.read(FOLDER + "imagenet_synsets.txt").decode().split()
        lines = wheel.read(FOLDER + "imagenet_synset_to_lemma.txt").decode().splitlines()
    lemmas = dict(line.split("\t") for line in lines)
    labels = labels_of({wnid: lemmas[wnid] for wnid in wnids})
    version = args.wheel.name.split("-")[1]
    head = [
        "# The classes of ImageNet-1k (ILSVRC2012): index, WordNet id, label. Made by tools/imagenet_labels.py.",
        (
            f"# Source: timm {version} (Apache-2.0), data/_info/imagenet_synsets.txt and imagenet_synset_to_lemma.txt;"
            " lemmas of WordNet 3.0."
        ),
    ]
    rows = [f"{index}\t{wnid}\t{labels[wnid]}" for index, wnid in enumerate(wnids)]
    args.table.write_text("\n".join(head + rows) + "\n", encoding="utf-8")
    print(f"{args.table}: {len(rows)} classes")


if __name__ == "__main__":
    main()
