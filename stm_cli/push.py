"""`stm push`: write a model's folder to the Hub."""

from rich.console import Group, RenderableType

from stm.reports import PushedFile, PushReport
from stm.units import size
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli import _publishing as p
from stm_cli._format import fields
from stm_cli._output import Output

EXAMPLES = (
    "stm push vim-s-stm40",
    "stm push vim-s-stm40 someone/vim-s-stm40 --private --dry-run",
    "stm push vim-s-stm40 team/vim-s-stm40 --create-pr",
)


@g.grouped
def run(
    folder: o.Folder,
    repo_id: p.RepoId = None,
    private: p.Private = False,
    revision: p.Branch = None,
    commit_message: p.CommitMessage = None,
    create_pr: p.CreatePr = False,
    token: p.PushToken = None,
    exist_ok: p.ExistOk = True,
    overwrite_card: p.OverwriteCard = False,
    dry_run: p.PushDryRun = False,
    *,
    display: g.Display,
) -> None:
    """Check a folder, show what will be uploaded, and write it to the Hub in one commit."""
    from stm.commands.push import push
    from stm.hub.push import PushOptions

    to = PushOptions(
        repo=repo_id,
        private=private,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
        token=token,
        exist_ok=exist_ok,
        overwrite_card=overwrite_card,
        dry_run=dry_run,
    )
    output = Output(**vars(display))

    # Before the upload, which may take long: whoever sees a wrong file can still stop it.
    def announce(files: tuple[PushedFile, ...]) -> None:
        output.note(
            "uploading "
            + ", ".join(f"{file.name} ({size(file.bytes)})" for file in files if file.change in ("added", "changed"))
        )

    # Without a listener huggingface_hub shows its own progress, which is wanted on a terminal and nowhere else.
    report = push(folder, to, None if output.live else lambda _: None, announce)
    output.report(report, screen, lambda shown: shown.url)
    for note in report.notes:
        output.note(note)
    # A dry run has written nothing, and a pull request is not on the branch that would be read.
    if not dry_run and not create_pr:
        output.next(("stm", "eval", report.repo, *(("--revision", revision) if revision else ())))


def screen(report: PushReport) -> RenderableType:
    """Draw one line per file with its change, and the commit."""
    rows = [(file.change, f"{file.name}, {size(file.bytes)}") for file in report.files]
    if report.created:
        rows.insert(0, ("repository", "would be made" if report.dry_run else "made"))
    # A push that changes nothing succeeds, and says so: it may be run again after any failure.
    if report.commit is not None:
        rows.append(("commit", report.commit))
    elif not report.dry_run:
        rows.append(("commit", "none: everything is there already"))
    return Group(f"{report.model} {'would go to' if report.dry_run else '->'} {report.url}", fields(rows))
