"""Print what each rate costs: the model compressed at that rate, and the dense model, on the same images.

One token entering one block is a token-layer; the second column is the share of them that a compressed model saves.

python examples/evaluate.py                            # the embedded model on embedded digits
python examples/evaluate.py dense-folder/ my_images/   # a dense folder that stm wrote, and labelled images
"""

import sys

import stm

LIMIT = 64  # images: a first look in seconds; the intervals show how little they tell


def main(model: str = "vim-digits", data: str | None = None) -> None:
    dense = stm.load(model)
    token_layers = dense.config.model.tokens * dense.config.model.depth
    print("rate  token-layers saved  top-1  drop in points (95%)  agreement")
    for rate in (0.2, 0.4):
        small = stm.compress(dense, rate=rate)
        saved = 1 - sum(small.config.schedule.tokens_per_block(dense.config.model.depth)) / token_layers
        report = stm.evaluate(small, data, reference=dense, limit=LIMIT)
        if report.top1 is None or report.drop is None or report.drop_ci is None:
            sys.exit(f"{data} has no labels, so there is no accuracy: give a folder of labelled images")
        drop = "{:.1f} ({:.1f} to {:.1f})".format(*(100 * points for points in (report.drop, *report.drop_ci)))
        print(f"{rate:<5} {saved:18.1%} {report.top1:6.1%} {drop:>21} {report.agreement:10.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
