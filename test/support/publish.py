"""Publishes with stomp.py, an independent client.

publish.py PORT DESTINATION COUNT: publishes COUNT messages, numbered from 1 in a header and in the
body.
"""
import sys

import stomp

port, destination, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
connection = stomp.Connection12([("127.0.0.1", port)], vhost="/")
connection.connect("guest", "guest", wait=True)
for number in range(1, count + 1):
    connection.send(destination, f"body {number}", headers={"number": str(number)})
connection.disconnect(receipt="done")
