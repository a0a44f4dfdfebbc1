//! The bootstrap on runs whose replicates can be computed by hand.

use super::*;
use selfrepair_store::test_tables::{ABLATIONS, ablation, clean, metadata, table};

struct Row {
    layer: Option<i64>,
    head: Option<i64>,
    subset: String,
    measure: String,
    value: f64,
    error: f64,
    low: f64,
    high: f64,
}

/// Analyzes rows of `ablations` (and `top_tokens`, if any) of one ablation.
fn analyzed(prompts: u32, positions: u32, rows: &[String], tops: &[&str]) -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    clean(out, prompts, positions);
    table(out, "ablations", ABLATIONS, rows);
    table(out, "top_tokens", "component layer head rank prompt position direct_effect", tops);
    std::fs::create_dir_all(out.join("tables").join(TABLE)).unwrap();
    write(&Tables::open(out).unwrap(), out, &metadata()).unwrap();
    let rows = Tables::open(out).unwrap().collect("select * from uncertainty", &[]).unwrap();
    let text = |name: &str| -> Vec<String> {
        let column = |b: &RecordBatch| -> Vec<String> {
            let array = cast(b.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
            array.as_string::<i32>().iter().map(|v| v.unwrap().to_string()).collect()
        };
        rows.iter().flat_map(column).collect()
    };
    let number = |name: &str| {
        let column = |b: &RecordBatch| {
            let array = cast(b.column_by_name(name).unwrap(), &DataType::Float64).unwrap();
            array.as_primitive::<Float64Type>().iter().map(|v| v.unwrap_or(f64::NAN)).collect::<Vec<_>>()
        };
        rows.iter().flat_map(column).collect::<Vec<f64>>()
    };
    let (layer, head) = (integers(&rows, 7).unwrap(), integers(&rows, 8).unwrap());
    let (subset, measure) = (text("subset"), text("measure"));
    let (value, error, low, high) = (number("value"), number("standard_error"), number("low"), number("high"));
    (0..value.len())
        .map(|i| Row {
            layer: layer[i],
            head: head[i],
            subset: subset[i].clone(),
            measure: measure[i].clone(),
            value: value[i],
            error: error[i],
            low: low[i],
            high: high[i],
        })
        .collect()
}

fn find<'a>(rows: &'a [Row], layer: Option<i64>, head: Option<i64>, subset: &str, measure: &str) -> &'a Row {
    let mut found =
        rows.iter().filter(|r| (r.layer, r.head, &*r.subset, &*r.measure) == (layer, head, subset, measure));
    let row = found.next().unwrap_or_else(|| panic!("no row {layer:?} {head:?} {subset} {measure}"));
    assert!(found.next().is_none(), "two rows {layer:?} {head:?} {subset} {measure}");
    row
}

#[test]
fn prompts_that_are_all_equal_leave_no_doubt() {
    let rows: Vec<String> = (0..5)
        .flat_map(|p| {
            [(0, 1.0, 0.5), (1, 3.0, 0.25)].map(|(q, e, r)| ablation(&format!("zero none head 0 0 {p} {q}"), e, r))
        })
        .collect();
    let rows = analyzed(5, 2, &rows, &["head 0 0 0 0 1 3"]);
    let repair = find(&rows, Some(0), Some(0), "all", "self_repair");
    assert_eq!((repair.value, repair.error, repair.low, repair.high), (0.375, 0.0, 0.375, 0.375));
    let fraction = find(&rows, Some(0), Some(0), "all", "fraction_of_means");
    assert_eq!((fraction.value, fraction.error), (0.1875, 0.0));
    assert_eq!(find(&rows, Some(0), Some(0), "top", "direct_effect").value, 3.0);
    assert_eq!(find(&rows, None, None, "all", "repair_mlp").value, 0.375);
}

