"""Weir against floors and peers: paired runs, ratios of medians, peak memory. Called by run.sh.

Every case lists contenders; in each round all of them run once, one after the other, so that a slow
moment of the machine hits all. A contender is a command (its time is that of the whole process, its
memory the peak resident set that the kernel reports). Nothing is skipped: each writes its whole output
to a fresh place, and the row counts are compared.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

LINEITEM = {
    "l_orderkey": "int64", "l_partkey": "int64", "l_suppkey": "int64", "l_linenumber": "int32",
    "l_quantity": "decimal(15,2)", "l_extendedprice": "decimal(15,2)", "l_discount": "decimal(15,2)",
    "l_tax": "decimal(15,2)", "l_returnflag": "string", "l_linestatus": "string",
    "l_shipdate": "date", "l_commitdate": "date", "l_receiptdate": "date",
    "l_shipinstruct": "string", "l_shipmode": "string", "l_comment": "string",
}
TABLES = ["lineitem", "orders", "customer", "nation", "region", "supplier"]
QUERIES = {
    "q1": """SELECT l_returnflag, l_linestatus, sum(l_quantity) AS sum_qty,
 sum(l_extendedprice) AS sum_base_price, sum(l_extendedprice * (1 - l_discount)) AS sum_disc_price,
 sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS sum_charge, avg(l_quantity) AS avg_qty,
 avg(l_extendedprice) AS avg_price, avg(l_discount) AS avg_disc, count(*) AS count_order
 FROM lineitem WHERE l_shipdate <= date '1998-09-02'
 GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus""",
    "q3": """SELECT l_orderkey, sum(l_extendedprice * (1 - l_discount)) AS revenue, o_orderdate, o_shippriority
 FROM customer, orders, lineitem
 WHERE c_mktsegment = 'BUILDING' AND c_custkey = o_custkey AND l_orderkey = o_orderkey
 AND o_orderdate < date '1995-03-15' AND l_shipdate > date '1995-03-15'
 GROUP BY l_orderkey, o_orderdate, o_shippriority ORDER BY revenue DESC, o_orderdate LIMIT 10""",
    "q5": """SELECT n_name, sum(l_extendedprice * (1 - l_discount)) AS revenue
 FROM customer, orders, lineitem, supplier, nation, region
 WHERE c_custkey = o_custkey AND l_orderkey = o_orderkey AND l_suppkey = s_suppkey
 AND c_nationkey = s_nationkey AND s_nationkey = n_nationkey AND n_regionkey = r_regionkey
 AND r_name = 'ASIA' AND o_orderdate >= date '1994-01-01' AND o_orderdate < date '1995-01-01'
 GROUP BY n_name ORDER BY revenue DESC""",
}


class Bench:
    def __init__(self, arguments):
        self.work = pathlib.Path(arguments.work)
        self.target = pathlib.Path(arguments.target)
        self.repeat = arguments.repeat
        self.only = set(arguments.only.split(",")) if arguments.only else None
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=self.work))
        self.python = sys.executable
        self.results = []
        self.postgres = None

    # --- data -----------------------------------------------------------------------------------

    def prepare(self):
        data = self.work / "data"
        tool = str(pathlib.Path(self.python).parent / "tpchgen-cli")
        if not (data / "parquet" / "lineitem.parquet").exists():
            subprocess.run([tool, "parquet", "-s", "1", f"--output-dir={data}/parquet"], check=True)
        if not (data / "csv" / "orders.csv").exists():
            subprocess.run([tool, "csv", "-s", "1", "--tables=lineitem,orders", f"--output-dir={data}/csv"], check=True)
        self.data = data

    # --- servers --------------------------------------------------------------------------------

    def start_postgres(self):
        if self.postgres:
            return
        binaries = pathlib.Path("/usr/lib/postgresql/15/bin")
        if not (binaries / "postgres").exists():
            sys.exit("PostgreSQL 15 is missing: run ./test.sh once, or apt-get install postgresql-15")
        folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-bench-pg-"))
        drop = []
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {**os.environ, "HOME": str(folder)}
        subprocess.run([*drop, binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"],
                       check=True, stdout=subprocess.DEVNULL, env=environment, cwd=folder)
        # Defaults but for the size of the log and of the cache: durable, as a user's server is.
        self.postgres = subprocess.Popen(
            [*drop, binaries / "postgres", "-D", folder / "data", "-p", str(self.port), "-k", folder,
             "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=1GB", "-c", "max_wal_size=8GB"],
            stdout=subprocess.DEVNULL, stderr=open(folder / "log", "w"), env=environment, cwd=folder)
        self.postgres_folder = folder
        for _ in range(200):
            if subprocess.run([binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0:
                break
            time.sleep(0.1)
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"
        columns = ", ".join(f"{name} {pg_type(kind)}" for name, kind in LINEITEM.items())
        self.ddl = columns
        self.psql(f"CREATE TABLE source ({columns})")
        self.psql(f"\\copy source FROM '{self.data}/csv/lineitem.csv' (FORMAT csv, HEADER)")
        self.psql("VACUUM ANALYZE source")

    def stop(self):
        if self.postgres:
            self.postgres.send_signal(signal.SIGINT)
            self.postgres.wait()
            shutil.rmtree(self.postgres_folder, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def psql(self, command):
        done = subprocess.run(["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", command],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr}")
        return done.stdout.strip()

    # --- measuring ------------------------------------------------------------------------------

    def once(self, command, environment=None):
        start = time.monotonic()
        log = open(self.scratch / "log", "w+")
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log,
                                   env={**os.environ, **(environment or {})}, cwd=self.scratch)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        if process.returncode != 0:
            log.seek(0)
            raise RuntimeError(f"{command}: exit {process.returncode}\n{log.read()}")
        return seconds, usage.ru_maxrss / 1024

    def case(self, name, contenders, check=None):
        """contenders: name -> (prepare, command). The first is Weir."""
        if self.only and name not in self.only:
            return
        times = {who: [] for who in contenders}
        memory = {who: [] for who in contenders}
        counts = {}
        for turn in range(self.repeat):
            order = list(contenders)
            if turn % 2:
                order.reverse()
            for who in order:
                prepare, command = contenders[who]
                prepare()
                seconds, megabytes = self.once(command)
                times[who].append(seconds)
                memory[who].append(megabytes)
                if check:
                    counts[who] = check(who)
        if check and len(set(counts.values())) != 1:
            raise RuntimeError(f"{name}: the contenders disagree: {counts}")
        weir = next(iter(contenders))
        for who in contenders:
            result = {
                "case": name, "who": who,
                "seconds": round(statistics.median(times[who]), 3),
                "min_seconds": round(min(times[who]), 3), "max_seconds": round(max(times[who]), 3),
                "peak_mib": round(statistics.median(memory[who]), 1),
                "weir_time_ratio": round(statistics.median(times[weir]) / statistics.median(times[who]), 3),
                "weir_memory_ratio": round(statistics.median(memory[weir]) / statistics.median(memory[who]), 3),
                "rows": counts.get(who),
            }
            self.results.append(result)
            print(json.dumps(result), flush=True)

    def weir(self, name, pipeline):
        """A pipeline file and the command that runs it with a fresh state folder."""
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.yaml").write_text(pipeline)
        return [self.target / "weir", "run", folder / "pipeline.yaml", "--state", folder / "state", "--output", "json"]

    def fresh(self, *paths):
        def remove():
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)
        return remove

    def parquet_rows(self, path):
        import duckdb
        return duckdb.sql(f"SELECT count(*) FROM read_parquet('{path}/**/*.parquet')").fetchall()[0][0]

    # --- cases ----------------------------------------------------------------------------------

    def csv_to_parquet(self):
        source = self.data / "csv/lineitem.csv"
        out = {who: self.scratch / f"c2p-{who}" for who in ["weir", "datafusion", "duckdb"]}
        columns = ", ".join(f"{name}: \"{kind}\"" for name, kind in LINEITEM.items())
        def weir(name, more):
            return self.weir(name, f"""pipeline: {name}
