#!/usr/bin/env python3
"""How many tasks a second three coordinators schedule, and how soon a free place has its next task.

    cargo build --release --bin weir --bin virtual-executor
    benches/scheduling.py --target target/release [--tasks 100000] [--cases throughput,latency]

Each case is a cluster of its own: three `weir coordinator` processes with durable logs on this machine, and
virtual executors (`virtual-executor`), whose tasks do nothing. The run has one stage, whose source is cut into
as many slices as tasks are asked for. `throughput`: 1,024 places, tasks that take no time. `latency`: 64 places,
5,000 tasks that take 100 ms, so that nothing queues. Prints one JSON object a case: the figures of
virtual-executor, the processor time and peak memory of each coordinator, and what snapshots of the ledger cost.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile

PIPELINE = """pipeline: scheduling
sources:
  rows: { type: sqlite, path: rows.db, table: rows }
sinks:
  kept: { input: rows, type: json, path: out, mode: append }
"""

CASES = {
    "throughput": {"slots": 256, "hold_millis": 0},
    "latency": {"slots": 16, "hold_millis": 100, "most_tasks": 5_000},
}

SNAPSHOT = re.compile(r"snapshot written.*?index=(\d+).*?bytes=(\d+).*?held_millis=(\d+).*?millis=(\d+)")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    def __init__(self, target, folder):
        self.folder = folder
        ports = free_ports(3)
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        members = ",".join(f"{number}={url}" for number, url in enumerate(self.urls, 1))
        (folder / "storage").mkdir()
        self.processes = []
        for number, (port, url) in enumerate(zip(ports, self.urls), 1):
            log = open(folder / f"coordinator-{number}.log", "wb")
            command = [target / "weir", "coordinator", "--insecure", "--id", str(number),
                       "--listen", f"127.0.0.1:{port}", "--url", url, "--members", members,
                       "--dir", folder / f"coordinator-{number}", "--storage", folder / "storage"]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def used(self):
        """What each coordinator has used so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        found = []
        for process in self.processes:
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
            found.append({"cpu_seconds": round((int(fields[11]) + int(fields[12])) / ticks, 2),
                          "peak_mib": round(peak / 1024, 1)})
        return found

    def snapshots(self):
        """Of all coordinators; `held_millis`: for so long nothing was applied."""
        found = []
        for number in range(1, 4):
            text = (self.folder / f"coordinator-{number}.log").read_text(errors="replace")
            for index, size, held, millis in SNAPSHOT.findall(text):
                found.append({"coordinator": number, "index": int(index), "bytes": int(size),
                              "held_millis": int(held), "millis": int(millis)})
        return found

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(target, case, tasks, executors):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-scheduling-"))
    cluster = None
    try:
        # Two rows, as far apart as there are slices to be cut.
        database = sqlite3.connect(folder / "rows.db")
        database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT)")
        database.execute("INSERT INTO rows VALUES (1, 'first'), (?, 'last')", [tasks * 100_000])
        database.commit()
        database.close()
        (folder / "pipeline.yaml").write_text(PIPELINE)
        cluster = Cluster(target, folder)
        command = [target / "virtual-executor", "--coordinators", ",".join(cluster.urls),
                   "--pipeline", folder / "pipeline.yaml", "--tasks", str(tasks), "--executors", str(executors),
                   "--slots", str(case["slots"]), "--hold-millis", str(case["hold_millis"])]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return {**figures, "coordinators": cluster.used(), "snapshots": cluster.snapshots()}
    finally:
        if cluster:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, type=lambda path: pathlib.Path(path).absolute())
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--executors", type=int, default=4)
    parser.add_argument("--cases", default=",".join(CASES))
    arguments = parser.parse_args()
    for name in arguments.cases.split(","):
        tasks = min(arguments.tasks, CASES[name].get("most_tasks", arguments.tasks))
        print(json.dumps({"case": name, **measure(arguments.target, CASES[name], tasks, arguments.executors)}),
              flush=True)


if __name__ == "__main__":
    main()
