"""Runs a program on a pseudo-terminal of 80 columns, types what it is told to and waits for what it is told to expect.

Reads {"argv": […], "env": {…}, "steps": [["type", TEXT] | ["expect", TEXT]]} from standard input, prints everything that
the program wrote, and leaves with the program's status; with 99 if something expected did not come.
"""

import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios
import time

task = json.load(sys.stdin)
child, terminal = pty.fork()
if child == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.environ.update(task["env"])
    os.execv(task["argv"][0], task["argv"])

seen, unread = b"", b""


def read(seconds):
    """What comes within the time; None at the end."""
    global seen, unread
    if not select.select([terminal], [], [], seconds)[0]:
        return b""
    try:
        data = os.read(terminal, 65536)
    except OSError:  # Linux says so when the program has left.
        return None
    seen, unread = seen + data, unread + data
    return data or None


def leave(status):
    sys.stdout.write(seen.decode(errors="replace"))
    sys.exit(status)


for kind, text in task["steps"]:
    if kind == "type":
        # As a person does it: not before the program is ready for it.
        time.sleep(0.15)
        os.write(terminal, text.encode())
        continue
    end = time.time() + 60
    while text.encode() not in unread:
        if time.time() > end or read(0.5) is None:
            print(f"`{text}` did not come", file=sys.stderr)
            leave(99)
    unread = unread.split(text.encode(), 1)[1]

while read(60) is not None:
    pass
leave(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
