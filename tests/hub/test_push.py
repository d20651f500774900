"""`stm push` and its like, against a real server: what is written, what is left alone, and what goes wrong."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stm.hub.card import is_untouched
from tests.hang import HANG
from tests.hub.conftest import MINI, SECRET, Run, Stm, Worker, clean_environment
from tests.hub.server import Fault, Hub, Repo

TOKEN = ("--token", SECRET)
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def small(folder: Path, tmp_path: Path) -> Path:
    """A folder to push, of one's own."""
    shutil.copytree(folder, tmp_path / "small")
    return tmp_path / "small"


def changes(run: Run) -> dict[str, str]:
    assert run.code == 0, run.err
    return {file["name"]: file["change"] for file in json.loads(run.out)["files"]}


def uploads(hub: Hub) -> list[str]:
    return [seen.method for seen in hub.seen if seen.method == "PUT"]


def commits(hub: Hub, repo: str) -> list[str]:
    return hub.repos[repo].messages


# --- what is written
# ------------------------------------------------------------------------------------------------------------


def test_a_new_repository(hub: Hub, stm: Stm, small: Path, folder: Path) -> None:
    run = stm("push", "small", "me/vim", *TOKEN)
    assert run.code == 0, run.err
    assert run.out.startswith(f"small -> {hub.url}/me/vim\n") and "added" in run.out
    note, following = run.err.splitlines()
    assert note.startswith("Note: uploading model.safetensors (442.") and following == "Next: stm eval me/vim"
    files = hub.repos["me/vim"].files
    assert sorted(files) == [".gitattributes", *FILES]
    for name in ("config.json", "model.safetensors"):
        assert files[name] == (folder / name).read_bytes()
    assert uploads(hub) == ["PUT"], "the weights went by LFS"
    card = files["README.md"].decode()
    assert is_untouched(card) and 'stm.load("me/vim")' in card and "stm info me/vim" in card
    assert not hub.repos["me/vim"].private
    assert (small / "README.md").read_bytes() == (folder / "README.md").read_bytes(), "the folder is as it was"


def test_the_name_is_that_of_the_folder_and_ones_own(hub: Hub, stm: Stm, small: Path) -> None:
    run = stm("push", "small", *TOKEN, "--quiet")
    assert (run.out, run.err) == (f"{hub.url}/me/small\n", "")
    assert stm("push", "small", "other", *TOKEN, "--quiet").out == f"{hub.url}/me/other\n"
    assert sorted(hub.repos) == ["me/other", "me/small"]


def test_again_changes_nothing(hub: Hub, stm: Stm, small: Path) -> None:
    assert stm("push", "small", "me/vim", *TOKEN).code == 0
    run = stm("push", "small", "me/vim", *TOKEN, "--json")
    assert changes(run) == dict.fromkeys(reversed(FILES), "unchanged")
    assert json.loads(run.out)["commit"] is None and len(commits(hub, "me/vim")) == 1
    assert "everything is there already" in stm("push", "small", "me/vim", *TOKEN).out


def test_another_model_replaces_what_changed(hub: Hub, stm: Stm, small: Path) -> None:
    assert stm("push", "small", "me/vim", *TOKEN, "--commit-message", "The first").code == 0
    assert stm("compress", MINI, "--rate", "0.2", "--no-eval", "--out", "other").code == 0
    run = stm("push", "other", "me/vim", *TOKEN, "--json")
    assert changes(run) == dict.fromkeys(reversed(FILES), "changed")
    assert hub.repos["me/vim"].resolve("main") == json.loads(run.out)["commit"]
    assert commits(hub, "me/vim")[0] == "The first" and commits(hub, "me/vim")[1].startswith("Upload a model with stm ")


def test_a_dry_run_writes_nothing(hub: Hub, stm: Stm, small: Path) -> None:
    run = stm("push", "small", "me/vim", *TOKEN, "--dry-run", "--json")
    assert changes(run) == dict.fromkeys(reversed(FILES), "added") and json.loads(run.out)["created"]
    assert hub.repos == {} and {seen.method for seen in hub.seen} <= {"GET", "HEAD"}
    assert "would be made" in stm("push", "small", "me/vim", *TOKEN, "--dry-run").out


