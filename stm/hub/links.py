"""Links to a model on the Hub: `hf://OWNER/NAME[@REVISION][/FILE]`, and the addresses of its web pages.

A link is read, not followed: what it names is fetched as any other file of a repo, so that no other host is ever asked.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from stm.errors import UsageError
from stm.hub.errors import endpoint


@dataclass(frozen=True)
class Link:
    """What a link names: a repo, and where it says so a file in it and a branch, tag or commit."""

    repo: str
    file: str | None
    revision: str | None


def read_link(text: str) -> Link:
    """The repo and file that a link names.

    Raises:
        UsageError: it leads to another host than the Hub (HF_ENDPOINT), or to nothing that can be a model. What a link
            may carry beside a name, such as a password, is not repeated.
    """
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    hint = f"links to a file are hf://OWNER/NAME/FILE and {endpoint()}/OWNER/NAME/resolve/main/FILE"
    given, hub = urlsplit(text), urlsplit(endpoint())
    if given.scheme != "hf":
        if (given.scheme, given.netloc) != (hub.scheme, hub.netloc):
            raise UsageError(
                f"the link leads to {given.scheme}://{given.hostname or ''}, expected the Hub's own host, {endpoint()}",
                hint,
            )
        if given.query not in ("", "download=true"):
            raise UsageError("the link carries a query, which only the Hub's web pages understand", hint)
    try:
        found = parse_hf_uri(text, endpoint=endpoint())
    except HfUriError as error:
        raise UsageError(f"{text} names no repo on the Hub", hint) from error
    if found.type != "model":
        raise UsageError(f"{text} is a {found.type}, expected a model", hint)
    return Link(found.id, found.path_in_repo or None, found.revision)
