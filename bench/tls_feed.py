"""Sends the contents of a file again and again, over TLS: tls_feed.py FILE PEM MILLISECONDS.

It waits so long between two of them; 0 is a flood.
"""
import os
import socket
import ssl
import sys
import threading
import time

CONNECTED = b"CONNECTED\nversion:1.2\nheart-beat:1000,0\n\n\0\n"

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
with open(sys.argv[1], "rb") as file:
    payload = file.read()

interval = int(sys.argv[3]) / 1000
threading.stack_size(256 * 1024)

listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)


def end_with_input():
    sys.stdin.buffer.read()
    os._exit(0)


def flood(connection):
    try:
        with context.wrap_socket(connection, server_side=True) as stream:
            stream.sendall(CONNECTED)
            while True:
                stream.sendall(payload)
                if interval:
                    time.sleep(interval)
    except OSError:
        pass


threading.Thread(target=end_with_input, daemon=True).start()
while True:
    threading.Thread(target=flood, args=(listener.accept()[0],), daemon=True).start()
