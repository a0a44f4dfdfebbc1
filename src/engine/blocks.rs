//! The loaded graphs of the layers.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use anyhow::{Context, Result};
use selfrepair_model::Architecture;

use crate::Needs;
use crate::export;
use crate::lender::{Lender, Loan};
use crate::next_readers::{Combined, FirstReaders};
use crate::runtime::Graph;

/// The graphs of one layer. Those that are optional are loaded as [`Needs`] says.
pub struct Block {
    pub attention: Graph,
    pub mlp: Graph,
    pub head_directions: Graph,
    ablate: Option<Graph>,
    attention_held: Option<Graph>,
    mlp_held: Option<Graph>,
    attention_masked: Option<Graph>,
    head_outputs: Option<Graph>,
    neuron_directions: Option<Graph>,
    first_readers: Option<FirstReaders>,
}

impl Block {
    pub fn load(
        a: &Architecture,
        layer: usize,
        needs: &Needs,
        combined: &BTreeMap<usize, Arc<Combined>>,
        load: impl Fn(&str) -> Result<Graph>,
    ) -> Result<Self> {
        let some = |wanted: bool, name: fn(usize) -> String| wanted.then(|| load(&name(layer))).transpose();
        let readers = combined.get(&layer).map(|combined| FirstReaders::load(a, layer, combined, &load));
        Ok(Self {
            attention: load(&export::attention_graph(layer))?,
            mlp: load(&export::mlp_graph(layer))?,
            head_directions: load(&export::head_directions_graph(layer))?,
            ablate: some(needs.ablate, export::ablate_graph)?,
            attention_held: some(needs.hold, export::attention_held_graph)?,
            mlp_held: some(needs.hold, export::mlp_held_graph)?,
            attention_masked: some(needs.iterate, export::attention_masked_graph)?,
            head_outputs: some(needs.iterate, export::head_outputs_graph)?,
            neuron_directions: some(needs.neurons.contains(&layer), export::neuron_directions_graph)?,
            first_readers: readers.transpose()?,
        })
    }

    pub fn ablate(&mut self) -> Result<&mut Graph> {
        self.ablate.as_mut().context("this engine was not loaded for ablate")
    }

    pub fn attention_held(&mut self) -> Result<&mut Graph> {
        self.attention_held.as_mut().context("this engine was not loaded for holding")
    }

    pub fn mlp_held(&mut self) -> Result<&mut Graph> {
        self.mlp_held.as_mut().context("this engine was not loaded for holding")
    }

    pub fn attention_masked(&mut self) -> Result<&mut Graph> {
        self.attention_masked.as_mut().context("this engine was not loaded for iterating")
    }

    pub fn head_outputs(&mut self) -> Result<&mut Graph> {
        self.head_outputs.as_mut().context("this engine was not loaded for iterating")
    }

    pub fn neuron_directions(&mut self) -> Result<&mut Graph> {
        self.neuron_directions.as_mut().context("this engine was not loaded for neurons")
    }

    pub fn first_readers(&mut self) -> Result<&mut FirstReaders> {
        self.first_readers.as_mut().context("this engine was not loaded to read by differences")
    }
}

/// Where an engine has its layers from.
pub enum Blocks {
    /// All of them are loaded.
    Own(Vec<Block>),
    /// They are loaded one after the other, for all engines.
    Lent(Arc<Lender>),
}

impl Blocks {
    /// A layer's graphs. If layers are lent, this waits for its turn.
    ///
    /// # Errors
    /// If the layer cannot be loaded.
    pub fn get(&mut self, layer: usize) -> Result<Borrowed<'_>> {
        match self {
            Self::Own(blocks) => blocks.get_mut(layer).map(Borrowed::Own).context("the model has no such layer"),
            Self::Lent(lender) => lender.borrow(layer).map(Borrowed::Lent),
        }
    }
}

/// A layer's graphs while they are used.
pub enum Borrowed<'a> {
    Own(&'a mut Block),
    Lent(Loan<'a>),
}

impl Deref for Borrowed<'_> {
    type Target = Block;

    fn deref(&self) -> &Block {
        match self {
            Self::Own(block) => block,
            Self::Lent(loan) => loan,
        }
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Block {
        match self {
            Self::Own(block) => block,
            Self::Lent(loan) => loan,
        }
    }
}
