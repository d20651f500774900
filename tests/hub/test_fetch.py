"""Downloads against a real server on the loopback interface (server.py): what comes, which file is meant, short
names."""

import math
from pathlib import Path

import pytest

from stm.checkpoint.stored import Stored
from stm.config import ModelConfig
from stm.errors import HubError
from stm.hub.aliases import ALIASES
from stm.hub.fetch import only_checkpoint
from stm.measure import flops
from tests.hub.client import SECRET, WEIGHTS, Client, gets, refused
from tests.hub.server import Fault, Hub, Repo

# --- what comes
# -----------------------------------------------------------------------------------------------------------------


def test_a_file_with_its_commit(hub: Hub, client: Client) -> None:
    got = client("fetch", "owner/vim", "vim.pth")["result"]
    assert Path(got["path"]).read_bytes() == WEIGHTS
    assert got == got | {"repo": "owner/vim", "file": "vim.pth", "revision": hub.repos["owner/vim"].refs["main"]}


def test_a_second_time_it_is_in_the_cache(hub: Hub, client: Client) -> None:
    first = client("fetch", "owner/vim", "vim.pth")["result"]
    assert client("fetch", "owner/vim", "vim.pth")["result"] == first
    assert len(gets(hub, "vim.pth")) == 1
    seen = len(hub.seen)
    assert client("fetch", "owner/vim", "vim.pth", offline=True)["result"] == first
    assert client("fetch", "owner/vim", "vim.pth", revision=first["revision"])["result"] == first
    assert len(hub.seen) == seen


@pytest.mark.parametrize("asked", [False, True])
def test_files_of_xet_come_over_http_unless_the_user_chose(hub: Hub, client: Client, asked: bool) -> None:
    """Xet's own connections keep none of the rules of stm.hub.guard."""
    token = f"{hub.url}/api/models/owner/vim/xet-read-token/main"
    offer = {"X-Xet-Hash": "ab" * 32, "Link": f'<{token}>; rel="xet-auth"'}
    hub.faults = [Fault("HEAD", "vim.pth", more=offer) for _ in range(9)]
    if asked:
        client.environment["HF_HUB_DISABLE_XET"] = "0"
    out = client("fetch", "owner/vim", "vim.pth")
    assert any("xet-read-token" in seen.path for seen in hub.seen) == asked
    if not asked:
        assert Path(out["result"]["path"]).read_bytes() == WEIGHTS


def test_a_revision_is_resolved(hub: Hub, client: Client) -> None:
    repo = hub.repos["owner/vim"]
    old = repo.refs["main"]
    new = repo.commit({"a/b/vim.pth": b"new"}, ref="v2")
    got = client("fetch", "owner/vim", "a/b/vim.pth", revision="v2")["result"]
    assert (got["revision"], Path(got["path"]).read_bytes()) == (new, b"new")
    assert client("fetch", "owner/vim", "vim.pth", revision=old)["result"]["revision"] == old


@pytest.mark.parametrize(
    ("card", "license", "datasets"),
    [
        (b"---\r\nlicense: 'mit'\r\ndatasets: [a/b, c]\r\n---\r\n", "mit", "('a/b', 'c')"),
        (b"---\nlicense: [apache-2.0]\ndatasets: a/b\n---\n", "None", "('a/b',)"),
        (b"# No front matter\nlicense: mit\n", "None", "()"),
        (b"---\ntags: [a]\n---\nlicense: mit\n", "None", "()"),
        (b"---\n- a list\n---\n", "None", "()"),
        (b"---\nlicense: [broken\n\xff", "None", "()"),
        (b"---\nlicense: [broken\n---\n", "None", "()"),
        (None, "None", "()"),
    ],
)
def test_what_the_front_matter_of_the_card_says(
    hub: Hub, client: Client, card: bytes | None, license: str, datasets: str
) -> None:
    commit = hub.repos["owner/vim"].commit({"vim.pth": WEIGHTS} | ({} if card is None else {"README.md": card}))
    assert client("about", "owner/vim", commit)["result"] == {"license": license, "datasets": datasets}


def test_a_line_that_drops_is_taken_up_where_it_was(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("GET", "vim.pth", cut=70_000)]
    got = client("fetch", "owner/vim", "vim.pth")["result"]
    assert Path(got["path"]).read_bytes() == WEIGHTS
    assert [headers.get("range") for headers in gets(hub, "vim.pth")] == [None, "bytes=65536-"]  # four whole pieces


def test_a_failing_server_is_asked_again(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("HEAD", "vim.pth", status=503)]
    assert Path(client("fetch", "owner/vim", "vim.pth")["result"]["path"]).read_bytes() == WEIGHTS


def test_progress_is_told_and_nothing_drawn(client: Client) -> None:
    out = client("fetch", "owner/vim", "vim.pth", told=True)
    assert out["told"][-1] == ["download vim.pth", len(WEIGHTS), len(WEIGHTS), "B"]
    assert [done for _, done, _, _ in out["told"]] == [*range(1 << 14, len(WEIGHTS), 1 << 14), len(WEIGHTS)]
    assert out["stderr"] == ""


def test_a_private_repo_with_its_token(hub: Hub, client: Client) -> None:
    hub.repos["owner/private"] = Repo({"vim.pth": WEIGHTS}, token=SECRET)
    assert Path(client("fetch", "owner/private", "vim.pth", token=SECRET)["result"]["path"]).read_bytes() == WEIGHTS
    assert client("list_files", "owner/private", token=SECRET)["result"] == ["vim.pth"]
    hint = refused(
        client("list_files", "owner/private", token="hf_other"), "owner/private was not found", "may not be seen"
    )
    assert "hf auth login" in hint


# --- which file
# -----------------------------------------------------------------------------------------------------------------