def test_a_dry_run_needs_no_login(hub: Hub, stm: Stm, small: Path) -> None:
    hub.repos["me/vim"] = Repo({"config.json": b"{}"})
    run = stm("push", "small", "me/vim", "--dry-run", "--json")
    assert changes(run)["config.json"] == "changed" and "nobody is logged in" in run.err
    assert f"small would go to {hub.url}/USER/small" in " ".join(stm("push", "small", "--dry-run").out.split())
    assert stm("compress", MINI, "--no-eval", "--out", "dry", "--push-to", "me/dry", "--dry-run").code == 0
    assert stm("push", "small", "me/vim", "--dry-run", "--token", "hf_wrong").code == 1


def test_private_and_exist_ok(hub: Hub, stm: Stm, small: Path) -> None:
    assert stm("push", "small", "me/vim", *TOKEN, "--private").code == 0
    assert hub.repos["me/vim"].private
    assert stm("push", "small", "me/vim", *TOKEN, "--private").code == 0
    run = stm("push", "small", "me/vim", *TOKEN, "--no-exist-ok")
    assert run.code == 1 and "Error: me/vim exists\n" in run.err
    hub.repos["me/open"] = Repo()
    run = stm("push", "small", "me/open", *TOKEN, "--private")
    assert run.code == 1 and "me/open exists and is public, and --private was given" in run.err
    assert hub.repos["me/open"].files == {}


def test_a_branch_is_made(hub: Hub, stm: Stm, small: Path) -> None:
    run = stm("push", "small", "me/vim", *TOKEN, "--revision", "v2", "--quiet")
    assert run.out == f"{hub.url}/me/vim/tree/v2\n", run.err
    repo = hub.repos["me/vim"]
    assert "config.json" in repo.commits[repo.refs["v2"]] and "config.json" not in repo.files
    assert stm("info", "me/vim", "--revision", "v2", "--quiet").code == 0


def test_a_pull_request(hub: Hub, stm: Stm, small: Path) -> None:
    hub.repos["they/vim"] = Repo({"README.md": b"# Theirs\n"})
    run = stm("push", "small", "they/vim", *TOKEN, "--create-pr", "--json")
    report = json.loads(run.out)
    assert report["url"] == report["pull_request"] == f"{hub.url}/they/vim/discussions/1", run.err
    repo = hub.repos["they/vim"]
    assert "config.json" in repo.commits[repo.refs["refs/pr/1"]] and repo.files == {"README.md": b"# Theirs\n"}
    run = stm("push", "small", "they/vim", *TOKEN, "--create-pr", "--revision", "v2")
    assert run.code == 2 and "against the main branch" in run.err


def test_a_readme_that_somebody_wrote_is_kept(hub: Hub, stm: Stm, small: Path) -> None:
    hub.repos["me/vim"] = Repo({"README.md": b"---\nlicense: mit\n---\n# Mine\n"})
    run = stm("push", "small", "me/vim", *TOKEN, "--json")
    assert changes(run)["README.md"] == "kept" and "--overwrite-card" in run.err
    assert hub.repos["me/vim"].files["README.md"].endswith(b"# Mine\n")
    assert changes(stm("push", "small", "me/vim", *TOKEN, "--overwrite-card", "--json"))["README.md"] == "changed"
    card = hub.repos["me/vim"].files["README.md"]
    assert is_untouched(card.decode())
    hub.repos["me/vim"].commit(hub.repos["me/vim"].files | {"README.md": card.replace(b"## Limits", b"## My words")})
    assert changes(stm("push", "small", "me/vim", *TOKEN, "--json"))["README.md"] == "kept", "edited there"


def test_a_card_that_was_edited_here_goes_as_it_is(hub: Hub, stm: Stm, small: Path) -> None:
    (small / "README.md").write_text("---\ntags: [mine]\n---\n# Mine\n")
    assert stm("push", "small", "me/vim", *TOKEN).code == 0
    assert hub.repos["me/vim"].files["README.md"] == b"---\ntags: [mine]\n---\n# Mine\n"
    assert changes(stm("push", "small", "me/vim", *TOKEN, "--json"))["README.md"] == "unchanged"


def test_results_of_an_earlier_model_do_not_stay(hub: Hub, stm: Stm, small: Path) -> None:
    hub.repos["me/vim"] = Repo({".eval_results/stm.yaml": b"[]", ".eval_results/theirs.yaml": b"[]", "notes.txt": b"."})
    assert changes(stm("push", "small", "me/vim", *TOKEN, "--json"))[".eval_results/stm.yaml"] == "deleted"
    assert sorted(hub.repos["me/vim"].files) == [
        ".eval_results/theirs.yaml",
        *FILES[:2],
        "model.safetensors",
        "notes.txt",
    ]


