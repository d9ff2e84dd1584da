//! An image in memory, open.

use block_common::{AlignedBuf, ChildRole, IoBuf, IoError, Perm, RequestFlags};
use block_crypt::SectorCipher;
use block_io::{IoThread, Req, Root, StaticGraph, StaticNode, ThreadPool};
use block_qcow2::{Header, Qcow2, Qcow2Children, Qcow2Control, Qcow2Options};
use block_testkit::bed::block_on;
use block_testkit::qcow2::cipher;
use block_testkit::{MemOptions, MemStorage};
use std::future::Future;

pub(crate) const NONE: RequestFlags = RequestFlags::empty();

/// Storage with these bytes.
pub(crate) fn storage(bytes: Vec<u8>) -> MemStorage {
    MemStorage::with_content(MemOptions { journal: true, ..MemOptions::new(bytes.len() as u64) }, bytes)
}

pub(crate) struct Image {
    pub(crate) root: Root,
    pub(crate) control: Qcow2Control,
    node: StaticNode,
    graph: StaticGraph,
}

/// Open the image in `storage`.
pub(crate) fn open(
    thread: &IoThread,
    storage: &MemStorage,
    backing: Option<&MemStorage>,
    options: Qcow2Options,
) -> Result<Image, String> {
    open_for(thread, storage, backing, options, false)
}

/// As [`open`], for reading only if `read_only`.
pub(crate) fn open_for(
    thread: &IoThread,
    storage: &MemStorage,
    backing: Option<&MemStorage>,
    options: Qcow2Options,
    read_only: bool,
) -> Result<Image, String> {
    open_with(thread, storage, backing, options, read_only, cipher)
}

/// As [`open_for`], with what `key` says for the header.
pub(crate) fn open_with(
    thread: &IoThread,
    storage: &MemStorage,
    backing: Option<&MemStorage>,
    options: Qcow2Options,
    read_only: bool,
    key: impl FnOnce(&Header) -> Option<SectorCipher> + Send + 'static,
) -> Result<Image, String> {
    let mut graph = StaticGraph::new(thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).map_err(|error| error.to_string())?;
    let backing =
        backing.map(|backing| block_on(graph.node("backing").install(backing.driver(), true)).expect("a backing node"));
    open_over(graph, &file, backing, options, read_only, key)
}

/// As [`open_with`], above nodes.
pub(crate) fn open_over(
    mut graph: StaticGraph,
    file: &StaticNode,
    backing: Option<StaticNode>,
    options: Qcow2Options,
    read_only: bool,
    key: impl FnOnce(&Header) -> Option<SectorCipher> + Send + 'static,
) -> Result<Image, String> {
    let mut shell = graph.node("qcow2");
    let file = shell.child(ChildRole::IMAGE, Perm::all(), file);
    let backing = backing.map(|backing| shell.child(ChildRole::COW, Perm::CONSISTENT_READ, &backing));
    let open = |req| async move {
        let opened = async {
            let header = Qcow2::read_header(&req, &file).await?;
            let children = Qcow2Children { file, data: None, backing, cipher: key(&header) };
            Qcow2::open(&req, children, header, options, read_only, ThreadPool::new(2)).await
        };
        Ok(opened.await)
    };
    let opened = block_on(shell.run(open)).map_err(|error| error.to_string())?;
    let (engine, control) = opened.map_err(|error| error.to_string())?;
    let node = block_on(shell.install(engine, read_only)).map_err(|error| error.to_string())?;
    let root = graph.root("root", &node, Perm::all());
    Ok(Image { root, control, node, graph })
}

/// Open the image in `storage`, let `work` have it to itself, close it.
pub(crate) fn alone<T: Send + 'static, F: Future<Output = T> + Send>(
    thread: &IoThread,
    storage: &MemStorage,
    work: impl FnOnce(Req, Qcow2Control) -> F + Send + 'static,
) -> T {
    alone_with(thread, storage, Qcow2Options::default(), work)
}

/// As [`alone`], with these options.
pub(crate) fn alone_with<T: Send + 'static, F: Future<Output = T> + Send>(
    thread: &IoThread,
    storage: &MemStorage,
    options: Qcow2Options,
    work: impl FnOnce(Req, Qcow2Control) -> F + Send + 'static,
) -> T {
    let mut graph = StaticGraph::new(thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a node");
    let mut shell = graph.node("qcow2");
    let file = shell.child(ChildRole::IMAGE, Perm::all(), &file);
    let open = |req: Req| async move {
        let header = Qcow2::read_header(&req, &file).await.expect("a header");
        let children = Qcow2Children { file, data: None, backing: None, cipher: cipher(&header) };
        let opened = Qcow2::open(&req, children, header, options, false, ThreadPool::new(2)).await;
        let (engine, control) = opened.expect("opens");
        Ok((engine, work(req, control).await))
    };
    let (engine, result) = block_on(shell.run(open)).expect("it runs");
    drop(block_on(shell.install(engine, false)).expect("a node"));
    block_on(graph.close()).expect("closes");
    result
}

impl Image {
    pub(crate) fn close(self) -> Result<(), IoError> {
        block_on(self.close_later())
    }

    pub(crate) async fn close_later(self) -> Result<(), IoError> {
        drop((self.root, self.control, self.node));
        self.graph.close().await
    }

    /// Let `work` have the image to itself, in the midst of its use.
    pub(crate) async fn alone<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &mut self,
        work: impl FnOnce(Req, Qcow2Control) -> F,
    ) -> T {
        let control = self.control.clone();
        let done = self.graph.run_alone(&self.node, |req| work(req, control)).await;
        done.expect("the node is there").expect("the thread runs")
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let (result, buf) = block_on(self.root.read(offset, AlignedBuf::zeroed(len, 4096).into_io()));
        result.expect("read");
        buf.expect("the buffer").to_aligned(1).to_vec()
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        block_on(self.root.write(offset, buf(data), NONE)).0.expect("written");
    }
}

pub(crate) fn buf(data: &[u8]) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(data.len(), 4096);
    buf.copy_from_slice(data);
    buf.into_io()
}
