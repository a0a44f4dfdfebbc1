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
