"""A small provider plugin for the tests: v1alpha1.CSIDriverProvider on a unix socket.

It knows nothing of the driver but the public protocol, and has no code that was generated from it. What it
answers is read at each call from `behaviour.json` in the folder of --control; each call is a line there in
`calls.jsonl`. A behaviour has any of these members:

files       [[path, contents, mode], ...]   what Mount answers
versions    [[id, version], ...]            of the objects; if it is missing, each path with the version "1"
big         bytes                           one file of so many bytes instead
write       [[path, contents, mode], ...]   what is written into target_path
link        [path, to]                      a symlink that is written there
fifo        path                            a FIFO that is written there
error_code  text                            MountResponse.error.code
status      [code, text]                    ends the call so
echo        true                            ends the call with an error that quotes the pod's tokens
long        bytes                           ends the call with an error of so many bytes
hang        true                            never answers, until the caller goes
late        true                            and writes only then, as if nobody had gone
crash       true                            ends the process in the call
raw         hex                             the bytes of the answer, whatever they are
more        hex                             bytes after a good answer
protocol    text                            what Version answers
"""

import argparse
import json
import os
import socket
import sys
import threading
import time
from concurrent import futures


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """One field of a message, as a varint or with its length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message):
    """The fields of a message that have lengths, by number."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        assert key & 7 == 2, "the protocol has no other fields"
        size = number()
        found.setdefault(key >> 3, []).append(message[at : at + size])
        at += size
    return found


def text(found, number):
    return found.get(number, [b""])[-1].decode()


class Plugin:
    def __init__(self, control):
        self.control = control
        self.lock = threading.Lock()

    def behaviour(self):
        with open(os.path.join(self.control, "behaviour.json")) as behaviour:
            return json.load(behaviour)

    def note(self, **call):
        with self.lock, open(os.path.join(self.control, "calls.jsonl"), "a") as calls:
            calls.write(json.dumps(call) + "\n")

    def version(self, request, context):
        self.note(call="Version", version=text(fields(request), 1), authority=authority(context))
        said = self.behaviour().get("protocol", "v1alpha1")
        return field(1, said) + field(2, "mock") + field(3, "0.0.1")

    def mount(self, request, context):
        behaviour, found = self.behaviour(), fields(request)
        versions = [fields(one) for one in found.get(5, [])]
        target = text(found, 3)
        self.note(
            call="Mount",
            attributes=json.loads(text(found, 1)),
            secrets=text(found, 2),
            target_path=target,
            permission=text(found, 4),
            current=[[text(one, 1), text(one, 2)] for one in versions],
            authority=authority(context),
            deadline=context.time_remaining(),
        )
        if behaviour.get("crash"):
            os._exit(1)
        if behaviour.get("hang"):
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait()
        if behaviour.get("late"):
            # Not at once: what the driver takes away is gone by now.
            time.sleep(1)
            try:
                write(target, behaviour)
                self.note(call="Late", failed=False)
            except OSError:
                self.note(call="Late", failed=True)
        if "status" in behaviour:
            code, details = behaviour["status"]
            context.abort(getattr(grpc.StatusCode, code), details)
        if behaviour.get("echo"):
            tokens = json.loads(text(found, 1)).get("csi.storage.k8s.io/serviceAccount.tokens", "")
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"no\x1b[31m to {tokens} and {text(found, 2)}")
        if "long" in behaviour:
            context.abort(grpc.StatusCode.UNKNOWN, "x" * behaviour["long"])
        if "raw" in behaviour:
            return bytes.fromhex(behaviour["raw"])
        write(target, behaviour)
        files = behaviour.get("files", [])
        if "big" in behaviour:
            files = [["big", "x" * behaviour["big"], 0o600]]
        written = behaviour.get("write", [])
        default = [[path, "1"] for path, *_ in files + written]
        answer = b"".join(
            field(1, field(1, one) + field(2, version))
            for one, version in behaviour.get("versions", default)
        )
        if "error_code" in behaviour:
            answer += field(2, field(1, behaviour["error_code"]))
        for path, contents, mode in files:
            answer += field(3, field(1, path) + field(2, mode) + field(3, contents))
        return answer + bytes.fromhex(behaviour.get("more", ""))


def write(target, behaviour):
    """As plugins did before they gave files to the driver: one after the other, each by its path."""
    for path, contents, mode in behaviour.get("write", []):
        file = os.path.join(target, path)
        if "/" in path:
            os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "w") as out:
            out.write(contents)
        os.chmod(file, mode)
    if "link" in behaviour:
        path, to = behaviour["link"]
        os.symlink(to, os.path.join(target, path))
    if "fifo" in behaviour:
        os.mkfifo(os.path.join(target, behaviour["fifo"]))


def authority(context):
    # grpcio shows it nowhere else.
    return context._rpc_event.call_details.host.decode()


def serve(path, plugin):
    unary = grpc.unary_unary_rpc_method_handler
    handlers = {"Version": unary(plugin.version), "Mount": unary(plugin.mount)}
    # 1 MiB of error text takes more room among the headers than there usually is.
    options = [("grpc.max_metadata_size", 4 << 20), ("grpc.absolute_max_metadata_size", 4 << 20)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=200), options=options)
    service = grpc.method_handlers_generic_handler("v1alpha1.CSIDriverProvider", handlers)
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port("unix:" + path)
    server.start()
    server.wait_for_termination()


def misbehave(path, how):
    """What no gRPC server does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(200)
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    # HEADERS, END_HEADERS and END_STREAM, for a stream that nobody has opened: ":status: 200".
    stray = bytes([0, 0, 1, 1, 5, 0, 0, 0, 99, 0x88])
    says = {
        "silent": b"",
        "trickle": settings * 1000,
        "http1": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "stray": settings + stray,
    }[how]

    def talk(peer):
        try:
            if how == "trickle":
                for byte in says:
                    peer.send(bytes([byte]))
                    time.sleep(0.2)
            peer.sendall(says)
            while peer.recv(1 << 16):
                pass
        except OSError:
            pass

    while True:
        peer, _ = listener.accept()
        threading.Thread(target=talk, args=(peer,), daemon=True).start()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--control")
    parser.add_argument("--misbehave", choices=["silent", "trickle", "http1", "stray"])
    args = parser.parse_args()
    # As plugins do: whoever was there before has died.
    if os.path.lexists(args.socket):
        os.remove(args.socket)
    if args.misbehave:
        misbehave(args.socket, args.misbehave)
        sys.exit()
    import grpc

    serve(args.socket, Plugin(args.control))