def test_only_our_files_go(hub: Hub, stm: Stm, small: Path) -> None:
    (small / "secrets.txt").write_text("mine")
    assert stm("push", "small", "me/vim", *TOKEN).code == 0
    assert sorted(hub.repos["me/vim"].files) == [".gitattributes", *FILES]


def test_from_python(hub: Hub, stm: Stm, folder: Path, python: Callable[[str], Run]) -> None:
    run = python(
        f"import stm\nmodel = stm.load({str(folder)!r}, device='cpu')\n"
        f"print(model.push_to_hub('me/vim', token={SECRET!r}, private=True, commit_message='From Python'))\n"
    )
    assert run.out == f"{hub.url}/me/vim\n", run.err
    repo = hub.repos["me/vim"]
    assert repo.private and repo.messages == ["From Python"]
    assert repo.files["config.json"] == (folder / "config.json").read_bytes()
    assert stm("info", "me/vim", *TOKEN, "--quiet").code == 0


def test_compress_pushes(hub: Hub, stm: Stm, tmp_path: Path) -> None:
    run = stm("compress", MINI, "--no-eval", "--out", "small", "--push-to", "me/vim", *TOKEN, "--json")
    assert json.loads(run.out)["push"]["url"] == f"{hub.url}/me/vim", run.err
    assert hub.repos["me/vim"].files["config.json"] == (tmp_path / "small/config.json").read_bytes()
    assert stm("compress", MINI, "--no-eval", "--out", "dry", "--push-to", "me/dry", *TOKEN, "--dry-run").code == 0
    assert "me/dry" not in hub.repos
    run = stm("compress", MINI, "--no-eval", "--out", "other", "--push-to", "me/other", "--token", "hf_wrong")
    assert run.code == 1 and "does not accept the login" in run.err
    assert not (tmp_path / "other").exists(), "asked before any work"
    run = stm("compress", MINI, "--no-eval", "--out", "other", "--push-to", "me/other")
    assert run.code == 1 and "nobody is logged in" in run.err


# --- what is refused


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors has 1 bytes"),
        (lambda folder: (folder / "README.md").unlink(), "has no README.md"),
        (
            lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"),
            "its front matter is not what the Hub takes",
        ),
        (lambda folder: (folder / "config.json").write_text("{}"), "schema_version"),
        (lambda folder: shutil.rmtree(folder), "there is no folder small"),
    ],
)
def test_a_folder_that_is_not_whole_is_not_pushed(
    hub: Hub, stm: Stm, small: Path, break_it: Callable[[Path], object], said: str
) -> None:
    break_it(small)
    run = stm("push", "small", "me/vim", *TOKEN)
    assert run.code == 1 and said in run.err
    assert hub.seen == []