sources:
  lineitem: {{ type: csv, path: {source}, columns: {{ {columns} }}{more} }}
sinks:
  lake: {{ input: lineitem, type: parquet, path: {out['weir']} }}
""")
        plain = ",".join(f"{name}:{'decimal' if kind.startswith('decimal') else kind}" for name, kind in LINEITEM.items())
        duck = f"import duckdb; duckdb.sql(\"COPY (SELECT * FROM read_csv('{source}')) TO '{out['duckdb']}/x.parquet' (FORMAT parquet, COMPRESSION snappy)\")"
        def make_duck():
            shutil.rmtree(out["duckdb"], ignore_errors=True)
            out["duckdb"].mkdir()
        datafusion = (self.fresh(out["datafusion"]), [self.target / "plain-datafusion", "csv-to-parquet", source, str(out["datafusion"]) + "/", plain])
        self.case("csv_to_parquet", {
            "weir": (self.fresh(out["weir"], self.scratch / "c2p/state"), weir("c2p", "")),
            "datafusion": datafusion,
            "duckdb": (make_duck, [self.python, "-c", duck]),
        }, lambda who: self.parquet_rows(out[who]))
        # DataFusion takes every line break for the end of a record, and so cuts a file anywhere. The same of Weir:
        self.case("csv_lines_to_parquet", {
            "weir": (self.fresh(out["weir"], self.scratch / "c2pl/state"), weir("c2pl", ", multiline: false")),
            "datafusion": datafusion,
        }, lambda who: self.parquet_rows(out[who]))

    def tpch(self):
        for name, sql in QUERIES.items():
            out = {who: self.scratch / f"{name}-{who}" for who in ["weir", "datafusion", "duckdb"]}
            used = [table for table in TABLES if table in sql]
            sources = "\n".join(f"  {table}: {{ type: parquet, path: {self.data}/parquet/{table}.parquet }}" for table in used)
            indented = sql.replace("\n", "\n      ")
            weir = self.weir(name, f"""pipeline: {name}
