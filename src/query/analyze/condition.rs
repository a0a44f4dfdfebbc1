//! The conditions under which components were ablated: the leading columns of the key of `ablations`.

use anyhow::Result;
use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use selfrepair_core::columns::{flags, numbers, settings, texts, truths};
use selfrepair_core::tables::{Column, Type};

use super::Tables;
use crate::sql::Value;

pub const ABLATION: Column = Column("ablation", Type::Text, "", "as in ablations");
pub const STRENGTH: Column = Column("strength", Type::Setting, "", "as in ablations");
pub const HOLD: Column = Column("hold", Type::Text, "", "as in ablations");
pub const HOLD_VALUE: Column = Column("hold_value", Type::Text, "", "as in ablations");
pub const HOLD_OWN_MLP: Column = Column("hold_own_mlp", Type::Flag, "", "as in ablations");
pub const COMPONENT: Column = Column("component", Type::Text, "", "as in ablations");

/// Rows of `ablations` about a [`Condition`].
pub const WHERE: &str = "ablation = $ablation and strength = $strength and hold = $hold and hold_value = $hold_value \
                         and hold_own_mlp = $hold_own_mlp and component = $component";

/// How components of a sort were ablated.
pub struct Condition {
    ablation: String,
    strength: f64,
    hold: String,
    hold_value: String,
    hold_own_mlp: bool,
    pub component: String,
}

impl Condition {
    /// Those of a run, in order.
    pub fn all(tables: &Tables) -> Result<Vec<Self>> {
        const COLUMNS: &str = "ablation, strength, hold, hold_value, hold_own_mlp, component";
        let mut all = Vec::new();
        for batch in tables.collect(&format!("select distinct {COLUMNS} from ablations order by {COLUMNS}"), &[])? {
            let text = |column: usize, row: usize| -> Result<String> {
                Ok(cast(batch.column(column), &DataType::Utf8)?.as_string::<i32>().value(row).to_string())
            };
            let (strength, hold_own_mlp) = (numbers::<Float64Type>(&batch, 1)?, truths(&batch, 4)?);
            for row in 0..batch.num_rows() {
                all.push(Self {
                    ablation: text(0, row)?,
                    strength: strength.value(row),
                    hold: text(2, row)?,
                    hold_value: text(3, row)?,
                    hold_own_mlp: hold_own_mlp.value(row),
                    component: text(5, row)?,
                });
            }
        }
        Ok(all)
    }

    /// The values of the parameters in [`WHERE`].
    pub fn parameters(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("ablation", self.ablation.as_str().into()),
            ("strength", self.strength.into()),
            ("hold", self.hold.as_str().into()),
            ("hold_value", self.hold_value.as_str().into()),
            ("hold_own_mlp", self.hold_own_mlp.into()),
            ("component", self.component.as_str().into()),
        ]
    }

    /// The columns before `component`, in as many rows.
    pub fn columns(&self, rows: usize) -> Vec<ArrayRef> {
        let text = |text: &str| texts(std::iter::repeat_n(text, rows));
        vec![
            text(&self.ablation),
            settings(std::iter::repeat_n(self.strength, rows)),
            text(&self.hold),
            text(&self.hold_value),
            flags(std::iter::repeat_n(self.hold_own_mlp, rows)),
        ]
    }

    /// As in a run without special settings.
    #[cfg(test)]
    pub fn of(component: &str) -> Self {
        Self {
            ablation: "zero".into(),
            strength: 1.0,
            hold: "none".into(),
            hold_value: "clean".into(),
            hold_own_mlp: true,
            component: component.into(),
        }
    }
}
