"""Read files of the Hub in place, by ranges of bytes over HTTP. Nothing is kept on disk."""

import io
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from stm.errors import HubError
from stm.hub.errors import Request
from stm.hub.reach import asking


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset's repo at a commit. It opens as a `Path` does.

    Args:
        size: in bytes.
        token: of the Hub; kept out of `repr`, because messages and logs show that.
    """

    repo: str
    commit: str
    file: str
    size: int
    token: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Return the last part of the file's path, as `Path.name` does."""
        return self.file.rpartition("/")[2]

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return a stream in which every read is one request for exactly its bytes. Parquet wants that: it knows where
        its columns are."""
        return cast(BinaryIO, _Ranges(self))

    def ahead(self, size: int = 4 << 20) -> BinaryIO:
        """Return a stream to read from beginning to end, with `size` bytes per request. Tar files want that: their
        headers lie between the images."""
        return cast(BinaryIO, io.BufferedReader(_Ranges(self), size))

    def fingerprint(self) -> str:
        """Return the file's full name. It holds the commit, which tells two contents apart."""
        return f"{self.repo}@{self.commit}/{self.file}"

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to before `stop`.

        Raises:
            HubError: the bytes did not come, after several attempts of huggingface_hub.
        """
        request = Request(self.repo, self.file, self.commit, kind="dataset")
        with asking(request):
            # The Hub's own client, so that its retries, timeouts, proxies and logins hold here too.
            from huggingface_hub import constants, hf_hub_url
            from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

            url = hf_hub_url(self.repo, self.file, repo_type="dataset", revision=self.commit)
            headers = build_hf_headers(token=self.token) | {"Range": f"bytes={start}-{stop - 1}"}
            answer = http_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(answer)
        # A server that ignores the range answers 200 with the whole file, which would pass for the part.
        if answer.status_code != 206 or len(answer.content) != stop - start:
            raise HubError(
                f"{request} did not come in the range that was asked for", "download it instead: without stream:"
            )
        return answer.content


class _Ranges(io.RawIOBase):
    """A stream of a `HubFile`, with the methods that pyarrow and tarfile call on a file."""

    def __init__(self, file: HubFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    # The base class allows any buffer, but `io` passes a memoryview.
    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        stop = min(self._at + len(buffer), self._file.size)
        if stop <= self._at:  # the end: a request for no bytes would be refused
            return 0
        data = self._file.read(self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)