/// Two prompts a and b are drawn as aa, ab, ba or bb, so means of 1 and 3 give 1, 2 or 3 with shares ¼, ½, ¼:
/// a standard deviation of √½, and an interval from 1 to 3.
#[test]
fn two_prompts_give_the_three_means_that_two_draws_can_have() {
    let rows = [(0, 1.0), (1, 3.0)].map(|(p, r)| ablation(&format!("zero none head 4 2 {p} 0"), 4.0 * r, r));
    let draws = Draws::new(2, RESAMPLES, SEED);
    let member = Member {
        name: "L4H2".to_string(),
        head: Some(2),
        prompts: vec![(0, [0., 0., 1., 0., 0., 0., 0., 0., 1.]), (1, [0., 0., 3., 0., 0., 0., 0., 0., 1.])],
    };
    let drawn = draws.of(&member).measure(REPAIR).1;
    assert!(drawn.iter().all(|v| [1.0, 2.0, 3.0].contains(v)));
    let twos = drawn.iter().filter(|v| **v == 2.0).count();
    assert!((430..570).contains(&twos), "{twos} of 1000 draws are one of each");

    let rows = analyzed(2, 1, &rows, &["head 4 2 0 1 0 12"]);
    let repair = find(&rows, Some(4), Some(2), "all", "self_repair");
    assert_eq!((repair.value, repair.low, repair.high), (2.0, 1.0, 3.0));
    assert!((repair.error - 0.5f64.sqrt()).abs() < 0.03, "{}", repair.error);
    // Effect and repair go together, so their ratio is certain.
    let fraction = find(&rows, Some(4), Some(2), "all", "fraction_of_means");
    assert_eq!((fraction.value, fraction.error), (0.25, 0.0));
    // The top token is in one prompt only: drawn or not, its mean is the same.
    let top = find(&rows, Some(4), Some(2), "top", "self_repair");
    assert_eq!((top.value, top.error, top.low, top.high), (3.0, 0.0, 3.0, 3.0));
}

/// Head 0 has 1 and 3, head 1 has 3 and 1 in the same prompts: whatever is drawn, their mean is 2.
#[test]
fn a_layer_varies_as_its_heads_do_together() {
    let rows = [(0, 0, 1.0), (0, 1, 3.0), (1, 0, 3.0), (1, 1, 1.0)]
        .map(|(h, p, r)| ablation(&format!("zero none head 4 {h} {p} 0"), 5.0, r));
    let rows = analyzed(2, 1, &rows, &["head 4 0 0 0 0 5", "head 4 1 0 0 0 5"]);
    let layer = find(&rows, Some(4), None, "all", "self_repair");
    assert_eq!((layer.value, layer.error), (2.0, 0.0));
    assert!(find(&rows, Some(4), Some(0), "all", "self_repair").error > 0.6);
    assert_eq!(find(&rows, None, None, "all", "self_repair").value, 2.0);
}

#[test]
fn an_mlp_has_one_row_for_it_and_its_layer() {
    let rows = [(0, 1.0), (1, 3.0)].map(|(p, r)| ablation(&format!("zero none mlp 4 - {p} 0"), 5.0, r));
    let rows = analyzed(2, 1, &rows, &["mlp 4 - 0 0 0 5"]);
    assert_eq!(find(&rows, Some(4), None, "top", "self_repair").value, 1.0);
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let rows: Vec<String> = (0..3)
        .flat_map(|h| {
            (0..7).map(move |p| ablation(&format!("zero none head 0 {h} {p} 0"), 1.0, f64::from(h * p) / 7.0))
        })
        .collect();
    let bytes = |threads: usize| {
        let dir = tempfile::tempdir().unwrap();
        clean(dir.path(), 7, 1);
        table(dir.path(), "ablations", ABLATIONS, &rows);
        table(
            dir.path(),
            "top_tokens",
            "component layer head rank prompt position direct_effect",
            &["head 0 0 0 0 0 1"],
        );
        std::fs::create_dir_all(dir.path().join("tables").join(TABLE)).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| write(&Tables::open(dir.path()).unwrap(), dir.path(), &metadata())).unwrap();
        std::fs::read(dir.path().join("tables/uncertainty/uncertainty.parquet")).unwrap()
    };
    assert!(bytes(1) == bytes(4));
}

#[test]
fn one_number_has_no_deviation() {
    assert!(deviation(&[1.0]).is_nan());
    assert_eq!(deviation(&[1.0, 3.0]), 2f64.sqrt());
}