def test_who_may_not(hub: Hub, stm: Stm, small: Path) -> None:
    assert "the Hub does not accept the login" in stm("push", "small", "me/vim", "--token", "hf_wrong").err
    assert "nobody is logged in" in stm("push", "small", "me/vim").err
    hub.repos["they/vim"] = Repo()
    run = stm("push", "small", "they/vim", *TOKEN)
    assert run.code == 1 and "this login may not write they/vim (403)" in run.err
    run = stm("push", "small", "they/new", *TOKEN)
    assert run.code == 1 and "may not write they/new (403)" in run.err
    hub.repos["they/gated"] = Repo(gated=True)
    assert "they/gated is gated" in stm("push", "small", "they/gated", *TOKEN).err
    assert "no name of a repo" in stm("push", "small", "a/b/c", *TOKEN).err
    run = stm("push", "small", "me/vim", *TOKEN, "--commit-message", " ")
    assert run.code == 2
    run = stm("push", "small", "me/vim", *TOKEN, offline=True)
    assert run.code == 1 and "HF_HUB_OFFLINE is set" in run.err


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("POST", "/commit/", 409), "somebody else changed me/vim meanwhile (409)"),
        (Fault("POST", "/commit/", 412), "somebody else changed me/vim meanwhile (412)"),
        (Fault("POST", "/commit/", 403), "may not write me/vim (403)"),
        (Fault("POST", "/preupload/", 401), "the Hub does not accept the login"),
        (Fault("POST", "/commit/", 418), "the Hub refused me/vim (418)"),
        (Fault("POST", "validate-yaml", 400, body=b'{"errors": []}'), "the Hub does not take README.md"),
        *((Fault("POST", "/commit/", status), f"({status})") for status in (500, 503)),
        (Fault("POST", "/preupload/", 429, {"Retry-After": "3"}), "(429)"),
        (Fault("PUT", "/lfs/", 500), "me/vim"),
        (Fault("GET", "/api/models/me/vim", 500), "the Hub failed (500)"),
    ],
    ids=lambda value: f"{value.path} {value.status}" if isinstance(value, Fault) else "",
)
def test_a_server_that_refuses_and_then_does_not(hub: Hub, stm: Stm, small: Path, fault: Fault, said: str) -> None:
    """Whatever goes wrong, what was there is as it was, and the same command again succeeds."""
    hub.repos["me/vim"] = Repo({"notes.txt": b"."})
    hub.faults = [fault] * 20
    run = stm("push", "small", "me/vim", *TOKEN)
    assert run.code == 1 and said in run.err.splitlines()[-2], run.err
    assert hub.repos["me/vim"].files == {"notes.txt": b"."}
    hub.faults.clear()
    assert stm("push", "small", "me/vim", *TOKEN).code == 0
    assert sorted(hub.repos["me/vim"].files) == [*FILES, "notes.txt"]


@pytest.mark.parametrize("path", ["/preupload/", "/commit/", "/lfs/", "repos/create"])
def test_a_failure_that_passes_is_not_seen(hub: Hub, stm: Stm, small: Path, path: str) -> None:
    hub.faults = [Fault("PUT" if path == "/lfs/" else "POST", path, 503)]
    run = stm("push", "small", "me/vim", *TOKEN)
    if path in ("repos/create", "/commit/"):  # huggingface_hub asks only once
        assert "the Hub failed (503)" in run.err
        run = stm("push", "small", "me/vim", *TOKEN)
    assert run.code == 0, run.err


def test_two_pushes_at_once(hub: Hub, stm: Stm, small: Path, folder: Path) -> None:
    """The other one commits between our look and our commit: nothing of it is lost, and the same command again
    succeeds."""
    hub.repos["me/vim"] = Repo({"notes.txt": b"."})
    theirs = {"notes.txt": b"theirs", "README.md": b"# Theirs\n"}
    hub.faults = [Fault("POST", "/commit/", call=lambda: hub.repos["me/vim"].commit(theirs))]
    run = stm("push", "small", "me/vim", *TOKEN)
    assert run.code == 1 and "somebody else changed me/vim meanwhile" in run.err and "run it again" in run.err
    assert hub.repos["me/vim"].files == theirs
    assert changes(stm("push", "small", "me/vim", *TOKEN, "--json"))["README.md"] == "kept"
    assert hub.repos["me/vim"].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_two_pushes_at_once_that_both_make_the_repository(hub: Hub, stm: Stm, small: Path) -> None:
    hub.faults = [Fault("POST", "repos/create", call=lambda: hub.repos.update({"me/vim": Repo()}))]
    assert stm("push", "small", "me/vim", *TOKEN).code == 0
    assert sorted(hub.repos["me/vim"].files) == FILES
    hub.repos.clear()
    hub.faults = [Fault("POST", "repos/create", call=lambda: hub.repos.update({"me/vim": Repo()}))]
    run = stm("push", "small", "me/vim", *TOKEN, "--no-exist-ok")
    assert run.code == 1 and "(409)" in run.err


