"""The names that `import stm` offers, and how quick it is."""

import importlib
import inspect
import subprocess
import sys

import pytest

import stm

PUBLIC = [
    "Config",
    "EvalReport",
    "ModelConfig",
    "Preprocess",
    "Schedule",
    "Step",
    "StmError",
    "ViM",
    "__version__",
    "compress",
    "evaluate",
    "load",
    "load_checkpoint",
    "preprocess",
]

# docs/design.md section 4
SIGNATURES = {
    "load_checkpoint": (
        "path, *, image_size, class_token, divide_out, backbone, ema, weights_key, mean, std, crop_ratio, "
        "interpolation, labels, dtype, device, backend"
    ),
    "load": "model, *, file, revision, token, image_size, class_token, divide_out, backbone, ema, weights_key, mean, "
    "std, crop_ratio, interpolation, labels, device, dtype, backend",
    "compress": (
        "model, *, rate, saving, max_drop, speedup, fit_on, method, schedule, stages, sides, tokens_per_side, weights,"
        " hsp, step_scale, span_conv, normalize, calibration, seed, progress, on_progress"
    ),
}


def test_the_exported_names_are_pinned() -> None:
    assert stm.__all__ == PUBLIC
    assert all(getattr(stm, name) is not None for name in PUBLIC)
    assert set(PUBLIC) <= set(dir(stm))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_design(name: str) -> None:
    parameters = inspect.signature(getattr(stm, name)).parameters.values()
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert f"{', '.join(positional)}, *, {', '.join(keyword_only)}" == SIGNATURES[name]


def test_the_verbs_that_users_of_the_hub_know() -> None:
    push = inspect.signature(stm.ViM.push_to_hub).parameters
    known = ["private", "revision", "commit_message", "create_pr", "token", "exist_ok", "overwrite_card"]
    assert [name for name, each in push.items() if each.kind is each.KEYWORD_ONLY] == known
    assert list(inspect.signature(stm.ViM.save_pretrained).parameters) == ["self", "folder", "force"]
    assert list(inspect.signature(stm.ViM.from_pretrained).parameters) == ["folder_or_repo", "options"]


def test_a_function_can_be_called_twice() -> None:
    """No module takes a function's name once it has been imported."""
    assert callable(stm.compress)
    importlib.import_module("stm.bake")
    assert callable(stm.compress)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stm.nothing  # noqa: B018


def test_importing_is_quick_because_nothing_is_imported() -> None:
    script = (
        "import sys, stm; print(sorted(set(sys.modules) & {'torch', 'numpy', 'safetensors', 'huggingface_hub', 'rich',"
        " 'typer'}))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
