"""A client of a cluster that has no line of Weir's code and none of its .proto files.

It asks a coordinator by server reflection (grpc.reflection.v1) what there is, and builds every message
from the answer. Prints JSON, one value a line. A refusal is printed too, `{"code": …, "message": …}`, and
the exit code is then 1.

    client.py --coordinator URL… --authority FILE [--token-file FILE] services
    client.py … call weir.v1.Runs/Get '{"run": "20261122"}'
    client.py … job pipeline.yaml             submits, watches to the end, and prints stages and audit
"""

import argparse
import json
import pathlib
import sys
import time
import uuid

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2

# grpcio-reflection knows the path of v1alpha only. The messages of v1 are the same.
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
# A leader that dies is replaced in a few seconds; the machine may be busy.
PATIENCE = 90


class Coordinator:
    """A connection to one coordinator, and what it has said about itself."""

    def __init__(self, url, authority, token):
        credentials = grpc.ssl_channel_credentials(authority)
        self.url = url
        self.channel = grpc.secure_channel(url.removeprefix("https://"), credentials)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.pool = descriptor_pool.DescriptorPool()
        self.known = set()

    def reflect(self, **question):
        call = self.channel.stream_stream(
            REFLECTION,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = iter([reflection_pb2.ServerReflectionRequest(**question)])
        return next(call(asked, metadata=self.metadata, timeout=PATIENCE))

    def services(self):
        answer = self.reflect(list_services="")
        return sorted(service.name for service in answer.list_services_response.service)

    def learn(self, **question):
        """Takes a file of definitions into the pool, after those that it needs."""
        answer = self.reflect(**question)
        for encoded in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
            if file.name in self.known:
                continue
            self.known.add(file.name)
            for needed in file.dependency:
                self.learn(file_by_filename=needed)
            self.pool.Add(file)

    def method(self, service, name):
        """None where the coordinator does not know it."""
        try:
            self.learn(file_containing_symbol=service)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return self.pool.FindServiceByName(service).methods_by_name.get(name)

    def call(self, path, request):
        """Yields the answers, as plain values."""
        service, name = path.split("/")
        method = self.method(service, name)
        if method is None:
            # It is asked for nevertheless: what is refused, and how, is the coordinator's answer.
            self.channel.unary_unary(f"/{path}")(b"", metadata=self.metadata, timeout=PATIENCE)
            return
        Request = message_factory.GetMessageClass(method.input_type)
        Answer = message_factory.GetMessageClass(method.output_type)
        # A list of requests where the method takes a stream of them.
        sent = request if method.client_streaming else [request]
        sent = [json_format.ParseDict(one, Request()) for one in sent]
        kind = getattr(self.channel, {
            (False, False): "unary_unary", (False, True): "unary_stream",
            (True, False): "stream_unary", (True, True): "stream_stream",
        }[method.client_streaming, method.server_streaming])
        call = kind(
            f"/{path}",
            request_serializer=Request.SerializeToString,
            response_deserializer=Answer.FromString,
        )
        sent = iter(sent) if method.client_streaming else sent[0]
        answered = call(sent, metadata=self.metadata, timeout=PATIENCE)
        for answer in answered if method.server_streaming else [answered]:
            yield json_format.MessageToDict(
                answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )


class Cluster:
    """Finds the leader: a coordinator that does not lead says UNAVAILABLE, and who does."""

    def __init__(self, urls, authority, token):
        self.urls, self.authority, self.token = urls, authority, token
        self.coordinator = self.connect(urls[0])

    def connect(self, url):
        return Coordinator(url, self.authority, self.token)

    def elsewhere(self, error):
        """After a refusal: the leader that it names, or else the next one of the list."""
        named = dict(error.trailing_metadata() or []).get("weir-leader")
        if named is None:
            place = self.urls.index(self.coordinator.url) + 1 if self.coordinator.url in self.urls else 0
            named = self.urls[place % len(self.urls)]
            time.sleep(0.2)
        self.coordinator.channel.close()
        self.coordinator = self.connect(named)

    def ask(self, path, request):
        """Yields the answers of whoever leads. A stream that breaks begins anew with the next leader."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                for answer in self.coordinator.call(path, request):
                    deadline = time.monotonic() + PATIENCE
                    yield answer
                return
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                self.elsewhere(error)

    def one(self, path, request):
        return next(self.ask(path, request))


def show(value):
    print(json.dumps(value, sort_keys=True), flush=True)


def job(cluster, file, request_id):
    path = pathlib.Path(file).resolve()
    submitted = cluster.one("weir.v1.Runs/Submit", {
        "pipeline": path.read_text(),
        "file_name": path.name,
        "base_dir": str(path.parent),
        "request_id": request_id,
    })
    show({"submitted": submitted})
    run = {"run": submitted["run"]}
    for update in cluster.ask("weir.v1.Runs/Watch", run):
        show({"update": update})
    show({"shown": cluster.one("weir.v1.Runs/Get", run)})
    show({"audit": cluster.one("weir.v1.Runs/Audit", run)})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator", action="append", required=True)
    parser.add_argument("--authority", type=pathlib.Path, required=True)
    parser.add_argument("--token-file", type=pathlib.Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("services")
    call = commands.add_parser("call")
    call.add_argument("method")
    call.add_argument("request", nargs="?", default="{}", type=json.loads)
    jobs = commands.add_parser("job")
    jobs.add_argument("file")
    jobs.add_argument("--request-id", default=uuid.uuid4().hex)
    arguments = parser.parse_args()
    token = arguments.token_file.read_text().strip() if arguments.token_file else None
    cluster = Cluster(arguments.coordinator, arguments.authority.read_bytes(), token)
    try:
        if arguments.command == "services":
            show(cluster.coordinator.services())
        elif arguments.command == "call":
            for answer in cluster.ask(arguments.method, arguments.request):
                show(answer)
        else:
            job(cluster, arguments.file, arguments.request_id)
    except grpc.RpcError as error:
        said = dict(error.trailing_metadata() or [])
        kind, retry = said.get("weir-kind"), said.get("weir-retry")
        show({"code": error.code().name, "message": error.details(), "kind": kind, "retry": retry})
        sys.exit(1)


main()
