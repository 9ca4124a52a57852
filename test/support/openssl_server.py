"""A STOMP server over OpenSSL: openssl_server.py CERTIFICATE KEY.

The first header of a CONNECT says what is sent after CONNECTED:

  do:bytes    a frame in records of one byte each
  do:cut      as many frames as a record has bytes, the nth record cut after n bytes
  do:slow     a frame in one record, which takes three seconds
  do:large    a frame with a body of 10 MB
  do:alert    a frame, then a record with a fatal alert that is not encrypted
  do:truncate a frame, then the end of TCP without close_notify
  do:damage   a frame, then a damaged record
"""
import socket
import ssl
import sys
import threading
import time

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print("listening on", listener.getsockname()[1], flush=True)


class Stream:
    """TLS over a socket, with the records in our hands."""

    def __init__(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.retry(self.tls.do_handshake)

    def retry(self, operation):
        while True:
            try:
                result = operation()
                self.flush()
                return result
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.connection.recv(65536))

    def flush(self):
        self.connection.sendall(self.outgoing.read())

    def records(self, plaintext):
        self.tls.write(plaintext)
        return self.outgoing.read()

    def send(self, plaintext):
        self.connection.sendall(self.records(plaintext))

    def read(self):
        return self.retry(lambda: self.tls.read(65536))


def serve(connection):
    stream = Stream(connection)
    what = stream.read().split(b"do:")[1].split(b"\n")[0].decode()
    stream.send(b"CONNECTED\nversion:1.2\nheart-beat:1000,0\n\n\0")
    if what == "bytes":
        for byte in b"MESSAGE\n\nin bytes\0":
            stream.send(bytes([byte]))
    elif what == "cut":
        frame = b"MESSAGE\n\n%04d\0"
        first = stream.records(frame % 0)
        connection.sendall(first)
        for cut in range(1, len(first)):
            record = stream.records(frame % cut)
            connection.sendall(record[:cut])
            time.sleep(0.002)
            connection.sendall(record[cut:])
    elif what == "slow":
        record = stream.records(b"MESSAGE\n\nslow\0")
        for start in range(0, len(record), 4):
            connection.sendall(record[start : start + 4])
            time.sleep(0.3)
    elif what == "large":
        stream.send(b"MESSAGE\ncontent-length:10000000\n\n" + b"0123456789" * 1_000_000 + b"\0")
    else:
        stream.send(b"MESSAGE\n\nlast\0")
        if what == "alert":
            connection.sendall(b"\x15\x03\x03\x00\x02\x02\x50")
        elif what == "damage":
            record = bytearray(stream.records(b"MESSAGE\n\ndamaged\0"))
            record[-1] ^= 1
            connection.sendall(record)
        else:
            connection.shutdown(socket.SHUT_WR)
    try:
        while stream.read():
            pass
    except ssl.SSLError as error:
        print("client:", error, flush=True)


def run(connection):
    try:
        serve(connection)
    except OSError as error:
        print("ended:", error, flush=True)


while True:
    threading.Thread(target=run, args=(listener.accept()[0],), daemon=True).start()