sources:
{sources}
transforms:
  result:
    sql: |
      {indented}
sinks:
  lake: {{ input: result, type: parquet, path: {out['weir']} }}
""")
            query = self.scratch / f"{name}.sql"
            query.write_text(sql)
            script = self.scratch / f"{name}-duckdb.py"
            views = "\n".join(f"c.execute(\"CREATE VIEW {table} AS SELECT * FROM '{self.data}/parquet/{table}.parquet'\")" for table in used)
            script.write_text(f"import duckdb\nc = duckdb.connect()\n{views}\nquery = open('{query}').read()\n"
                              f"c.execute(f\"COPY ({{query}}) TO '{out['duckdb']}/x.parquet'\")\n")
            def make_duck(folder=out["duckdb"]):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            self.case(f"tpch_{name}", {
                "weir": (self.fresh(out["weir"], self.scratch / name / "state"), weir),
                "datafusion": (self.fresh(out["datafusion"]), [self.target / "plain-datafusion", "query", str(out["datafusion"]) + "/", query, *[f"{table}={self.data}/parquet/{table}.parquet" for table in used]]),
                "duckdb": (make_duck, [self.python, script]),
            }, lambda who: self.parquet_rows(out[who]))

    def postgres_to_parquet(self):
        if self.only and "postgres_to_parquet" not in self.only:
            return
        self.start_postgres()
        out = {who: self.scratch / f"p2p-{who}" for who in ["weir", "adbc", "connectorx"]}
        weir = self.weir("p2p", f"""pipeline: p2p
sources:
  source: {{ type: postgres, url: "{self.url}", table: public.source }}
sinks:
  lake: {{ input: source, type: parquet, path: {out['weir']} }}
