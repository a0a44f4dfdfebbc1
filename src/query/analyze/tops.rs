//! Which tokens are a head's top tokens, for queries that need them token by token.

use anyhow::Result;

use super::Tables;

/// A query for (component, layer, head, prompt, position) of the top tokens of every component that the ablation had.
///
/// The clean pass writes them down; of tables without that, they are ranked again, as many as `head_summary` counted.
pub fn top_tokens(tables: &Tables, ablation: &str, hold: &str) -> Result<String> {
    if tables.has("top_tokens")? {
        return Ok("select component, layer, head, prompt, position from top_tokens".into());
    }
    let (ablation, hold) = (ablation.replace('\'', "''"), hold.replace('\'', "''"));
    let this = format!("ablation = '{ablation}' and hold = '{hold}'");
    Ok(format!(
        "select a.component, a.layer, a.head, a.prompt, a.position from (\
         select component, layer, head, prompt, position, row_number() over (\
         partition by component, layer, head order by direct_effect desc, prompt, position) as place \
         from ablations where {this}) a \
         join (select component, layer, head, tokens from head_summary where {this} and subset = 'top') h \
         on a.component = h.component and a.layer = h.layer and coalesce(a.head, 65535) = coalesce(h.head, 65535) \
         where a.place <= h.tokens"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use selfrepair_store::test_tables::{ABLATIONS, ablation, table};
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    /// (head, prompt, position) of the top tokens of the head and, as head −1, the MLP of layer 0.
    fn tops(tables: &Tables) -> Vec<[i64; 3]> {
        let query = top_tokens(tables, "zero", "none").unwrap();
        let sql = format!(
            "select cast(coalesce(cast(head as int), -1) as bigint), cast(prompt as bigint), cast(position as bigint) \
             from ({query}) order by 1, 2, 3"
        );
        let rows = tables.collect(&sql, &[]).unwrap();
        let value =
            |b: &arrow::array::RecordBatch, c: usize, r: usize| b.column(c).as_primitive::<Int64Type>().value(r);
        rows.iter()
            .flat_map(|b| (0..b.num_rows()).map(|r| [0, 1, 2].map(|c| value(b, c, r))).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn tokens_are_ranked_by_direct_effect_and_then_by_place_unless_the_run_wrote_them_down() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            ablation("zero none head 0 3 0 0", 1.0, 0.0),
            ablation("zero none head 0 3 1 0", 3.0, 0.0),
            ablation("zero none head 0 3 1 1", 3.0, 0.0),
            ablation("zero none head 0 3 2 0", 3.0, 0.0),
            ablation("zero none mlp 0 - 0 0", 1.0, 0.0),
            ablation("zero none mlp 0 - 1 0", 2.0, 0.0),
            // Another ablation of the same head has no say.
            ablation("mean none head 0 3 0 0", 9.0, 0.0),
        ];
        table(dir.path(), "ablations", ABLATIONS, &rows);
        let counts = ["zero none head 0 3 top 2", "zero none mlp 0 - top 1", "zero none head 0 3 all 4"];
        table(dir.path(), "head_summary", "ablation hold component layer head subset tokens", &counts);
        assert_eq!(tops(&Tables::open(dir.path()).unwrap()), [[-1, 1, 0], [3, 1, 0], [3, 1, 1]]);
        table(
            dir.path(),
            "top_tokens",
            "component layer head rank prompt position direct_effect",
            &["head 0 3 0 2 0 3"],
        );
        assert_eq!(tops(&Tables::open(dir.path()).unwrap()), [[3, 2, 0]]);
    }
}