@pytest.mark.parametrize("path", ["/lfs/", "/commit/"])
def test_a_push_that_is_killed_and_run_again(hub: Hub, small: Path, stm: Stm, home: Path, path: str) -> None:
    """Killed while the weights are on their way, and after them, before the commit."""
    reached, go_on = threading.Event(), threading.Event()
    hub.faults = [
        Fault("PUT" if path == "/lfs/" else "POST", path, status=400, call=lambda: (reached.set(), go_on.wait(60)))
    ]
    temporary = small.parent / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "stm_cli", "push", "small", "me/vim", *TOKEN]
    process = subprocess.Popen(
        command,
        cwd=small.parent,
        env=clean_environment(**hub.environment(home), TMPDIR=str(temporary)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert reached.wait(60)
    process.kill()
    process.communicate()
    go_on.set()
    assert hub.repos["me/vim"].messages == []
    assert list(temporary.iterdir()) == [], "a push makes no copy of the folder"
    before = len(uploads(hub))
    assert stm("push", "small", "me/vim", *TOKEN).code == 0
    assert sorted(hub.repos["me/vim"].files) == [".gitattributes", *FILES]
    assert len(uploads(hub)) - before == (1 if path == "/lfs/" else 0), "what had come whole is not sent again"


@pytest.mark.slow
def test_a_model_whose_push_is_killed_leaves_nothing_after_the_next(hub: Hub, folder: Path, home: Path) -> None:
    """`push_to_hub` has to write the model somewhere: where it does, the next run clears, and spares living runs'."""
    temporary = home / "temporary"
    temporary.mkdir()
    push = (
        f"import stm\nmodel = stm.load({str(folder)!r}, device='cpu')\nmodel.push_to_hub('me/vim', token={SECRET!r})\n"
    )

    def start() -> subprocess.Popen[bytes]:
        environment = clean_environment(**hub.environment(home), TMPDIR=str(temporary))
        return subprocess.Popen([sys.executable, "-c", push], env=environment, stderr=subprocess.DEVNULL)

    def hold(reached: threading.Event, go_on: threading.Event) -> Fault:
        return Fault("PUT", "/lfs/", status=400, call=lambda: (reached.set(), go_on.wait(HANG)))

    reached, go_on = threading.Event(), threading.Event()
    hub.faults = [hold(reached, go_on)]
    killed = start()
    assert reached.wait(HANG)
    living = list(temporary.iterdir())
    assert [path.name.rpartition("-")[0] for path in living] == [".stm-push.stm-tmp"]
    again = start()
    assert again.wait(HANG) == 0
    assert list(temporary.iterdir()) == living, "a living run keeps its own"
    killed.kill()
    killed.wait()
    go_on.set()
    assert list(temporary.iterdir()) == living, "this is what a killed run leaves"
    hub.repos.clear()
    assert start().wait(HANG) == 0
    assert list(temporary.iterdir()) == []


# --- the token
# ------------------------------------------------------------------------------------------------------------------


def test_no_token_anywhere(hub: Hub, small: Path, home: Path, tmp_path: Path) -> None:
    """Not in output, logs, tracebacks or files, with everything that can be made to talk talking."""
    hub.repos["me/vim"] = Repo({"vim.pth": MINI.read_bytes()}, token=SECRET)
    talk = {"STM_DEBUG": "1", "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "PYTHONFAULTHANDLER": "1"}
    said = ""
    with open(tmp_path / "log", "w+") as log:
        worker = Worker(hub.environment(home) | talk, log)
        for command, faults in (
            (["compress", "me/vim", "--no-eval", "--out", "made", "--push-to", "me/made"], []),
            (["push", "small", "me/vim"], [Fault("POST", "/commit/", 403)]),
            (["push", "small", "me/vim", "--dry-run"], []),
            (["info", "me/none"], []),
            (["compress", "me/vim", "--dry-run", "--no-eval"], []),
        ):
            hub.faults = faults
            run = worker(tmp_path, argv=[*command, *TOKEN])
            said += run.out + run.err
        worker.close()
        log.seek(0)
        said += log.read()
    assert "Traceback" in said and "-> made" in said and "curl" in said, "it did talk"
    assert SECRET not in said
    assert any(SECRET in str(seen.headers) for seen in hub.seen), "it was used"
    for path in (*home.rglob("*"), *tmp_path.rglob("*")):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    for repo in hub.repos.values():
        assert all(SECRET.encode() not in body for files in repo.commits.values() for body in files.values())


def test_the_environments_token_is_used(hub: Hub, small: Path, python: Callable[[str], Run]) -> None:
    run = python(
        f"import os, stm\nos.environ['HF_TOKEN'] = {SECRET!r}\ntry:\n    print(stm.load({str(small)!r},"
        " device='cpu').push_to_hub('vim'))\nfinally:\n    del os.environ['HF_TOKEN']\n"
    )
    assert (run.code, run.out) == (0, f"{hub.url}/me/vim\n"), run.err
