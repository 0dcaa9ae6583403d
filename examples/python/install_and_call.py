"""Compiles C with the machine's `cc`, installs the object in a codecached, calls it, makes it trap, and evicts it.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python install_and_call.py [--server unix:PATH|HOST:PORT] [--key KEY]

Whatever does not come out as it should ends the program with an error.
"""

import argparse
import hashlib
import importlib
import pathlib
import subprocess
import sys
import tempfile
import zlib

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "proto"
SOURCE = r"""
#include <stddef.h>
#include <stdint.h>

uint32_t adler32(const uint8_t *bytes, size_t count) {
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < count; i++) {
        a = (a + bytes[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

/* Turns the bytes around where they are. */
void reverse(uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count / 2; i++) {
        uint8_t other = bytes[count - 1 - i];
        bytes[count - 1 - i] = bytes[i];
        bytes[i] = other;
    }
}

int32_t divide(int32_t a, int32_t b) { return a / b; }

void forever(void) { for (;;) __asm__ volatile(""); }
"""


def generated():
    """The modules of the stubs, made anew in a directory that lasts as long as the program."""
    directory = tempfile.TemporaryDirectory()
    files = [str(path) for path in sorted(PROTOS.rglob("*.proto"))]
    well_known = str(pathlib.Path(protoc.__file__).parent / "_proto")
    arguments = ["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--python_out={directory.name}"]
    if protoc.main([*arguments, f"--grpc_python_out={directory.name}", *files]) != 0:
        sys.exit("the protos cannot be compiled")
    sys.path.insert(0, directory.name)
    names = ["cache_pb2", "cache_pb2_grpc", "execution_pb2", "execution_pb2_grpc", "types_pb2", "signature_pb2"]
    return directory, *[importlib.import_module(f"codecache.v1.{name}") for name in names]


DIRECTORY, cache, cache_grpc, execution, execution_grpc, types, signature = generated()


def compiled(source):
    """The object that `cc` makes of C."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "code.c"
        file.write_text(source)
        subprocess.run(["cc", "-O2", "-fPIC", "-c", file, "-o", file.with_suffix(".o")], check=True)
        return file.with_suffix(".o").read_bytes()


def reason(error):
    """The word of the API for an error, such as ENTRY_NOT_FOUND."""
    info = error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(error).details:
        if detail.Unpack(info):
            return info.reason
    return ""


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: {got!r} instead of {wanted!r}")
    print(f"{what}: {got!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="unix:/run/codecached/codecached.sock")
    parser.add_argument("--key", default="example/python")
    asked = parser.parse_args()
    key = asked.key.encode()

    # The authority of a unix socket would be its path, percent-encoded.
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(asked.server, options=options) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        entries = cache_grpc.CodeCacheServiceStub(channel)
        calls = execution_grpc.ExecutionServiceStub(channel)

        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        expect("health", health_pb2.HealthCheckResponse.ServingStatus.Name(health.status), "SERVING")
        served = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        expect("services by reflection", "codecache.v1.ExecutionService" in served, True)

        blob = compiled(SOURCE)
        declared = ["u32 adler32(bytes, size_t)", "void reverse(inout, size_t)", "i32 divide(i32, i32)"]
        install = cache.InstallRequest(
            key=key,
            format=types.BLOB_FORMAT_ELF_OBJECT,
            blob=blob,
            digest=types.Digest(algorithm=types.DIGEST_ALGORITHM_SHA256, value=hashlib.sha256(blob).digest()),
            signatures=[signature.SignatureDeclaration(text=text) for text in declared],
        )
        entry = entries.Install(install, timeout=10).entry
        expect("installed again", entries.Install(install, timeout=10).created, False)
        found = entries.Lookup(cache.LookupRequest(key=key, view=types.ENTRY_VIEW_FULL), timeout=10).entry
        expect("functions", sorted(symbol.name for symbol in found.symbols), ["adler32", "divide", "forever", "reverse"])

        def call(symbol, *arguments, **options):
            values = [execution.Value(**argument) for argument in arguments]
            request = execution.ExecuteRequest(handle=entry.handle, symbol=symbol, arguments=values, **options)
            return calls.Execute(request, timeout=30)

        text = b"hello, codecached"
        answer = call("adler32", {"bytes": text}, {"u64": len(text)})
        expect("adler32", answer.returned.value.u32, zlib.adler32(text))
        answer = call("reverse", {"inout": text}, {"u64": len(text)})
        expect("reverse", answer.returned.buffers[0], text[::-1])
        expect("divide", call("divide", {"i32": 42}, {"i32": -6}).returned.value.i32, -7)

        # What goes wrong in code is an answer, not an error, and harms nobody else.
        trap = call("divide", {"i32": 42}, {"i32": 0}).trap
        expect("by zero", (execution.TrapKind.Name(trap.kind), trap.symbol), ("TRAP_KIND_FPE", "divide"))
        limit = {"cpu_limit": {"nanos": 50_000_000}}
        trap = call("forever", **limit).trap
        expect("without end", execution.TrapKind.Name(trap.kind), "TRAP_KIND_TIMEOUT")
        try:
            call("divide", {"i32": 42})
            sys.exit("a missing argument was taken")
        except grpc.RpcError as error:
            expect("a missing argument", (error.code().name, reason(error)), ("INVALID_ARGUMENT", "INVALID_FIELD"))

        evicted = entries.Evict(cache.EvictRequest(key=key, wait=True), timeout=10)
        expect("evicted", cache.EvictState.Name(evicted.state), "EVICT_STATE_FREED")
        try:
            call("divide", {"i32": 42}, {"i32": 6})
            sys.exit("evicted code was called")
        except grpc.RpcError as error:
            expect("a handle that is stale", (error.code().name, reason(error)), ("NOT_FOUND", "STALE_HANDLE"))


if __name__ == "__main__":
    main()