def test_one_call_lists_a_repo(hub: Hub, client: Client) -> None:
    assert client("list_files", "owner/vim")["result"] == ["README.md", "log.txt", "vim.pth"]
    assert [seen.path for seen in hub.seen if "/api/models/" in seen.path] == ["/api/models/owner/vim/tree/main"]
    hub.repos["owner/vim"].commit({"deep/vim.pt": b""}, ref="v2")
    assert client("list_files", "owner/vim", revision="v2")["result"] == ["deep/vim.pt"]


def test_offline_the_cached_snapshot_is_listed(hub: Hub, client: Client) -> None:
    client("fetch", "owner/vim", "vim.pth")
    assert client("list_files", "owner/vim", offline=True)["result"] == ["vim.pth"]


def test_the_only_checkpoint_of_a_repo() -> None:
    assert only_checkpoint("owner/vim", ["README.md", "deep/Model.SAFETENSORS"]) == "deep/Model.SAFETENSORS"
    with pytest.raises(HubError, match=r"owner/vim holds 3 checkpoints: a.bin, b.pth, c.pt") as caught:
        only_checkpoint("owner/vim", ["README.md", "a.bin", "b.pth", "c.pt"])
    assert caught.value.hint == "name one: --file a.bin"
    with pytest.raises(HubError, match=r"owner/vim holds no checkpoint .*, only README.md, log.txt"):
        only_checkpoint("owner/vim", ["README.md", "log.txt"])
    with pytest.raises(HubError, match=r"nor any other file"):
        only_checkpoint("owner/vim", [])


# --- aliases
# --------------------------------------------------------------------------------------------------------------------


def test_aliases_are_those_of_the_official_readme() -> None:
    """Names and accuracies: hustvl/Vim, README; the accuracy is in each file's name. Tokens and parameters follow from
    the model."""
    vims = ["vim-ti", "vim-ti-plus", "vim-s", "vim-s-plus", "vim-b"]
    assert [name for name in ALIASES if name.startswith("vim-")] == vims
    for alias in map(ALIASES.__getitem__, vims):
        assert f"_{alias.top1 * 100:.1f}acc.pth".replace(".", "p", 1) in alias.file
        grid = (alias.image_size - alias.patch) // alias.stride + 1
        assert alias.tokens == grid**2 + 1
        assert alias.license == "apache-2.0"
    plus, base = ALIASES["vim-ti-plus"], ALIASES["vim-ti"]
    assert plus.parameters - base.parameters == (plus.tokens - base.tokens) * 192  # the positions alone
    plus, base = ALIASES["vim-s-plus"], ALIASES["vim-s"]
    assert plus.parameters - base.parameters == (plus.tokens - base.tokens) * 384


@pytest.mark.parametrize(("name", "tokens"), [("mambar-s", 208), ("mambar-b", 208), ("mambar-l", 212)])
def test_mamba_r_has_the_shape_of_its_builder(name: str, tokens: int) -> None:
    """wangf3014/Mamba-Reg@0f7c2da, models_mamba.py and README."""
    alias = ALIASES[name]
    shape = ModelConfig(
        d_model=alias.d_model,
        dt_rank=math.ceil(alias.d_model / 16),
        depth=alias.depth,
        class_tokens=alias.class_tokens,
        neck=alias.neck,
    )
    assert (alias.tokens, alias.parameters) == (shape.tokens, flops.parameters(shape, 1000)) and shape.tokens == tokens
    assert alias.license is None  # nothing that we could read states it


def test_aliases_of_videomamba_are_those_of_its_model_zoo() -> None:
    """OpenGVLab/VideoMamba, videomamba/image_sm/MODEL_ZOO.md. The names of the files tell how they are read, so that
    the same file from elsewhere is the same model."""
    found = {name: alias for name, alias in ALIASES.items() if name.startswith("videomamba")}
    assert {name: (alias.file, alias.top1) for name, alias in found.items()} == {
        "videomamba-ti": ("videomamba_t16_in1k_res224.pth", 0.769),
        "videomamba-ti-448": ("videomamba_t16_in1k_res224to448.pth", 0.793),
        "videomamba-ti-576": ("videomamba_t16_in1k_res224to448to576.pth", 0.796),
        "videomamba-s": ("videomamba_s16_in1k_res224.pth", 0.812),
        "videomamba-s-448": ("videomamba_s16_in1k_res224to448.pth", 0.832),
        "videomamba-s-576": ("videomamba_s16_in1k_res224to448to576.pth", 0.835),
        "videomamba-m": ("videomamba_m16_in1k_res224.pth", 0.828),
        "videomamba-m-448": ("videomamba_m16_in1k_res224to448.pth", 0.838),
        "videomamba-m-576": ("videomamba_m16_in1k_res224to448to576.pth", 0.840),
        "videomamba-b": ("videomamba_b16_in1k_res224.pth", 0.827),
    }
    for alias in found.values():
        stored = Stored.of(None, alias.file)
        assert stored.size_by_name is not None and stored.size_by_name.value == alias.image_size
        assert {said.value for said in stored.class_token} == {alias.class_token} == {"head"}
        assert {said.value for said in stored.divide_out} == {alias.divide_out} == {False}
        assert alias.tokens == {224: 197, 448: 785, 576: 1297}[alias.image_size]
        assert (alias.depth, alias.repo, alias.license) == (
            32 if alias.d_model == 576 else 24,
            "OpenGVLab/VideoMamba",
            "apache-2.0",
        )
        shape = ModelConfig(
            image_size=alias.image_size, d_model=alias.d_model, depth=alias.depth, dt_rank=alias.d_model // 16
        )
        assert alias.parameters == flops.parameters(shape, 1000)