""")
        adbc = (f"import adbc_driver_postgresql.dbapi as d, pyarrow.parquet as q\n"
                f"c = d.connect('{self.url}'); k = c.cursor(); k.execute('SELECT * FROM source')\n"
                f"r = k.fetch_record_batch(); w = q.ParquetWriter('{out['adbc']}/x.parquet', r.schema, compression='snappy')\n"
                f"[w.write_batch(b) for b in r]; w.close()")
        cx = (f"import connectorx as c, pyarrow.parquet as q\n"
              f"t = c.read_sql('{self.url.replace('postgres://', 'postgresql://')}', 'SELECT * FROM source', return_type='arrow', partition_on='l_orderkey', partition_num=2)\n"
              f"q.write_table(t, '{out['connectorx']}/x.parquet', compression='snappy')")
        def make(who):
            def prepare():
                shutil.rmtree(out[who], ignore_errors=True)
                out[who].mkdir()
            return prepare
        self.case("postgres_to_parquet", {
            "weir": (self.fresh(out["weir"], self.scratch / "p2p/state"), weir),
            "adbc": (make("adbc"), [self.python, "-c", adbc]),
            "connectorx": (make("connectorx"), [self.python, "-c", cx]),
        }, lambda who: self.parquet_rows(out[who]))

    def parquet_to_postgres(self):
        if self.only and "parquet_to_postgres" not in self.only:
            return
        self.start_postgres()
        weir = self.weir("q2p", f"""pipeline: q2p
sources:
  lineitem: {{ type: parquet, path: {self.data}/parquet/lineitem.parquet }}
sinks:
  target: {{ input: lineitem, type: postgres, url: "{self.url}", table: public.target, mode: append }}
""")
        def table():
            shutil.rmtree(self.scratch / "q2p/state", ignore_errors=True)
            self.psql(f"DROP TABLE IF EXISTS target; CREATE TABLE target ({self.ddl}); CHECKPOINT")
        copy = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", f"\\copy target FROM '{self.data}/csv/lineitem.csv' (FORMAT csv, HEADER)"]
        self.case("parquet_to_postgres", {"weir": (table, weir), "psql_copy": (table, copy)},
                  lambda who: int(self.psql("SELECT count(*) FROM target")))

    def postgres_upsert(self):
        if self.only and "postgres_upsert" not in self.only:
            return
        self.start_postgres()
        weir = self.weir("upsert", f"""pipeline: upsert
sources:
  lineitem: {{ type: parquet, path: {self.data}/parquet/lineitem.parquet }}
sinks:
  target: {{ input: lineitem, type: postgres, url: "{self.url}", table: public.target, mode: upsert, key: [l_orderkey, l_linenumber] }}
""")
        def table():
            shutil.rmtree(self.scratch / "upsert/state", ignore_errors=True)
            # Every fourth row is there already, and is updated.
            self.psql(f"DROP TABLE IF EXISTS target; CREATE TABLE target ({self.ddl}, PRIMARY KEY (l_orderkey, l_linenumber))")
            self.psql("INSERT INTO target SELECT * FROM source WHERE l_orderkey % 4 = 0; CHECKPOINT")
        sets = ", ".join(f"{name} = excluded.{name}" for name in LINEITEM if name not in ("l_orderkey", "l_linenumber"))
        script = self.scratch / "upsert.sql"
        script.write_text(f"BEGIN;\nCREATE TEMP TABLE stage ({self.ddl});\n\\copy stage FROM '{self.data}/csv/lineitem.csv' (FORMAT csv, HEADER)\n"
                          f"INSERT INTO target SELECT * FROM stage ON CONFLICT (l_orderkey, l_linenumber) DO UPDATE SET {sets};\nCOMMIT;\n")
        self.case("postgres_upsert", {
            "weir": (table, weir),
            "psql_copy_merge": (table, ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-f", script]),
        }, lambda who: int(self.psql("SELECT count(*) FROM target")))

    def startup(self):
        source = self.scratch / "one.csv"
        source.write_text("id\n1\n")
        out = self.scratch / "one-out"
        weir = self.weir("one", f"""pipeline: one
sources:
  one: {{ type: csv, path: {source}, columns: {{ id: int64 }} }}
sinks:
  lake: {{ input: one, type: parquet, path: {out} }}
