"""Started by test_cluster.py: two nodes, a link between them that is cut and healed, and a third node that is not concerned."""

import subprocess
import sys

from network import Network, enter

ECHO = "import socket,sys; s=socket.create_server((sys.argv[1], 7000)); print(1, flush=True)\nwhile True: s.accept()[0].sendall(b'x')"
ASK = "import socket,sys; s=socket.create_connection((sys.argv[1], 7000), 1); s.settimeout(1); sys.exit(s.recv(1) != b'x')"


def main():
    enter()
    network = Network()
    one = network.add("one")
    network.add("two")
    network.add("three")
    server = subprocess.Popen(network.command("one", sys.executable, "-c", ECHO, one), stdout=subprocess.PIPE)
    server.stdout.readline()
    ask = lambda node: subprocess.run(network.command(node, sys.executable, "-c", ASK, one), stderr=subprocess.DEVNULL).returncode == 0
    try:
        print("open" if ask("two") else "closed")
        network.cut("one", "two")
        print("cut: nothing came" if not ask("two") and ask("three") else "not cut, or cut too much")
        network.heal("two", "one")
        print("open" if ask("two") else "closed")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
