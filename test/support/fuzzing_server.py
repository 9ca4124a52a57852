"""The fuzzing server of Autobahn's test suite, on the loopback interface: fuzzing_server.py PORT DIRECTORY"""
import json
import os
import sys

from autobahntestsuite import choosereactor  # before Twisted chooses another one
from twisted.internet import reactor

port, directory = int(sys.argv[1]), sys.argv[2]
listen = reactor.listenTCP


def listen_on_loopback(port, factory, backlog=50, interface="", **options):
    return listen(port, factory, backlog, "127.0.0.1", **options)


reactor.listenTCP = listen_on_loopback
spec = os.path.join(directory, "spec.json")
with open(spec, "w") as file:
    json.dump({
        "url": "ws://127.0.0.1:%d" % port,
        "outdir": os.path.join(directory, "reports"),
        "cases": ["*"],
        # Compression, which is not offered.
        "exclude-cases": ["12.*", "13.*"],
        "exclude-agent-cases": {},
    }, file)
sys.argv = ["wstest", "-m", "fuzzingserver", "-u", "0", "-s", spec]
from autobahntestsuite.wstest import run

run()
