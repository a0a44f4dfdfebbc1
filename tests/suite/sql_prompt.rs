//! The prompt of `pipeline sql`, driven through a pseudo-terminal as a user would.

use std::process::{Command, Stdio};

use crate::support::Step::{Expect, Type};
use crate::support::*;

fn finished_run() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    succeeded(run_tiny("all", &dir.path().join("out"), &[]));
    dir
}

#[test]
fn statements_go_over_lines_and_the_prompt_explains_errors_and_tables() {
    let dir = finished_run();
    let out = dir.path().join("out").display().to_string();
    on_a_terminal(
        &["sql", "--out", &out],
        dir.path(),
        &[
            Expect("sql> "),
            // Two lines, and two statements in one.
            Type("select count(*) as n\r"),
            Type("from tokens; select 6 * 7 as answer;\r"),
            Expect("| 192 |"),
            Expect("|     42 |"),
            Expect("1 row"),
            // A semicolon in a string ends nothing.
            Type("select 'a;\r"),
            Type("b' as c;\r"),
            Expect("b"),
            Expect("1 row"),
            Type("select self_repare from ablations;\r"),
            Expect("no column `self_repare`; did you mean `self_repair`?"),
            Expect("^^^^^^^^^^^"),
            Type("\\d\r"),
            Expect("head_summary"),
            Expect("view"),
            Type("\\d clean\r"),
            Expect("sorted by   prompt, position"),
            Expect("nats"),
            Expect("log-probability of the correct token"),
            Type("\\d cleen\r"),
            Expect("no table `cleen`; did you mean `clean`?"),
            Type("\\timing\r"),
            Expect("timing is on"),
            Type("select 1 as one;\r"),
            Expect("took"),
            Type("from tokens where prompt = 3 limit 1;\r"),
            Expect("| prompt |"),
            Expect("1 row"),
            Type("select 2.0 / 3 as x;\r"),
            Expect("| 0.666667 |"),
            Type("\\digits all\r"),
            Type("select 2.0 / 3 as x;\r"),
            Expect("| 0.6666666666666666 |"),
            Type("\\digits\r"),
            Expect("digits: all"),
            // A line per table, cut where the terminal ends.
            Type("show tables;\r"),
            Expect("| ablations "),
            Expect("… |"),
            Expect("rows"),
            // What is wider than the terminal is shown a value a line.
            Type("select * from heads limit 2;\r"),
            Expect("[ row 2 ]"),
            Expect("surely_repaired"),
            Type("\\x on\r"),
            Type("select 5 as five;\r"),
            Expect("five │ 5"),
            Type("\\x auto\r"),
            Type("\\nonsense\r"),
            Expect("not a command"),
            Type("\\?\r"),
            Expect("\\timing"),
            Type(
                "create view best as select max(self_repair) as most from head_summary; select count(most) from best;\r",
            ),
            Expect("1 row"),
            Type("\\q\r"),
        ],
    );
    // Another day, the statements are still there: the arrow brings it back.
    on_a_terminal(
        &["sql", "--out", &out],
        dir.path(),
        &[Expect("sql> "), Type("\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\x1b[A\r"), Expect("| five |"), Type("\x04")],
    );
    assert!(dir.path().join("self-repair/sql_history").is_file());
}

#[test]
fn tab_completes_tables_columns_functions_and_keywords() {
    let dir = finished_run();
    let out = dir.path().join("out").display().to_string();
    on_a_terminal(
        &["sql", "--out", &out],
        dir.path(),
        &[
            Expect("sql> "),
            Type("sel\t avg(self_repair_e\t) as error from head_su\t;\r"),
            Expect("error |"),
            Expect("1 row"),
            // Only a function of that beginning, only columns of the table that is named.
            Type("select approx_median(log_p\t) as middle from clean;\r"),
            Expect("middle |"),
            Expect("1 row"),
            Type("\\d repair_o\t\r"),
            Expect("share of them above 1"),
            // What is ambiguous is listed.
            Type("select repair_\t"),
            Expect("repair_attention"),
            Expect("repair_norm"),
            Type("\x03"),
            Type("\\q\r"),
        ],
    );
}

#[test]
fn ctrl_c_cancels_the_query_and_the_prompt_goes_on() {
    let dir = finished_run();
    let out = dir.path().join("out").display().to_string();
    let hours = "select count(*) from ablations a, ablations b, ablations c \
                 where a.self_repair + b.self_repair * c.self_repair > 0;\r";
    on_a_terminal(
        &["sql", "--out", &out],
        dir.path(),
        &[
            Expect("sql> "),
            Type(hours),
            // It is at work.
            Type(""),
            Type(""),
            Type(""),
            Type(""),
            Type(""),
            Type(""),
            Type("\x03"),
            Expect("cancelled"),
            Type("select 41 + 1 as answer;\r"),
            Expect("|     42 |"),
            // With nothing running, it drops what is typed.
            Type("select 1 fr"),
            Type("\x03"),
            Type("select 43 as next;\r"),
            Expect("|   43 |"),
            Type("\x04"),
        ],
    );
}

/// Planning is one long computation that nothing can stop; the prompt does not wait for it, nor does leaving.
#[test]
fn ctrl_c_cancels_planning_too() {
    let dir = finished_run();
    let out = dir.path().join("out").display().to_string();
    // Planning takes time with the square of the joins: some seconds.
    let joins: String = (1..170).map(|i| format!(" join tokens t{i} on t{i}.position = t{}.position", i - 1)).collect();
    let query = format!("select count(*) from tokens t0{joins};\r");
    let steps = [
        Expect("sql> "),
        Type(&query),
        Expect("t168.position;"),
        Type("\x03"),
        Expect("cancelled"),
        Type("select 41 + 1 as answer;\r"),
        Expect("|     42 |"),
        Type("\\q\r"),
    ];
    on_a_terminal(&["sql", "--out", &out], dir.path(), &steps);
}

#[test]
fn a_terminal_gets_the_first_rows_and_is_told_how_to_get_all() {
    let dir = finished_run();
    let out = dir.path().join("out").display().to_string();
    let shown = on_a_terminal(
        &["sql", "--out", &out],
        dir.path(),
        &[
            Expect("sql> "),
            Type("select prompt from ablations;\r"),
            Expect("the first 500 rows"),
            Expect("\\limit 0"),
            Type("\\limit 3\r"),
            Type("select prompt, position from clean;\r"),
            Expect("the first 3 rows"),
            Type("\\q\r"),
        ],
    );
    assert!(shown.lines().count() < 600, "{}", shown.lines().count());
    let shown = on_a_terminal(&["sql", "--out", &out, "show tables"], dir.path(), &[Expect("| ablations ")]);
    assert!(shown.lines().count() < 60 && shown.lines().all(|l| l.trim_end().chars().count() <= 80), "{shown}");
    // The same without a prompt; and nothing binary.
    let query = "select prompt from ablations";
    let shown = on_a_terminal(&["sql", "--out", &out, query], dir.path(), &[Expect("the first 500 rows")]);
    assert!(shown.contains("--output FILE"), "{shown}");
    let refused = Command::new("python3")
        .args(["-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) != 256)"])
        .arg(env!("CARGO_BIN_EXE_pipeline"))
        .args(["sql", "--out", &out, "--format", "parquet", query])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(refused.status.success() && text(&refused.stdout).contains("Parquet is not for a terminal"), "{refused:?}");
}
