"""Downloads against a real server on the loopback interface (server.py): what does not come, and that the next run is
not hindered."""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from stm.errors import HubError
from stm.hub import reach
from stm.hub.errors import Request, translate_errors
from tests.hub.client import CLIENT, ROOT, SECRET, WEIGHTS, Client, gets, refused
from tests.hub.server import Fault, Hub, Repo
from tests.limits import NO_BYTECODE, no_file_larger_than

# --- what does not
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [["fetch", "owner/none", "vim.pth"], ["list_files", "owner/none"]])
def test_no_such_repo(client: Client, call: list[str]) -> None:
    assert "--token" in refused(client(*call), "owner/none was not found on the Hub")


def test_names_that_no_repo_and_no_file_has(hub: Hub, client: Client) -> None:
    for repo in ("a/b/c", "owner/..", "what is this", ""):
        assert "OWNER/NAME" in refused(client("fetch", repo, "vim.pth"), repr(repo))
    for file in ("", "/vim.pth", "../vim.pth", "a/../../vim.pth"):
        assert "--file" in refused(client("fetch", "owner/vim", file), repr(file))
    assert hub.seen == []


def test_a_gated_repo(hub: Hub, client: Client) -> None:
    hub.repos["owner/gated"] = Repo({"vim.pth": WEIGHTS}, gated=True)
    for call in (["fetch", "owner/gated", "vim.pth"], ["list_files", "owner/gated"]):
        hint = refused(client(*call), "owner/gated is gated")
        assert f"{hub.url}/owner/gated" in hint and "hf auth login" in hint


def test_no_such_revision(hub: Hub, client: Client) -> None:
    for call in (["fetch", "owner/vim", "vim.pth"], ["list_files", "owner/vim"]):
        assert f"{hub.url}/owner/vim/commits" in refused(client(*call, revision="v9"), "owner/vim has no revision v9")


def test_no_such_file_names_those_that_are_near(client: Client) -> None:
    assert "--file vim.pth" in refused(client("fetch", "owner/vim", "vin.pth"), "vin.pth of owner/vim does not exist")
    assert "README.md, log.txt, vim.pth" in refused(client("fetch", "owner/vim", "0"), "0 of owner/vim does not exist")


@pytest.mark.parametrize(
    ("fault", "words", "hint"),
    [
        (Fault("GET", "vim.pth", status=503), ["the Hub failed (503)", "vim.pth of owner/vim"], "in a while"),
        (Fault("GET", "vim.pth", status=403), ["may not read vim.pth of owner/vim (403)"], "hf auth login"),
        (
            Fault("HEAD", "vim.pth", 401, {"message": "Invalid credentials in Authorization header"}),
            ["does not accept the login"],
            "hf auth login",
        ),
        (Fault("GET", "vim.pth", status=418), ["refused vim.pth of owner/vim (418)"], "/owner/vim"),
        (
            Fault("HEAD", "vim.pth", 403, {"message": "Access to this resource is disabled."}),
            ["may not read"],
            "hf auth login",
        ),
    ],
    ids=lambda value: f"{value.method} {value.status}" if isinstance(value, Fault) else "",
)
def test_a_server_that_refuses(hub: Hub, client: Client, fault: Fault, words: list[str], hint: str) -> None:
    hub.faults = [fault] * 5
    assert hint in refused(client("fetch", "owner/vim", "vim.pth", token=SECRET), *words)
    assert not list(client.home.rglob("*.incomplete"))


def test_a_server_that_fails_for_long(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("HEAD", "vim.pth", status=502) for _ in range(20)]
    assert "in a while" in refused(
        client("fetch", "owner/vim", "vim.pth"), "the Hub failed (502) on vim.pth of owner/vim"
    )


def test_too_many_requests(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("GET", "tree", 429, {"Retry-After": "17"}) for _ in range(20)]
    assert refused(client("list_files", "owner/vim"), "(429)", "owner/vim") == "wait 17 seconds"


def test_a_line_that_always_drops(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("GET", "vim.pth", cut=0) for _ in range(20)]
    assert "run it again" in refused(
        client("fetch", "owner/vim", "vim.pth"), "cannot be reached for vim.pth of owner/vim"
    )
    assert not [path for path in client.home.rglob("*") if path.name == "vim.pth" or path.suffix == ".incomplete"]


@pytest.mark.parametrize("file", ["vim.pth", "log.txt"])
def test_what_is_not_what_it_is_called_does_not_stay(hub: Hub, client: Client, file: str) -> None:
    """Large files are named by their SHA-256, small ones by git's hash."""
    hub.faults = [Fault("GET", file, flip=True)]
    assert (
        refused(client("fetch", "owner/vim", file), f"{file} of owner/vim is not what the Hub says it is")
        == "run it again"
    )
    assert Path(client("fetch", "owner/vim", file)["result"]["path"]).read_bytes() == hub.repos["owner/vim"].files[file]


