//! A block layer as programs have it: a graph on a main loop, whose owner opens nodes by their options and changes them under load.
//!
//! [`Stack`](crate::Stack) has engines alone; here is everything above them as well.

use crate::{DataFile, Driver};
use anyhow::{Context, Result};
use block_backend::{Backend, BackendOptions};
use block_common::{Options, Perm, PermPair};
use block_drivers::{NewImage, register_all};
use block_gs::{GlobalOptions, GlobalState, MainLoop, NodeRef, ObjectText};
use std::future::Future;
use std::path::Path;

/// Filters that let reads pass, each with a node called `leaf` below it: see [`Live::leaf`].
pub const PASSING: [(&str, &str); 6] = [
    ("throttle", r#"{"driver": "throttle", "throttle-group": "none", "file": "leaf"}"#),
    ("copy-on-read", r#"{"driver": "copy-on-read", "file": "leaf"}"#),
    (
        "copy-before-write",
        r#"{"driver": "copy-before-write", "file": "leaf",
            "target": {"driver": "null-co", "size": 1073741824, "read-zeroes": true}}"#,
    ),
    ("preallocate", r#"{"driver": "preallocate", "file": "leaf"}"#),
    ("compress", r#"{"driver": "compress", "file": "leaf"}"#),
    ("blklogwrites", r#"{"driver": "blklogwrites", "file": "leaf", "log": {"driver": "null-co", "size": 1073741824}}"#),
];

/// A graph and its main loop.
#[derive(Debug)]
pub struct Live {
    // Before its loop.
    gs: GlobalState,
    main: MainLoop,
}

impl Live {
    /// Nothing is open. There is a throttle group without limits, `none`.
    ///
    /// # Errors
    /// The host refuses threads or descriptors.
    pub fn new() -> Result<Self> {
        let main = MainLoop::new()?;
        let gs = GlobalState::new(&main, GlobalOptions::default())?;
        register_all(&gs);
        let ObjectText::Make(group) = ObjectText::parse("throttle-group,id=none")? else { anyhow::bail!("no object") };
        main.run(gs.add_object(group))?;
        Ok(Self { gs, main })
    }

    /// The graph.
    pub fn gs(&self) -> &GlobalState {
        &self.gs
    }

    /// Carry out what its owner does.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.main.run(future)
    }

    /// Open a node with these options, as JSON.
    ///
    /// # Errors
    /// What the graph has against it.
    pub fn open(&self, options: &str) -> Result<NodeRef> {
        let options = Options::parse_json(options).with_context(|| options.to_owned())?;
        Ok(self.run(self.gs.open(options))?)
    }

    /// Open the node `leaf`: the file `data`, or a qcow2 image beside it, as long and all written, where a filter called `above` wants one.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn leaf(&self, data: &DataFile, above: &str) -> Result<NodeRef> {
        let file = |path: &Path, name| {
            let path = path.display();
            format!(r#"{{"driver": "file", "filename": "{path}", {name}"cache": {{"direct": false}}}}"#)
        };
        if above != "compress" {
            return self.open(&file(&data.path, r#""node-name": "leaf", "#));
        }
        let image = data.path.with_extension("qcow2");
        self.create(&image, data.len)?;
        let leaf =
            self.open(&format!(r#"{{"driver": "qcow2", "node-name": "leaf", "file": {}}}"#, file(&image, "")))?;
        Driver::write_all(self.backend(&leaf, true)?.io().root())?;
        Ok(leaf)
    }

    /// Make an empty qcow2 image of `len` bytes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(&self, path: &Path, len: u64) -> Result<()> {
        let options = format!("size={len}");
        self.run(async {
            let new = NewImage::parse(&self.gs, "qcow2", &path.display().to_string(), &options).await?;
            new.create(&self.gs).await?;
            Ok(())
        })
    }

    /// A user of `node` that reads, and writes if `writes`.
    ///
    /// # Errors
    /// Others do not let it.
    pub fn backend(&self, node: &NodeRef, writes: bool) -> Result<Backend> {
        let writes = if writes { Perm::WRITE } else { Perm::empty() };
        let options = BackendOptions {
            name: String::new(),
            perm: PermPair::new(Perm::CONSISTENT_READ | writes, Perm::all()),
            home: self.gs.main_io(),
            settings: Default::default(),
        };
        Ok(self.run(Backend::with_node(&self.gs, options, node))?)
    }

    /// Close everything. What was made of it is to be dropped before.
    ///
    /// # Errors
    /// A flush or a close failed.
    pub fn close(self) -> Result<()> {
        Ok(self.main.run(self.gs.close_all())?)
    }
}
