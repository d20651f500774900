"""A process that takes jobs, one JSON line each: a command of `stm` or a piece of Python, run as in a process of its
own.

huggingface_hub reads its environment when it is imported, and importing torch takes seconds: so tests of the Hub share
a process that was started with the environment they need. Waits between retries are left out.
"""

import io
import json
import os
import sys
import time
import traceback
from typing import Any

from stm_cli.main import main


def run(job: dict[str, Any]) -> dict[str, Any]:
    os.chdir(job["cwd"])
    streams = out, err = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    sys.stdout, sys.stderr = streams
    code = 0
    try:
        if "code" in job:
            exec(compile(job["code"], "<job>", "exec"), {"__name__": "job"})
        else:
            sys.argv = ["stm", *job["argv"]]
            main()
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in streams:
        stream.flush()
    return {"code": code, "out": out.buffer.getvalue().decode(), "err": err.buffer.getvalue().decode()}  # type: ignore[attr-defined]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    time.sleep = lambda seconds: None
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()
