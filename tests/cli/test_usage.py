"""What the command line refuses by itself, and its help. None of these runs imports torch."""

import inspect
import os
import shlex

import pytest
from typer.main import get_command

import stm_cli.bench
import stm_cli.compress
import stm_cli.env
import stm_cli.eval
import stm_cli.explain
import stm_cli.export
import stm_cli.info
import stm_cli.models
import stm_cli.plan
import stm_cli.predict
import stm_cli.push
import stm_cli.report
from stm import __version__
from stm_cli.main import application

COMMANDS = {
    "compress": stm_cli.compress,
    "eval": stm_cli.eval,
    "info": stm_cli.info,
    "predict": stm_cli.predict,
    "env": stm_cli.env,
}
COMMANDS |= {"explain": stm_cli.explain, "report": stm_cli.report}
COMMANDS |= {"push": stm_cli.push, "export": stm_cli.export, "models": stm_cli.models}
COMMANDS |= {"plan": stm_cli.plan, "bench": stm_cli.bench}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("compress", "Missing argument 'MODEL'"),
        ("compress m --rate abc", "'abc' is not a number"),
        ("compress m --rate", "Option '--rate' requires an argument"),
        ("compress m --saving 1/3", "'1/3' is not a number"),
        ("compress m --stages ten", "'ten' is not a list of block numbers"),
        ("compress m --method ours", "'ours' is not one of stm, staged, paper"),
        ("compress m --schedule random", "'random' is not one of fitted, staged, border, sweep, even, outward"),
        ("compress m --weights max", "'max' is not one of prune, sum, mean, size, hsp"),
        ("compress m --max-drop -1", "'-1' is not a number of percentage points"),
        ("compress m --max-drop nan", "'nan' is not a number of percentage points"),
        ("compress m --limit 0", "'0' is not a whole number of at least 1"),
        ("compress m --limit 1_0", "'1_0' is not a whole number of at least 1"),
        ("compress m --limit \u0661", "'\u0661' is not a whole number of at least 1"),
        ("compress m --rate 0_1.5", "'0_1.5' is not a number"),
        ("compress m --max-drop 1_0", "'1_0' is not a number"),
        ("compress m --stages 1_0", "'1_0' is not a list of block numbers such as 10,16"),
        ("info m --image-size 2_24", "'2_24' is not a size in pixels such as 224, or 224x448 (height x width)"),
        ("info m --mean 0.5,1_0", "'1_0' is not a number"),
        ("bench m --batch-sizes 1,1_0", "'1,1_0' is not a list of batch sizes such as 1,8"),
        ("export m --batch-size 1_0", "'1_0' is not a whole number of at least 1"),
        ("compress m --batch-size 2.5", "'2.5' is not a whole number of at least 1"),
        ("info m --image-size 0", "'0' is not a size in pixels such as 224, or 224x448"),
        ("info m --image-size 224x448x3", "'224x448x3' is not a size in pixels"),
        ("compress m --workers -1", "'-1' is not a whole number of at least 0"),
        ("compress m --dtype int4", "'int4' is not one of float32, bfloat16, float16, int8"),
        ("compress m --wat", "No such option: --wat"),
        ("predct m", "Did you mean 'predict'?"),
        ("eval m --class-token tail", "'tail' is not one of middle, head"),
        ("predict m", "Missing argument 'IMAGE'"),
        ("explain m --block 0", "'0' is not a whole number of at least 1"),
        ("report", "Missing argument 'FOLDER'"),
        ("bench m --batch-sizes 1,x", "'1,x' is not a list of batch sizes"),
        ("bench m --batch-sizes 0", "'0' is not a list of batch sizes"),
        ("bench m --threads 0", "'0' is not a whole number of at least 1"),
        ("bench m --rounds 0", "'0' is not a whole number of at least 1"),
        ("bench m --against rnn", "'rnn' is not one of vit, onnxruntime, openvino"),
        ("plan m --rate 0.4", "No such option: --rate"),
    ],
)
def test_a_bad_command_line_is_one_sentence_and_exit_2(here, args: str, said: str) -> None:
    run = here(*shlex.split(args))
    error, hint = run.err.splitlines()
    assert run.code == 2 and run.out == ""
    assert error.startswith("Error: ") and said in error
    assert hint.startswith("Hint: stm ") and hint.endswith("--help shows what it takes")


def test_the_same_in_a_process_of_its_own(stm) -> None:
    run = stm("compress", "m", "--rate", "abc")
    assert (run.code, run.out) == (2, "")
    assert (
        run.err
        == "Error: Invalid value for '--rate': 'abc' is not a number\nHint: stm compress --help shows what it takes\n"
    )


def test_version_and_help(stm) -> None:
    assert stm("--version") == (0, f"stm {__version__}\n", "")
    alone, asked, short = stm(), stm("--help"), stm("-h")
    assert alone == asked == short
    assert alone.code == 0 and alone.err == "" and "Usage: stm" in alone.out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_screen_fits_80_columns_and_names_every_option(here, command: str) -> None:
    run = here(command, "--help")
    assert (run.code, run.err) == (0, "")
    assert max(map(len, run.out.splitlines())) <= 80
    for parameter in get_command(application()).commands[command].params:
        for option in parameter.opts if parameter.opts[0].startswith("-") else []:
            assert option in run.out
    for example in COMMANDS[command].EXAMPLES:
        assert example in run.out, f"{example!r} is broken over lines"


def test_completion_stays_on(here) -> None:
    assert "--install-completion" in here("--help").out


@pytest.mark.parametrize("example", [each for module in COMMANDS.values() for each in module.EXAMPLES])
def test_every_example_can_be_pasted(example: str) -> None:
    program, *args = shlex.split(example)
    if program == "torchrun":
        program, *args = args[args.index("-m") + 1 :]
    name, *args = args
    assert program in ("stm", "stm_cli")
    get_command(application()).commands[name].make_context(name, args)  # raises where it does not parse


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_is_long(command: str) -> None:
    assert len(inspect.getsource(COMMANDS[command]).splitlines()) < 200


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_spin_briefly_unless_asked_otherwise(
    here, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert here("--version").code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected
