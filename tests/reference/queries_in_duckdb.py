"""Times every query of sql/ and sql/checks/ in DuckDB and in this program, in turn: the same SQL on the same files, each on
one core in a session that has read them before, the median of several times. Prints the ratio of the two (the median of
those of each time), and says where they return another number of rows. What is timed is the processor: on a machine with
other work, waiting says nothing.

    pip install duckdb pyarrow
    cargo bench --bench analyze --no-run          # prints where it put the program
    python tests/reference/queries_in_duckdb.py BENCH_PROGRAM RUN [ROUNDS [QUERY …]]

RUN is a run's folder, such as tests/reference/large_run.py makes up.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import duckdb

# The defaults of the configuration.
TOP_FRACTION, THRESHOLDS = 0.02, [0.1, 0.5, 1.0]


class Ours:
    """benches/analyze.rs, which runs the stage (so that the derived tables are there) and then what it is asked."""

    def __init__(self, program: str, run: Path):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([program, str(run), "-"], text=True, **pipes)
        print(self.process.stdout.readline().rstrip())

    def __call__(self, file: Path) -> tuple[float, int]:
        print(file, file=self.process.stdin, flush=True)
        words = self.process.stdout.readline().split()
        rows = words.index("rows")
        return float(words[rows + 3]), int(words[rows - 1])


class Duck:
    def __init__(self, run: Path):
        self.session = duckdb.connect()
        self.session.execute("set threads = 1")
        for folder in sorted((run / "tables").iterdir()):
            if any(folder.glob("*.parquet")):
                files = f"read_parquet('{folder}/*.parquet')"
                self.session.execute(f"create view {folder.name} as select * from {files}")
        rows = ", ".join(f"({t})" for t in THRESHOLDS)
        self.session.execute(f"create table thresholds as select * from (values {rows}) t(threshold)")

    def __call__(self, file: Path) -> tuple[float, int]:
        sql = file.read_text()
        parameters = {"top_fraction": TOP_FRACTION} if "$top_fraction" in sql else {}
        started = time.process_time()
        rows = self.session.sql(sql, params=parameters).to_arrow_table()
        return time.process_time() - started, rows.num_rows


def of_a_moment(ours: Ours, duck: Duck, file: Path) -> list:
    """Both engines in turn, a short query many times. The first time of each is not counted: it gives back what the query
    before took."""
    ours(file)
    duck(file)
    pairs, started = [], time.monotonic()
    while not pairs or time.monotonic() - started < 0.5:
        pairs.append((ours(file), duck(file)))
    return pairs


def main(program: str, run: Path, rounds: int, names: list[str]):
    ours = Ours(program, run)
    duck = Duck(run)
    files = sorted(Path("sql/checks").glob("*.sql")) + sorted(Path("sql").glob("*.sql"))
    files = [file for file in files if not names or file.stem in names]
    pairs = {file: [] for file in files}
    # In rounds, as a machine has slow moments; a ratio is of two times of one moment.
    for _ in range(rounds):
        for file in files:
            pairs[file] += of_a_moment(ours, duck, file)
    print(f"\n{'seconds of CPU':34} {'ours':>8} {'DuckDB':>8} {'ratio':>6}   (DuckDB {duckdb.__version__}, one core each)")
    sums = [0.0, 0.0]
    for file in files:
        rows = {engine[1] for pair in pairs[file] for engine in pair}
        seconds = [median(pair[i][0] for pair in pairs[file]) for i in range(2)]
        ratio = median(our[0] / other[0] for our, other in pairs[file])
        sums = [a + b for a, b in zip(sums, seconds)]
        note = "" if len(rows) == 1 else f"   rows differ: {sorted(rows)}"
        print(f"{file.stem:34} {seconds[0]:8.4f} {seconds[1]:8.4f} {ratio:6.2f}{note}")
    print(f"{'sum':34} {sums[0]:8.3f} {sums[1]:8.3f} {sums[0] / sums[1]:6.2f}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 5, sys.argv[4:])
