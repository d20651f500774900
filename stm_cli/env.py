"""`stm env`: show the versions, devices and backends that a bug report needs."""

from rich.console import RenderableType

from stm.reports import EnvReport
from stm_cli import _groups as g
from stm_cli._format import environment_text, fields
from stm_cli._output import Output

EXAMPLES = ("stm env", "stm env --json")


@g.grouped
def run(*, display: g.Display) -> None:
    """Show versions, devices, backends, and why one is missing."""
    from stm.commands import env

    # The one command that must work on a broken installation, so nothing here opens a model.
    report = env.environment()
    Output(**vars(display)).report(report, screen, lambda shown: shown.environment.backend)


def screen(report: EnvReport) -> RenderableType:
    """Draw versions and devices, then one line per backend with the reason why it can or cannot be used."""
    # The leading spaces put the backends below their heading.
    backends = [
        (f"  {backend.name}", f"{'available' if backend.available else 'not available'}: {backend.reason}")
        for backend in report.backends
    ]
    return fields(
        [
            ("stm", report.environment.stm),
            ("python", report.python),
            ("platform", report.platform),
            (
                "packages",
                ", ".join(f"{name} {version or 'not installed'}" for name, version in sorted(report.packages.items())),
            ),
            ("devices", ", ".join(report.devices)),
            ("runs on", environment_text(report.environment)),
            ("products", report.products),
            ("backends", ""),
            *backends,
        ]
    )
