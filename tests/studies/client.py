"""A launcher of one rank, `python client.py SOCKET launchers/X.py WORDS…`: `warm.Server` has imported everything."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    server.sendall(json.dumps({"cwd": os.getcwd(), "words": sys.argv[2:]}).encode() + b"\n")
    answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
said = json.loads(answer)
sys.stderr.write(said["said"])
sys.exit(said["code"])
