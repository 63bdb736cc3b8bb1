"""A cluster of Weir against its peers, and what its promises cost. Called by cluster.sh.

Each case measures one thing with real processes on this machine and gives a part of the section "Cluster" of
report.md; parts that are not measured this time are left as they are. Contenders of a case take turns in every
round, so that a slow moment of the machine hits all.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid

TABLES = ["lineitem", "orders", "customer", "nation", "region", "supplier", "part", "partsupp"]
# Of each cluster that TPC-H runs on.
EXECUTORS, SLOTS = 2, 2
# Seconds between two contenders.
SETTLE = 0.3
HEADING = "## Cluster\n"


class Cluster:
    """Processes of `weir cluster up` in a folder."""

    def __init__(self, weir, folder, executors, options=()):
        self.weir, self.dir = weir, pathlib.Path(folder)
        self.run("cluster", "up", "--detach", "--coordinators", "3", "--executors", str(executors), *options)

    def run(self, *arguments, check=True):
        done = subprocess.run([self.weir, *map(str, arguments), "--dir", self.dir], capture_output=True, text=True)
        if check and done.returncode != 0:
            raise RuntimeError(f"weir {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--output", "json"))

    def file(self):
        return json.loads((self.dir / "cluster.json").read_text())

    def pid(self, name):
        processes = self.file()["coordinators"] + self.file()["executors"]
        return next(process["pid"] for process in processes if process["name"] == name)

    def leader(self):
        members = self.json("cluster", "status")["coordinators"]
        return next(f"coordinator-{member['id']}" for member in members if member["role"] == "leader")

    def submit(self, pipeline, **params):
        """Seconds from the command's start to its end, which is the run's; and the run."""
        request = str(uuid.uuid4())
        given = [part for name, value in params.items() for part in ("--param", f"{name}={value}")]
        start = time.monotonic()
        output = self.run("submit", pipeline, "--wait", "--request-id", request, "--output", "json", *given)
        return time.monotonic() - start, json.loads(output)

    def down(self):
        self.run("cluster", "down", check=False)


class Ballista:
    """Ballista's scheduler and executors in one process, which stays."""

    def __init__(self, binary, data, options=()):
        tables = [f"{table}={data}/{table}.parquet" for table in TABLES]
        self.process = subprocess.Popen(
            [binary, str(EXECUTORS), str(SLOTS), *options, "--", *tables],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError("ballista-cluster did not start")

    def seconds(self, query, out):
        self.process.stdin.write(f"{out} {query}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        try:
            return float(answer)
        except ValueError:
            raise RuntimeError(answer or "it has ended") from None

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


class Bench:
    def __init__(self, arguments):
        self.work, self.target = pathlib.Path(arguments.work), pathlib.Path(arguments.target)
        self.weir = self.target / "weir"
        self.arguments, self.rounds = arguments, arguments.rounds
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="cluster-", dir=self.work))
        self.data = self.work / ("data" if arguments.scale == "1" else f"data-{arguments.scale}") / "parquet"
        self.clusters = []
        self.ballistas = []

    def prepare(self):
        if not (self.data / "lineitem.parquet").exists():
            tool = pathlib.Path(sys.executable).parent / "tpchgen-cli"
            subprocess.run([tool, "parquet", "-s", self.arguments.scale, f"--output-dir={self.data}"], check=True)

    def cluster(self, name, executors, *options):
        cluster = Cluster(self.weir, self.scratch / name, executors, options)
        self.clusters.append(cluster)
        return cluster

    def stop(self):
        for ballista in self.ballistas:
            ballista.stop()
        for cluster in self.clusters:
            cluster.down()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def say(self, **facts):
        print(json.dumps(facts), flush=True)

    # --- TPC-H ----------------------------------------------------------------------------------

    def tpch(self):
        queries = sorted((pathlib.Path(__file__).parent / "tpch").glob("q*.sql"), key=lambda path: int(path.stem[1:]))
        if self.arguments.queries:
            queries = [path for path in queries if path.stem in self.arguments.queries.split(",")]
        # Ballista has no limit.
        cluster = self.cluster("tpch", EXECUTORS, "--slots", str(SLOTS), "--memory", "4GiB")
        binary = self.target / "ballista-cluster"
        ballista = Ballista(binary, self.data)
        hashing = Ballista(binary, self.data, ["datafusion.optimizer.prefer_hash_join=true"])
        self.ballistas += [ballista, hashing]

        def by_weir(exchange):
            def seconds(query, out):
                return cluster.submit(self.pipeline_of(query, exchange), out=out)[0]
            return seconds

        def by_datafusion(query, out):
            tables = [f"{table}={self.data}/{table}.parquet" for table in used_by(query)]
            start = time.monotonic()
            subprocess.run([self.target / "plain-datafusion", "query", f"{out}/", query, *tables], check=True)
            return time.monotonic() - start

        contenders = {
            "weir": by_weir("sync"), "weir_off": by_weir("off"), "ballista": ballista.seconds,
            "ballista_hash": hashing.seconds, "datafusion": by_datafusion,
        }
        results = []
        for query in queries:
            times, failures = {who: [] for who in contenders}, {}
            for turn in range(self.rounds):
                rows = {}
                for who in list(contenders) if turn % 2 == 0 else reversed(contenders):
                    if who in failures:
                        continue
                    out = self.scratch / "out" / f"{query.stem}-{who}-{turn}"
                    try:
                        times[who].append(contenders[who](query, out))
                        rows[who] = rows_of(out)
                    except Exception as error:
                        failures[who] = str(error)
                        self.say(query=query.stem, who=who, failed=str(error)[:2000])
                    shutil.rmtree(out, ignore_errors=True)
                    # What a contender still does when it has answered is not at the expense of the next one.
                    time.sleep(SETTLE)
                different = [who for who in rows if rows[who] != rows["datafusion"]]
                if different:
                    raise RuntimeError(f"{query.stem}: {different} and plain DataFusion disagree")
            result = {who: statistics.median(found) for who, found in times.items() if who not in failures}
            results.append((query.stem, result, len(rows["datafusion"])))
            self.say(query=query.stem, **{who: [round(one, 3) for one in found] for who, found in times.items()})
        return self.tpch_report(results)

    def pipeline_of(self, query, exchange):
        folder = self.scratch / f"{query.stem}-{exchange}"
        file = folder / "pipeline.yaml"
        if not file.exists():
            folder.mkdir()
            sources = "".join(f"  {table}: {{ type: parquet, path: {self.data}/{table}.parquet }}\n" for table in used_by(query))
            sql = query.read_text().strip().replace("\n", "\n      ")
            file.write_text(
                f"pipeline: {query.stem}-{exchange}\nparams: {{ out: {{ type: string }} }}\nsources:\n{sources}"
                f"transforms:\n  result:\n    sql: |\n      {sql}\n"
                f"checkpoint: {{ exchange: {exchange} }}\n"
                f"sinks:\n  lake: {{ input: result, type: parquet, path: \"{{{{ params.out }}}}\" }}\n")
        return file

    def tpch_report(self, results):
        lines = [
            f"TPC-H at scale factor {self.arguments.scale}, {self.rounds} rounds, medians in seconds. Weir and Ballista have "
            f"{EXECUTORS} executors with {SLOTS} slots each, and {EXECUTORS * SLOTS} partitions; plain DataFusion is one process "
            "with two. All read the same Parquet files and write their rows as Parquet. Weir's time is that of the whole command "
            "`weir submit --wait`, its start and handshake included: a run in a ledger on three disks (here one), whose rows are "
            "synced between stages (`sync`, the default) or not (`off`), and at the target. What it removes afterwards is not in it; "
            f"contenders begin {SETTLE} s after each other's end. Ballista runs in a process of "
            "its own that is warm, and syncs nothing; its default are sort-merge joins, the other column has "
            "`prefer_hash_join`. Plain DataFusion is started for each query.",
            "",
            "| query | Weir, `sync` | Weir, `off` | Ballista | with hash joins | DataFusion | `sync` ÷ Ballista | `off` ÷ Ballista | rows |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        columns = ["weir", "weir_off", "ballista", "ballista_hash", "datafusion"]
        for name, result, rows in results:
            shown = " | ".join(f"{result[who]:.3f}" if who in result else "failed" for who in columns)
            ratios = " | ".join(f"{result[who] / result['ballista']:.2f}" if who in result and "ballista" in result else "–" for who in columns[:2])
            lines.append(f"| {name} | {shown} | {ratios} | {rows} |")
        common = [result for _, result, _ in results if all(who in result for who in columns)]
        sums = {who: sum(result[who] for result in common) for who in columns}
        lines.append(f"| sum of {len(common)} | " + " | ".join(f"{sums[who]:.3f}" for who in columns)
                     + f" | {sums['weir'] / sums['ballista']:.2f} | {sums['weir_off'] / sums['ballista']:.2f} | |")
        ratios = [(name, result["weir"] / result["ballista"]) for name, result, _ in results if "weir" in result and "ballista" in result]
        above = [f"{name} ({ratio:.2f})" for name, ratio in ratios if ratio > 1.2]
        lines += ["", f"Aim: at most 1.2 × Ballista's time. {'Met by all' if not above else 'Missed by ' + ', '.join(above) + '; met by the others'}."]
        return lines

    # --- scheduling -----------------------------------------------------------------------------

    def scheduling(self):
        script = pathlib.Path(__file__).parent / "scheduling.py"
        done = subprocess.run([sys.executable, script, "--target", self.target, "--tasks", str(self.arguments.tasks)],
                              stdout=subprocess.PIPE, text=True, check=True)
        found = {case["case"]: case for case in map(json.loads, done.stdout.splitlines())}
        for case in found.values():
            self.say(**case)
        return scheduling_report(**found)

    # --- exchange -------------------------------------------------------------------------------

    def exchange(self):
        lines = ["| | MB/s of the file | MB/s of rows in memory | ÷ a plain TCP copy |", "| --- | --- | --- | --- |"]
        for name, options in [("with TLS", []), ("without", ["--insecure"])]:
            cluster = self.cluster(f"exchange-{len(options)}", 2, *options)
            table = self.data / "lineitem.parquet"
            done = subprocess.run([self.target / "exchange-bandwidth", cluster.dir, table, str(self.rounds)],
                                  capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            cluster.down()
            self.say(case="exchange", tls=not options, **found)
            flight, tcp = (statistics.median(found[f"{way}_seconds"]) for way in ("flight", "tcp"))
            speed = lambda seconds, what: f"{found[what] / seconds / 1e6:,.0f}"
            lines.append(f"| Flight {name} | {speed(flight, 'file_bytes')} | {speed(flight, 'memory_bytes')} | {tcp / flight:.2f} |")
            lines.append(f"| plain TCP, in the same run | {speed(tcp, 'file_bytes')} | | 1 |")
        return [
            f"Rows that an executor keeps, {found['rows']:,} of lineitem in an Arrow file with LZ4 ({found['file_bytes'] / 1e6:,.0f} MB, in memory "
            f"{found['memory_bytes'] / 1e6:,.0f} MB), read over loopback by one reader to the last decoded row; medians of {self.rounds} rounds. The "
            "plain copy sends the file's bytes through a socket, and nobody decodes them.", "", *lines]

    # --- recovery -------------------------------------------------------------------------------

    def recovery(self):
        lines = ["| rows between stages | undisturbed, s | an executor killed, s | tasks | begun again |", "| --- | --- | --- | --- | --- |"]
        cluster = self.cluster("recovery", 3, "--slots", "1")
        for exchange in ["sync", "off"]:
            file = self.join(exchange)
            undisturbed, disturbed, again, tasks = [], [], [], 0
            for turn in range(self.rounds + 1):
                seconds, _ = cluster.submit(file, out=self.scratch / "out" / f"{exchange}-{turn}")
                if turn > 0:
                    undisturbed.append(seconds)
            half = statistics.median(undisturbed) / 2
            for turn in range(self.rounds):
                victim = f"executor-{turn % 3 + 1}"
                killing = threading.Timer(half, self.kill_and_start, [cluster, victim])
                killing.start()
                seconds, ended = cluster.submit(file, out=self.scratch / "out" / f"{exchange}-killed-{turn}")
                killing.join()
                stages = cluster.json("run", "show", ended["run"])["stages"]
                tasks = sum(stage["slices"] for stage in stages)
                again.append(sum(stage["attempts"] for stage in stages) - tasks)
                disturbed.append(seconds)
            self.say(case="recovery", exchange=exchange, undisturbed=undisturbed, disturbed=disturbed, again=again)
            lines.append(f"| `{exchange}` | {statistics.median(undisturbed):.1f} | {statistics.median(disturbed):.1f} "
                         f"| {tasks} | {', '.join(map(str, again))} |")
        cluster.down()
        return [
            f"Lineitem joined with orders, scale factor {self.arguments.scale}, into Parquet, on three executors with one slot each; one of them is killed "
            f"(`kill -9`) at half of the time that a run takes, and started again at once. Medians of {self.rounds} runs each; tasks begun "
            "again for each of them.", "", *lines]

    def kill_and_start(self, cluster, name):
        os.kill(cluster.pid(name), signal.SIGKILL)
        time.sleep(0.1)
        cluster.run("cluster", "start", name)

    def join(self, exchange):
        folder = self.scratch / f"join-{exchange}"
        folder.mkdir()
        file = folder / "pipeline.yaml"
        file.write_text(
            f"pipeline: join-{exchange}\nparams: {{ out: {{ type: string }} }}\nsources:\n"
            + "".join(f"  {table}: {{ type: parquet, path: {self.data}/{table}.parquet }}\n" for table in ["lineitem", "orders"])
            + "transforms:\n  joined:\n    sql: |\n"
            "      SELECT l_orderkey, l_linenumber, o_custkey, o_orderdate, l_partkey, l_quantity, l_extendedprice, l_shipdate, o_comment\n"
            "      FROM lineitem JOIN orders ON l_orderkey = o_orderkey\n"
            f"checkpoint: {{ exchange: {exchange} }}\n"
            "sinks:\n  lake: { input: joined, type: parquet, path: \"{{ params.out }}\" }\n")
        return file

    # --- the ledger -----------------------------------------------------------------------------

    def ledger(self):
        done = subprocess.run([self.target / "ledger-size"], capture_output=True, text=True, check=True)
        self.say(case="ledger", output=done.stdout)
        return [f"`ledger-size`, a ledger of so many finished tasks whose batches are committed (aim: less than 300 MB):", "",
                *[f"- {line}" for line in done.stdout.strip().splitlines()]]

    # --- what tests check and measure -------------------------------------------------------------

    def test(self, name, **variables):
        binaries = [path for path in (self.target / "deps").glob("it-*") if path.suffix == "" and os.access(path, os.X_OK)]
        binary = max(binaries, key=lambda path: path.stat().st_mtime)
        environment = {**os.environ, "CARGO_MANIFEST_DIR": str(pathlib.Path(__file__).parent.parent / "tests"),
                       **{f"WEIR_TEST_{key.upper()}": str(value) for key, value in variables.items()}}
        done = subprocess.run([binary, name, "--exact", "--nocapture"], capture_output=True, text=True,
                              cwd=pathlib.Path(__file__).parent.parent / "tests", env=environment)
        if done.returncode != 0 or "1 passed" not in done.stdout:
            raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stdout[-5000:]}{done.stderr[-5000:]}")
        return done.stdout

    def failover(self):
        name = "cluster_faults::a_leader_that_is_killed_again_and_again_is_replaced_each_time"
        output = self.test(name, failovers=self.arguments.failovers)
        found = re.search(r"p50 (\S+)s, p99 (\S+)s, longest (\S+)s", output).groups()
        self.say(case="failover", output=output[-2000:])
        return [
            "| case | times | p50, s | p99, s | longest, s |", "| --- | --- | --- | --- | --- |",
            "| the leader is killed (`kill -9`) during a run: from the signal to the next assignment | "
            f"{self.arguments.failovers} | {' | '.join(found)} |", "",
            "The others notice after 1 s that they have heard nothing, find nobody at the leader's address, and elect one of them "
            "([decision 0012](../docs/decisions/0012-own-election-timers.md)). All runs were exact and their audits clean: the test "
            f"`{name}` checks that, with `WEIR_TEST_FAILOVERS={self.arguments.failovers}`."]

    def backfill(self):
        name = "backfills::every_window_is_loaded_exactly_once"
        output = self.test(name, windows=self.arguments.windows)
        line = re.search(r"^\d+ windows in .*$", output, re.MULTILINE).group(0)
        self.say(case="backfill", output=output[-2000:])
        return [
            f"A backfill of {self.arguments.windows:,} windows, a Parquet file each, into one table of PostgreSQL, by three coordinators and three "
            "executors: paused and resumed, its leader killed twice, one window made to fail and retried. "
            f"Every window was loaded exactly once: the test `{name}` checks rows, books and audit. **{line}.**"]

    # --- report ---------------------------------------------------------------------------------

    def report(self, parts):
        path = pathlib.Path(self.arguments.report)
        before, _, section = path.read_text().partition(HEADING)
        known = dict(re.findall(r"^### (.*?)\n\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL))
        known.update({title: "\n".join(lines).strip() + "\n\n" for title, lines in parts.items()})
        made = (f"Made by `benches/cluster.sh` on {time.strftime('%Y-%m-%d')}: {os.cpu_count()} cores, release build, all processes on one "
                "machine and one disk.")
        order = [title for title, _ in CASES.values()]
        order += [title for title in known if title not in order]
        text = "".join(f"### {title}\n\n{known[title].strip()}\n\n" for title in order if title in known)
        path.write_text(f"{before}{HEADING}\n{made}\n\n{text}".rstrip() + "\n")


CASES = {
    "tpch": ("TPC-H on two executors", Bench.tpch),
    "scheduling": ("Scheduling", Bench.scheduling),
    "exchange": ("Rows between executors", Bench.exchange),
    "failover": ("Failover", Bench.failover),
    "recovery": ("Recovery", Bench.recovery),
    "ledger": ("The ledger", Bench.ledger),
    "backfill": ("A long backfill", Bench.backfill),
}


def scheduling_report(throughput, latency):
    leader = max(throughput["coordinators"], key=lambda one: one["cpu_seconds"])
    held = max((one["held_millis"] for one in throughput["snapshots"]), default=0)
    return [
        f"{throughput['tasks']:,} tasks of one run, three coordinators with durable logs on one disk, and executors that do nothing but say of "
        "each task that its only batch is staged, published and over: four facts a task.", "",
        "| | |", "| --- | --- |",
        f"| tasks a second (aim: 2,000) | **{throughput['tasks_per_second']:,.0f}** |",
        f"| in the first and the last tenth of them | {throughput['first_tenth_per_second']:,.0f}, {throughput['last_tenth_per_second']:,.0f} |",
        f"| the leader's processor time, and peak memory | {leader['cpu_seconds']:.0f} s, {leader['peak_mib']:.0f} MiB |",
        f"| longest time that a snapshot keeps entries from being applied | {held} ms |",
        f"| dispatch, {latency['tasks']:,} tasks of 100 ms at 64 places: from a free place to its next task, p50 and p99 "
        f"| {latency['dispatch_millis_p50']:.1f} ms, {latency['dispatch_millis_p99']:.1f} ms |",
        f"| there, a task's three facts in the ledger, p50 and p99 | {latency['task_millis_p50']:.1f} ms, {latency['task_millis_p99']:.1f} ms |"]


def used_by(query):
    return [table for table in TABLES if re.search(rf"\b{table}\b", query.read_text())]


def rows_of(folder):
    """Its Parquet files' rows in no order, numbers rounded to what all engines agree on."""
    import duckdb
    import decimal
    def value(cell):
        return f"{float(cell):.6g}" if isinstance(cell, (float, decimal.Decimal)) else str(cell)
    found = duckdb.sql(f"SELECT * FROM read_parquet('{folder}/**/*.parquet')").fetchall()
    return sorted(tuple(value(cell) for cell in row) for row in found)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--only")
    parser.add_argument("--queries", help="of TPC-H, e.g. q1,q3; the default is all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", default="1", help="of TPC-H")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--failovers", type=int, default=40)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--report", default=str(pathlib.Path(__file__).parent / "report.md"))
    arguments = parser.parse_args()
    bench, parts, failed = Bench(arguments), {}, False
    try:
        bench.prepare()
        for name, (title, case) in CASES.items():
            if arguments.only and name not in arguments.only.split(","):
                continue
            try:
                parts[title] = case(bench)
                bench.report(parts)
            except Exception as error:  # one failing case must not hide the others
                failed = True
                print(f"FAILED {name}: {error}", file=sys.stderr, flush=True)
    finally:
        bench.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
