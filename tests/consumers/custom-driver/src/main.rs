//! Two drivers from outside Cairn, and a program that opens them by options beside those of the build.
//!
//! `xor` (see `xor.rs`) transforms what goes through it, so every request takes the slow path: it copies out once,
//! transforms the copy, and never leaves a guest's memory half done. `striped` (see `striped.rs`) spreads its disk over
//! two children and only says where bytes are: the core follows that by itself. Each driver is an engine, which sees
//! `block-io` and nothing of the graph, and a global-state half, which takes the options and attaches the children.
//!
//! The program stripes a disk over two files, refers to it by name from an `xor` node, looks at what wrong options are
//! answered with, runs Cairn's conformance suite and its random model on both through a backend, closes, and takes the
//! files apart by hand.

mod striped;
mod xor;

use block_backend::{Backend, BackendOptions};
use block_backend_io::BackendSettings;
use block_common::options::{Dialect, Dict};
use block_common::{AlignedBuf, Options, Perm, PermPair, RequestFlags};
use block_gs::{GlobalOptions, GlobalState, GraphError, MainLoop, NodeRef};
use block_io::{IoThread, IoThreadOptions};
use block_testkit::{conformance, model};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::rc::Rc;

type AnyError = Box<dyn Error + Send + Sync>;

/// Bytes of each file; the disk is twice as long.
const FILE: u64 = 4 << 20;
const STRIPE: u64 = 64 << 10;
const KEY: &str = "hardly secret";
/// What the program writes in the end, and where; across two stripes.
const MESSAGE: &[u8] = b"these bytes lie in both files, and in neither can they be read";
const MESSAGE_AT: u64 = 3 * STRIPE - 20;

/// A folder that goes when the program does, however that ends.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("cairn-custom-driver-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> std::io::Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::File::create(&path)?.set_len(FILE)?;
        Ok(path)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file as a node called `name`.
async fn open_file(gs: &GlobalState, name: &str, path: &Path) -> Result<NodeRef, AnyError> {
    let mut options = Dict::new();
    options.insert("driver", "file")?;
    options.insert("node-name", name)?;
    options.insert("filename", path.to_str().ok_or("an odd name for a temporary file")?)?;
    Ok(gs.open(Options::from_dict(Dialect::Qmp, options)).await?)
}

/// A node as a command line describes it.
async fn open(gs: &GlobalState, options: &str) -> Result<NodeRef, GraphError> {
    gs.open(Options::parse_blockdev(options)?).await
}

/// What is wrong with the options is said with its name, and nothing of the node stays.
async fn check_refusals(gs: &GlobalState) -> Result<(), AnyError> {
    let refusals = [
        ("striped,children.0=left", "children"),
        ("striped,children.0=left,children.1=right,stripe=1000", "stripe"),
        ("striped,children.0=left,children.1=nobody", "nobody"),
        ("xor,file=left", "key"),
        ("xor,file=left,key=k,kee=k", "kee"),
        ("xor,key=k", "file"),
    ];
    let before = gs.nodes().len();
    for (options, named) in refusals {
        match open(gs, options).await {
            Ok(_) => return Err(format!("'{options}' was opened").into()),
            Err(error) if error.to_string().contains(named) => {}
            Err(error) => return Err(format!("'{options}' is answered with '{error}', without '{named}'").into()),
        }
    }
    gs.settle().await?;
    if gs.nodes().len() != before {
        return Err("a node that could not be opened is still there".into());
    }
    println!("{} wrong descriptions were refused by name", refusals.len());
    Ok(())
}

/// The suite and the model, through a backend that uses the node.
async fn check_driver(backend: &Backend, node: &NodeRef) -> Result<(), AnyError> {
    backend.insert(node).await?;
    let root = backend.io().root().clone();
    let suite = conformance::ConformanceOptions { resizable: false, ..Default::default() };
    let checks = conformance::run(&root, &suite).await?;
    let model = model::ModelOptions { requests: 3000, len: 8 * STRIPE, ..Default::default() };
    let report = model::run(&root, model).await?;
    println!(
        "{}: {} checks, {} random requests, {} bytes compared",
        node.name(),
        checks.len(),
        report.done,
        report.compared
    );
    backend.remove().await?;
    Ok(())
}

async fn write_message(backend: &Backend, node: &NodeRef) -> Result<(), AnyError> {
    backend.insert(node).await?;
    let (io, buf) = (backend.io(), AlignedBuf::zeroed(MESSAGE.len(), 1).into_io());
    buf.copy_from_slice(0, MESSAGE);
    io.entry()?.write(MESSAGE_AT, buf, RequestFlags::FUA).await.0?;
    Ok(())
}

async fn run(gs: &GlobalState, files: [&Path; 2], thread: &IoThread) -> Result<(), AnyError> {
    let left = open_file(gs, "left", files[0]).await?;
    let right = open_file(gs, "right", files[1]).await?;
    check_refusals(gs).await?;
    let backend = Backend::new(
        gs,
        BackendOptions {
            name: "drive0".into(),
            perm: PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all()),
            home: thread.handle(),
            settings: BackendSettings::default(),
        },
    )?;
    let striped = open(gs, &format!("striped,node-name=disk,stripe={STRIPE},children.0=left,children.1=right")).await?;
    check_driver(&backend, &striped).await?;
    let xor = open(gs, &format!("xor,node-name=secret,key={KEY},file=disk")).await?;
    check_driver(&backend, &xor).await?;

    write_message(&backend, &xor).await?;
    drop((backend, xor, striped, left, right));
    gs.close_all().await?;
    println!("closed");
    Ok(())
}

fn main() -> Result<(), AnyError> {
    let folder = TempFolder::new()?;
    let files = [folder.file("left")?, folder.file("right")?];
    let main_loop = MainLoop::new()?;
    let gs = GlobalState::new(&main_loop, GlobalOptions::default())?;
    block_drivers::register_all(&gs);
    gs.register(Rc::new(xor::XorType));
    gs.register(Rc::new(striped::StripedType));
    let thread = IoThread::spawn(IoThreadOptions::named("custom-driver-io"))?;
    main_loop.run(run(&gs, [&files[0], &files[1]], &thread))?;

    // Stripe 2 is the second of the first file, stripe 3 the second of the other.
    let [left, right] = [std::fs::read(&files[0])?, std::fs::read(&files[1])?];
    let mut stored = left[(2 * STRIPE - 20) as usize..(2 * STRIPE) as usize].to_vec();
    stored.extend_from_slice(&right[STRIPE as usize..STRIPE as usize + MESSAGE.len() - 20]);
    if stored == MESSAGE {
        return Err("the message is stored as it is".into());
    }
    xor::apply(KEY.as_bytes(), MESSAGE_AT, &mut stored);
    if stored != MESSAGE {
        return Err("the files do not hold the message".into());
    }
    println!("the message was found in both files, and only with the key");
    Ok(())
}
