//! `schema`: the file format as JSON Schema.

use super::{Exit, print_json};
use crate::topology::schema;
use anyhow::Result;

#[derive(Debug, clap::Args)]
pub(super) struct SchemaArgs {}

impl SchemaArgs {
    #[allow(clippy::unused_self)]
    pub(super) fn run(&self) -> Result<Exit> {
        print_json(&schema())?;
        Ok(Exit::Done)
    }
}