def stopped(hub: Hub, client: Client, number: int = signal.SIGKILL, *code: str) -> tuple[Path, str]:
    """Stop a download from outside after 65,536 bytes or more; return the part that it leaves, and what is said."""
    gone = threading.Event()
    hub.faults = [Fault("GET", "vim.pth", cut=70_000, hold=gone)]
    command = [sys.executable, "-c", *(code or (CLIENT, json.dumps(["fetch", ["owner/vim", "vim.pth"], {}])))]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=client.clean | client.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    parts: list[Path] = []
    for _ in range(600):
        parts = list(client.home.rglob("*.stm-part"))
        if parts and parts[0].stat().st_size >= 1 << 16:
            break
        time.sleep(0.1)
    process.send_signal(number)
    said = process.communicate()[1]
    gone.set()
    hub.seen.clear()
    return parts[0], said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_is_stopped_goes_on_where_it_was(hub: Hub, client: Client, number: int) -> None:
    """huggingface_hub would begin it anew. The part bears the hash of the file, and is gone when the file is whole."""
    part, _ = stopped(hub, client, number)
    came = part.stat().st_size
    assert part.stem == hashlib.sha256(WEIGHTS).hexdigest() and part.read_bytes() == WEIGHTS[:came]
    out = client("fetch", "owner/vim", "vim.pth", told=True)
    assert Path(out["result"]["path"]).read_bytes() == WEIGHTS
    assert [headers.get("range") for headers in gets(hub, "vim.pth")] == [f"bytes={came}-"]
    assert out["told"][0][1] > came and out["told"][-1][1:3] == [len(WEIGHTS)] * 2
    assert not list(client.home.rglob("*.stm-part"))
    assert Path(client("fetch", "owner/vim", "vim.pth", offline=True)["result"]["path"]).read_bytes() == WEIGHTS


def test_ctrl_c_says_what_goes_on(hub: Hub, client: Client) -> None:
    code = """
import sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 14
from stm_cli.main import main
main()
"""
    part, said = stopped(hub, client, signal.SIGINT, code, "info", "owner/vim", "--file", "vim.pth")
    assert said.splitlines()[-1] == f"Stopped: what was finished is in {part}; the same command goes on from there"


@pytest.mark.parametrize("what", ["damaged", "whole", "too long", "a link", "a pipe", "no ranges", "held"])
def test_a_part_that_is_not_to_be_gone_on_with(hub: Hub, client: Client, tmp_path: Path, what: str) -> None:
    """The file is whole all the same, and what the part was, if it was not ours, is as it was."""
    blobs = client.home / "hub" / "models--owner--vim" / "blobs"
    blobs.mkdir(parents=True)
    part, other = blobs / f"{hashlib.sha256(WEIGHTS).hexdigest()}.stm-part", tmp_path / "other"
    other.write_bytes(WEIGHTS[:5000])
    match what:
        case "damaged":
            part.write_bytes(b"?" * 5000)
        case "whole":
            part.write_bytes(WEIGHTS)
        case "too long":
            part.write_bytes(WEIGHTS + b"?")
        case "a link":
            part.symlink_to(other)
        case "a pipe":
            os.mkfifo(part)
        case _:
            part.write_bytes(WEIGHTS[:5000])
    if what == "no ranges":
        hub.faults = [Fault("GET", "vim.pth", 200, {"Content-Length": str(len(WEIGHTS))}, body=WEIGHTS)]
    with part.open("rb") if what == "held" else nullcontext() as file:
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        out = client("fetch", "owner/vim", "vim.pth")
    assert Path(out["result"]["path"]).read_bytes() == WEIGHTS
    assert other.read_bytes() == WEIGHTS[:5000]
    assert part.is_symlink() == (what == "a link") and part.is_fifo() == (what == "a pipe")
    assert part.is_file() == (what in ("a link", "held"))


def test_another_version_begins_anew(hub: Hub, client: Client) -> None:
    part, _ = stopped(hub, client)
    hub.repos["owner/vim"].commit({"vim.pth": WEIGHTS[::-1]})
    assert Path(client("fetch", "owner/vim", "vim.pth")["result"]["path"]).read_bytes() == WEIGHTS[::-1]
    assert part.is_file() and [headers.get("range") for headers in gets(hub, "vim.pth")] == [None]


