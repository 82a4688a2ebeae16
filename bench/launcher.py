"""Starts programs for ``measure.py``, which talks to it through its standard input and output.

A process of its own, and a small one: what the kernel reports as the peak memory of a program is never less than the memory
of the process that started it, because that is what the program is between fork and exec.

A request is a marshalled tuple after its length: commands (lists of words, run one after the other), environment, and
the paths of standard input, output and error.  The answer is another: seconds of wall time for all of them, largest peak
resident memory in bytes, user and system seconds, and the first wait status that is not 0.
"""

import marshal
import os
import sys
from time import perf_counter

_HEAD = 8


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := requests.read(_HEAD):
        answer = marshal.dumps(_run(*marshal.loads(requests.read(int.from_bytes(head, "little")))))
        answers.write(len(answer).to_bytes(_HEAD, "little") + answer)
        answers.flush()


def _run(
    commands: list[list[str]], environment: dict[str, str], stdin: str, stdout: str, stderr: str
) -> tuple[float, int, float, float, int]:
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, stdout, writing, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, stderr, writing, 0o644),
    ]
    peak, user, system, failed = 0, 0.0, 0.0, 0
    start = perf_counter()
    for command in commands:
        pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
        _, status, used = os.wait4(pid, 0)
        peak = max(peak, used.ru_maxrss << 10)
        user += used.ru_utime
        system += used.ru_stime
        if status:
            failed = status
            break
    return perf_counter() - start, peak, user, system, failed


if __name__ == "__main__":
    main()
