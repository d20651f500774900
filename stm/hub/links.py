"""Read links to a model on the Hub: `hf://OWNER/NAME[@REVISION][/FILE]`, and the addresses of its web pages.

A link is read, not followed. The file that it names is then fetched as any other file of a repo, so no other host is
ever asked.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from stm.errors import UsageError
from stm.hub.errors import address, endpoint


@dataclass(frozen=True)
class Link:
    """The target of a link: a repo, a file in it, and a branch, tag or commit. None for a part that the link omits."""

    repo: str
    file: str | None
    revision: str | None


def read_link(text: str) -> Link:
    """Return the target of a link.

    Raises:
        UsageError: the link leads to another host than the Hub (HF_ENDPOINT), or to something that is no model. The
            message does not repeat what else a link may carry, such as a password.
    """
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    hint = f"links to a file are hf://OWNER/NAME/FILE and {address()}/OWNER/NAME/resolve/main/FILE"
    given, hub = urlsplit(text), urlsplit(endpoint())
    if given.scheme != "hf":
        # The whole network location: `huggingface.co@elsewhere.org` begins as the Hub's does, and leads elsewhere.
        if (given.scheme, given.netloc) != (hub.scheme, hub.netloc):
            raise UsageError(
                f"the link leads to {given.scheme}://{given.hostname or ''}, expected the Hub's own host, {address()}",
                hint,
            )
        # The download button of a file's page links to `?download=true`.
        if given.query not in ("", "download=true"):
            raise UsageError("the link carries a query, which only the Hub's web pages understand", hint)
    try:
        target = parse_hf_uri(text, endpoint=endpoint())
    except HfUriError as error:
        raise UsageError(f"{text} names no repo on the Hub", hint) from error
    if target.type != "model":
        raise UsageError(f"{text} is a {target.type}, expected a model", hint)
    return Link(target.id, target.path_in_repo or None, target.revision)  # the path of a bare repo is ""
