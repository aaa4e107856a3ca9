"""A process that reads documents, in which files of some names do harm; else as it is."""

import os
import signal
import time
from typing import Any

from tinyqa_ray.documents import worker

read = worker.read_document


def read_or_harm(name: str, data: bytes, limits: Any) -> Any:
    """Read a file, unless its name says what to do."""
    match name.rsplit("/", 1)[-1].partition(".")[0]:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.abort()
        case "hang":
            time.sleep(1000)
        case "endless":
            while True:
                pass
        case "memory":
            return [bytes([1]) * (1 << 20) for _ in range(1 << 20)]
        case "noise":
            os.write(1, b"what a library prints")
    return read(name, data, limits)


if __name__ == "__main__":
    worker.read_document = read_or_harm
    worker.main()