""")
        repeat, self.repeat = self.repeat, max(self.repeat, 9)
        self.case("startup_one_row", {"weir": (self.fresh(out, self.scratch / "one/state"), weir)}, lambda who: self.parquet_rows(out))
        self.repeat = repeat

    # --- report ---------------------------------------------------------------------------------

    def report(self, path):
        lines = ["# Benchmark report", "",
                 f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {self.repeat} rounds, TPC-H scale factor 1. "
                 "Seconds and MiB are medians of whole processes; a ratio below 1 means that Weir needs less.", "",
                 "| case | contender | seconds | min – max | peak MiB | Weir's time ÷ its | Weir's memory ÷ its | rows |",
                 "| --- | --- | --- | --- | --- | --- | --- | --- |"]
        for r in self.results:
            lines.append(f"| {r['case']} | {r['who']} | {r['seconds']} | {r['min_seconds']} – {r['max_seconds']} | {r['peak_mib']} | {r['weir_time_ratio']} | {r['weir_memory_ratio']} | {r['rows']} |")
        lines += ["", "| aim | measured | |", "| --- | --- | --- |"]
        for aim, case, who, what, most in AIMS:
            found = [r for r in self.results if (r["case"], r["who"]) == (case, who)]
            for r in found:
                lines.append(f"| {aim} | {r[what]} | {'met' if r[what] <= most else 'missed'} |")
        lines += ["", "Made by `benches/run.sh`. Real PostgreSQL with its durable defaults and 1 GB of shared buffers, whose "
                  "own memory is not counted. Why an aim is missed: [profiles](profiles.md)."]
        # What cluster.sh has measured is kept.
        kept = path.read_text().partition(OF_CLUSTERS) if path.exists() else ("", "", "")
        path.write_text("\n".join(lines) + "\n" + ("\n" + "".join(kept[1:]) if kept[1] else ""))


OF_CLUSTERS = "## Cluster\n"

# What is aimed at: text, case, contender, column of the results, the most that meets it.
AIMS = [
    ("Parquet → PostgreSQL append ≤ 1.0 × `psql \\copy`", "parquet_to_postgres", "psql_copy", "weir_time_ratio", 1.0),
    ("PostgreSQL → Parquet ≤ 0.8 × ADBC's time", "postgres_to_parquet", "adbc", "weir_time_ratio", 0.8),
    ("PostgreSQL → Parquet ≤ 0.25 × connectorx's memory", "postgres_to_parquet", "connectorx", "weir_memory_ratio", 0.25),
    ("CSV → Parquet ≤ 1.1 × plain DataFusion", "csv_to_parquet", "datafusion", "weir_time_ratio", 1.1),
    ("the same, every line a record (`multiline: false`) ≤ 1.1 × plain DataFusion", "csv_lines_to_parquet", "datafusion", "weir_time_ratio", 1.1),
    ("TPC-H q1 ≤ 1.1 × plain DataFusion", "tpch_q1", "datafusion", "weir_time_ratio", 1.1),
    ("TPC-H q3 ≤ 1.1 × plain DataFusion", "tpch_q3", "datafusion", "weir_time_ratio", 1.1),
    ("TPC-H q5 ≤ 1.1 × plain DataFusion", "tpch_q5", "datafusion", "weir_time_ratio", 1.1),
    ("one-row pipeline ≤ 0.150 s", "startup_one_row", "weir", "seconds", 0.150),
]


def pg_type(kind):
    return {"int64": "bigint", "int32": "integer", "float64": "double precision", "string": "text"}.get(kind, kind.replace("decimal", "numeric"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only")
    parser.add_argument("--report", default=str(pathlib.Path(__file__).parent / "report.md"))
    bench = Bench(parser.parse_args())
    failed = False
    try:
        bench.prepare()
        for case in [bench.startup, bench.csv_to_parquet, bench.tpch, bench.postgres_to_parquet, bench.parquet_to_postgres, bench.postgres_upsert]:
            try:
                case()
            except Exception as error:  # one failing case must not hide the others
                failed = True
                print(f"FAILED {case.__name__}: {error}", file=sys.stderr, flush=True)
        bench.report(pathlib.Path(parser.parse_args().report))
    finally:
        bench.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
