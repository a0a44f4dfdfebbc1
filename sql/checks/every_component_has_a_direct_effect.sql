-- Each position of `clean` has one direct effect of the embedding, the constant, every head, every MLP and, if the model
-- has them, every attention bias. (Counts and sums of layers and heads stand for the components, as sums of positions do
-- in every_token_was_measured. One number for a position: by one, rows are grouped in half the time.)
with expected as (
    select
        cast(layers as bigint) as layers,
        cast(heads as bigint) as heads,
        -- Layers added up, and heads of one layer.
        cast(layers as bigint) * (layers - 1) / 2 as layer_sum,
        cast(heads as bigint) * (heads - 1) / 2 as head_sum
    from model
),
measured as (
    select
        cast(prompt as bigint) * 4294967296 + position as place,
        count(*) as rows,
        count(layer) as with_layer,
        count(head) as with_head,
        sum(cast(layer as bigint)) as layer_sum,
        sum(cast(head as bigint)) as head_sum,
        sum(cast(layer as bigint) * head) as product_sum
    from direct_effects
    group by 1
)
select c.prompt, c.position, m.rows, m.with_layer, m.with_head
from clean c
cross join expected e
left join measured m on cast(c.prompt as bigint) * 4294967296 + c.position = m.place
where m.rows is null
    or m.with_head <> e.layers * e.heads
    or m.rows <> m.with_layer + 2
    -- One MLP a layer, and one attention bias or none.
    or m.with_layer - m.with_head not in (e.layers, 2 * e.layers)
    or m.layer_sum <> e.layer_sum * (e.heads + (m.with_layer - m.with_head) / e.layers)
    or m.head_sum <> e.head_sum * e.layers
    or m.product_sum <> e.layer_sum * e.head_sum
