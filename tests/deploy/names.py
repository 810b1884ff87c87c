"""Cluster DNS for one machine: answers names of services and of their pods with what Kubernetes's API says now.

    names.py ADDRESS API TOKEN
"""

import json
import socket
import ssl
import struct
import sys
import time
import urllib.request

ZONE = "svc.cluster.local"
A, AAAA = 1, 28
NO_SUCH_NAME = 3


class Names:
    """Name → addresses, read again when it is older than half a second."""

    def __init__(self, api, token):
        self.api, self.token, self.known, self.read_at = api, token, {}, 0.0

    def list(self, kind):
        request = urllib.request.Request(f"{self.api}/api/v1/{kind}", headers={"authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, context=ssl._create_unverified_context(), timeout=2) as answer:
            return json.load(answer)["items"]

    def read(self):
        known = {}
        for service in self.list("services"):
            address = service["spec"].get("clusterIP")
            if address and address != "None":
                known[name_of(service)] = [address]
        for endpoints in self.list("endpoints"):
            addresses = [address for subset in endpoints.get("subsets") or [] for address in subset.get("addresses") or []]
            known.setdefault(name_of(endpoints), [address["ip"] for address in addresses])
            for address in addresses:
                if "hostname" in address:
                    known[f"{address['hostname']}.{name_of(endpoints)}"] = [address["ip"]]
        return known

    def find(self, name):
        if time.monotonic() > self.read_at + 0.5:
            self.known, self.read_at = self.read(), time.monotonic()
        return self.known.get(name)


def name_of(thing):
    return f"{thing['metadata']['name']}.{thing['metadata']['namespace']}.{ZONE}"


def question(packet):
    """(name, type, where the question ends) of a query."""
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1:at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    kind, _ = struct.unpack("!HH", packet[at + 1:at + 5])
    return ".".join(labels).lower(), kind, at + 5


def answer(packet, names):
    name, kind, end = question(packet)
    addresses = names.find(name)
    records = [
        b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 1, 4) + socket.inet_aton(address)
        for address in addresses or [] if kind == A
    ]
    flags = 0x8580 | (NO_SUCH_NAME if addresses is None else 0)
    header = packet[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0)
    return header + packet[12:end] + b"".join(records)


def main():
    address, api, token = sys.argv[1:]
    names = Names(api, token)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind((address, 53))
        while True:
            packet, asker = door.recvfrom(4096)
            try:
                door.sendto(answer(packet, names), asker)
            except (OSError, ValueError, IndexError) as error:
                print(f"{packet!r}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
