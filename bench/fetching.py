"""Gets blobs from a registry, as a client of any registry does: ``fetching.py HOST:PORT CONNECTIONS PATH…``.

Started by ``apps.py`` for each measurement, against the server of cfs-tag and the reference registry alike.  Each
connection gets blob after blob, reads all of it, and throws it away.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection
from queue import Empty, SimpleQueue
from threading import Thread

_BUFFER = 1 << 20


def main() -> int:
    """Get everything that the command line names; returns the exit status: 1 where a blob was not delivered."""
    address, connections, *paths = sys.argv[1:]
    pending: SimpleQueue[str] = SimpleQueue()
    for path in paths:
        pending.put(path)
    failures: list[str] = []
    threads = [Thread(target=_get, args=(address, pending, failures)) for _ in range(int(connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


def _get(address: str, pending: SimpleQueue[str], failures: list[str]) -> None:
    buffer = bytearray(_BUFFER)
    connection = HTTPConnection(address, timeout=60)
    try:
        while True:
            path = pending.get_nowait()
            connection.request("GET", path)
            response = connection.getresponse()
            wanted = int(response.headers["Content-Length"])
            got = 0
            while count := response.readinto(buffer):
                got += count
            if response.status != 200 or got != wanted:
                failures.append(f"{path}: {response.status}, {got} of {wanted} bytes")
    except Empty:
        pass
    except Exception as error:
        failures.append(repr(error))
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
