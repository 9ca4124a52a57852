"""Decodes and encodes frames with stomp.py.

Answers each line of input with a line. `read BYTES` answers with frames, after a `!` if stomp.py
raised an exception. `write FRAME` answers with bytes.

Everything is in hex. Frames are separated by `;`. A frame is a command, a body and headers, separated
by `,`. A header is `name=value`.
"""
import sys

from stomp import exception, transport, utils


class Replay(transport.BaseTransport):
    """Receives the given bytes, and then the end of the stream."""

    def __init__(self, data):
        super().__init__()
        self.running = True
        self.pieces = [data, b""]

    def receive(self):
        return self.pieces.pop(0)


def to_hex(text):
    return (text if isinstance(text, bytes) else text.encode()).hex()


def of_hex(text):
    return bytes.fromhex(text).decode()


def frame_to_text(frame):
    headers = [to_hex(name) + "=" + to_hex(value) for name, value in frame.headers.items()]
    return ",".join([to_hex(frame.cmd), to_hex(frame.body), *headers])


def read(data):
    frames, refused = [], ""
    try:
        for raw in Replay(data)._BaseTransport__read():
            frame = None if raw in (b"\n", b"\r\n") else utils.parse_frame(raw)
            if frame is not None:
                frames.append(frame_to_text(frame))
    except exception.ConnectionClosedException:
        pass
    except Exception:
        refused = "!"
    return refused + ";".join(frames)


def write(text):
    command, body, *headers = text.split(",")
    headers = dict(map(of_hex, header.split("=")) for header in headers)
    frame = utils.Frame(of_hex(command), headers, bytes.fromhex(body))
    return b"".join(utils.convert_frame(frame)).hex()


for line in sys.stdin:
    request, _, argument = line.rstrip("\n").partition(" ")
    print(read(bytes.fromhex(argument)) if request == "read" else write(argument), flush=True)
