//! `info`: what an image is, and the images and files below it.
//!
//! This file asks; `info/qcow2.rs` does where an image has a structure of its own, without opening it; `info/tree.rs` prints.

mod qcow2;
mod tree;

use crate::args::{OpenArgs, OutputArgs, OutputFormat, one_image};
use crate::cli::{Command, Failure};
use crate::layer::BlockLayer;
use crate::print;
use block_drivers::ImageTold;
use block_gs::{GlobalState, NodeRef};
use clap::Parser;
use std::future::Future;
use std::pin::Pin;
use tree::Node;
pub(crate) use tree::{local_time, write_json};

/// Show what an image is.
#[derive(Debug, Parser)]
#[command(
    name = "info",
    bin_name = "cairn-img info",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img info [options] FILENAME"
)]
pub(crate) struct Args {
    #[command(flatten)]
    open: OpenArgs,
    /// Show the backing files, too
    #[arg(short, long)]
    backing_chain: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.open.object.texts()
    }

    /// Print what the image is.
    ///
    /// # Errors
    /// The image cannot be opened.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let output = self.output.format("info")?;
        let name = one_image(&self.names, "info")?;
        self.open.check()?;
        let mut image = self.open.image(name);
        image.how.no_io = true;
        layer.run(|gs| async move {
            let chain = qcow2::chain(&gs, image, self.backing_chain).await?;
            print(&match output {
                OutputFormat::Human => chain.iter().map(Node::to_text).collect::<Vec<_>>().join("\n"),
                OutputFormat::Json => Node::to_json(&chain, self.backing_chain),
            })
        })
    }
}

/// What there is to tell of a node and of those below it.
fn node(gs: &GlobalState, node_ref: NodeRef) -> Pin<Box<dyn Future<Output = Result<Node, Failure>> + '_>> {
    Box::pin(async move {
        let info = gs.node_info(&node_ref).map_err(Failure::message)?;
        let mut children = Vec::new();
        for (name, child, _) in &info.children {
            if let Some(child) = child {
                let child = gs.find_node(child).map_err(Failure::message)?;
                children.push((name.clone(), node(gs, child).await?));
            }
        }
        let image = ImageTold::of(gs, &node_ref).await.map_err(|error| Failure::message(error.report()))?;
        Ok(Node { image, is_protocol: children.is_empty(), children })
    })
}