def test_a_server_that_does_not_answer_in_time(hub: Hub, client: Client) -> None:
    client.environment |= {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    hub.faults = [Fault("HEAD", "vim.pth", wait=1.2), *(Fault("GET", "vim.pth", wait=1.2) for _ in range(7))]
    refused(client("fetch", "owner/vim", "vim.pth"), "cannot be reached for vim.pth of owner/vim")
    hub.faults = []
    assert Path(client("fetch", "owner/vim", "vim.pth")["result"]["path"]).read_bytes() == WEIGHTS


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_loop_of_redirects(hub: Hub, client: Client, method: str) -> None:
    hub.faults = [Fault(method, "vim.pth", 302, {"Location": "/owner/vim/resolve/main/vim.pth"}) for _ in range(200)]
    refused(client("fetch", "owner/vim", "vim.pth"), "vim.pth of owner/vim")
    hub.faults = []
    assert Path(client("fetch", "owner/vim", "vim.pth")["result"]["path"]).read_bytes() == WEIGHTS


def test_no_token_goes_to_another_host(hub: Hub, client: Client) -> None:
    """Neither where large files are, nor where a redirect of anything else leads."""
    hub.repos["owner/private"] = Repo({"vim.pth": WEIGHTS, "log.txt": b"."}, token=SECRET)
    with Hub() as other:
        other.blobs = hub.blobs
        hub.elsewhere = other.url.replace("127.0.0.1", "localhost")  # before 2.1, huggingface_hub compares names alone
        got = client("fetch", "owner/private", "vim.pth", token=SECRET)["result"]
        assert Path(got["path"]).read_bytes() == WEIGHTS
        hub.faults = [Fault("GET", "log.txt", 302, {"Location": f"{other.url}/elsewhere"})]
        assert "kind" in client("fetch", "owner/private", "log.txt", token=SECRET)
        assert {seen.path.rpartition("/")[0] for seen in other.seen} == {"/lfs", ""}
        assert not [seen for seen in other.seen if SECRET in str(seen)]
    assert [seen for seen in hub.seen if SECRET in str(seen)]


def test_nobody_answers(hub: Hub, client: Client) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client.environment["HF_ENDPOINT"] = f"http://127.0.0.1:{free.getsockname()[1]}"
    for call in (["fetch", "owner/vim", "vim.pth"], ["list_files", "owner/vim"]):
        out = client(*call)
        refused(out, client.environment["HF_ENDPOINT"], "cannot be reached", "owner/vim")
        assert out["stderr"] == "", "no attempt after the first, and no line about it"


def test_without_a_network_the_cache_will_do(hub: Hub, client: Client) -> None:
    path = client("fetch", "owner/vim", "vim.pth")["result"]["path"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client.environment["HF_ENDPOINT"] = f"http://127.0.0.1:{free.getsockname()[1]}"
    out = client("fetch", "owner/vim", "vim.pth")
    assert out["result"]["path"] == path and out["stderr"] == ""
    assert client("list_files", "owner/vim")["result"] == ["vim.pth"]


def test_a_host_that_says_nothing_does_not_count_as_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an address that no packet comes back from."""
    monkeypatch.setattr(reach, "_PATIENCE", 0.2)
    monkeypatch.setattr(reach, "_silent_since", {})
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not reach.is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_is_no_hub(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("HEAD", "vim.pth", status=204) for _ in range(20)]
    assert "HF_ENDPOINT" in refused(client("fetch", "owner/vim", "vim.pth"), "does not answer as a Hub does")


def test_offline_says_what_is_not_in_the_cache(hub: Hub, client: Client) -> None:
    hint = refused(
        client("fetch", "owner/vim", "vim.pth", offline=True),
        "vim.pth of owner/vim is not in the local cache",
        "HF_HUB_OFFLINE",
    )
    assert "once online" in hint
    refused(client("list_files", "owner/vim", offline=True), "owner/vim is not in the local cache")
    assert hub.seen == []


def test_a_cache_that_cannot_be_written(hub: Hub, client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    client.environment["HF_HOME"] = str(tmp_path / "file")
    assert "HF_HOME" in refused(client("fetch", "owner/vim", "vim.pth"), "cannot be kept", "Not a directory")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a device that is always full")
def test_a_full_disk(hub: Hub, client: Client) -> None:
    client.environment |= NO_BYTECODE
    with no_file_larger_than(50_000):
        out = client("fetch", "owner/vim", "vim.pth")
    assert "HF_HOME" in refused(out, "no space is left for vim.pth of owner/vim")
    assert not list(client.home.rglob("*.incomplete"))


@pytest.mark.parametrize("token", ["", f"{SECRET}\n", f"a {SECRET}", f"{SECRET}é"])
def test_a_token_that_is_none_is_not_quoted(hub: Hub, client: Client, token: str) -> None:
    for call in (["fetch", "owner/vim", "vim.pth"], ["list_files", "owner/vim"]):
        out = client(*call, token=token)
        assert (out["kind"], out["code"]) == ("UsageError", 2)
        assert "token" in out["message"]
    assert hub.seen == []


def test_what_is_not_of_the_hub_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError), translate_errors(Request("owner/vim")):
        raise KeyError("a bug")
    with (
        pytest.raises(HubError, match="or it may not be written with this login") as caught,
        translate_errors(Request("owner/vim", upload=True)),
    ):
        raise type("RepositoryNotFoundError", (Exception,), {})
    assert "hf auth login" in str(caught.value.hint)
