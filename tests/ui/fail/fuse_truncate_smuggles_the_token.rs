// The FUSE export cannot name permissions from its data path, so its start, which is global state, hands the capability
// to the loop that answers the kernel. That loop runs on the export's home thread.
// (Review: truncate on a writable export that does not grow takes RESIZE, truncates, drops it, all from its I/O
// thread.)

use block_common::{Perm, PermPair, Preallocation};
use block_gs::{GlobalState, RootRef};
use block_io::IoThreadHandle;
use std::rc::Rc;

fn fuse_export_start(gs: GlobalState, root: Rc<RootRef>, home: &IoThreadHandle) {
    let setattr_size = async move {
        gs.set_root_perm(&root, PermPair::new(Perm::WRITE | Perm::RESIZE, Perm::all())).expect("no conflict");
        root.io().truncate(1 << 20, Preallocation::Off).await.expect("truncates");
        gs.set_root_perm(&root, PermPair::new(Perm::WRITE, Perm::all())).expect("no conflict");
    };
    home.spawn(setattr_size);
}

fn main() {}
