"""What a machine of another network can do with this one: a program, run in a namespace of its own.

    python tests/serve_app/outsider.py ADDRESS MARKER [TOKEN]

It tries every TCP port of the address by HTTP and by gRPC, and prints what came back as JSON. A
call to a replica carries a pickle that makes the folder MARKER if anybody unpickles it.
"""

import asyncio
import errno
import json
import os
import pickle
import socket
import sys
from typing import Any

import grpc
import httpx
from ray.serve.generated.serve_pb2 import ASGIRequest

PATHS = ("/", "/metrics", "/nodes", "/api/version", "/logs", "/stats", "/-/routes")
JOBS = ("/api/jobs/", "/api/job_agent/jobs/")
REPLICA = "/ray.serve.ASGIService/HandleRequest"
METHODS = (
    REPLICA,
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",  # of the cluster's state
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.NodeManagerService/GetNodeStats",  # of the raylet
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",  # of a worker
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ReporterService/GetTraceback",  # of the agents
    "/ray.rpc.RuntimeEnvService/GetRuntimeEnvsInfo",
)
NO_GRPC = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Marker:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def open_ports(address: str) -> list[int]:
    """Return the ports that take a connection; each refusal is immediate."""
    found = []
    for port in range(1, 65536):
        with socket.socket() as probe:
            probe.settimeout(2)
            if probe.connect_ex((address, port)) not in (errno.ECONNREFUSED, errno.EAGAIN):
                found.append(port)
    return found


async def asked_by_http(client: httpx.AsyncClient, port: int) -> dict[str, list[Any]]:
    """Return the status and the start of the body for each path; {} where it is no HTTP."""
    asked = [("GET", path, None) for path in PATHS]
    asked += [("POST", path, {"entrypoint": "true"}) for path in JOBS]
    answers = await asyncio.gather(
        *(
            client.request(method, f"http://{client.base_url.host}:{port}{path}", json=body)
            for method, path, body in asked
        ),
        return_exceptions=True,
    )
    return {
        f"{method} {path}": [answer.status_code, answer.text[:200_000]]
        for (method, path, _), answer in zip(asked, answers, strict=True)
        if isinstance(answer, httpx.Response)
    }


async def asked_by_grpc(address: str, port: int, marker: str, token: str | None) -> dict[str, str]:
    """Return the status for each method; {} where it is no gRPC."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    call = ASGIRequest(pickled_request_metadata=pickle.dumps(Marker(marker)))
    statuses = {}
    async with grpc.aio.insecure_channel(f"{address}:{port}") as channel:
        for method in METHODS:
            body = call.SerializeToString() if method == REPLICA else b""
            try:
                await channel.unary_unary(method)(body, metadata=metadata, timeout=1)
                statuses[method] = "OK"
            except grpc.aio.AioRpcError as error:
                if error.code() in NO_GRPC:
                    return {}
                statuses[method] = error.code().name
    return statuses


async def main(address: str, marker: str, token: str | None = None) -> None:
    """Try each port, all of them side by side, and print what came back."""
    ports = open_ports(address)
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=3) as client:
        by_http = await asyncio.gather(*(asked_by_http(client, port) for port in ports))
    by_grpc = await asyncio.gather(*(asked_by_grpc(address, port, marker, token) for port in ports))
    seen = zip(ports, by_http, by_grpc, strict=True)
    print(json.dumps({port: {"http": http, "grpc": rpc} for port, http, rpc in seen}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
