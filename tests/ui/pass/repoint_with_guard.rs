// A filter is put above a node and taken away again, within drained sections, while a device reads through it.
// (The counterpart of `repoint_without_guard`, `attach_before_the_drain` and `proof_outlives_the_drain`.)

use crate::support::{Layer, open};
use block_common::{AlignedBuf, IoError, ParentKind, Perm, PermPair};
use block_io::RequestKind;
use block_testkit::{MemOptions, MemStorage, bed};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_filter_comes_and_goes_under_a_device() {
    let (layer, thread) = (Layer::new(), bed::io_thread(true));
    layer.add_storage("disk", &MemStorage::new(MemOptions::new(1 << 20)));
    layer.main.run(async {
        let gs = &layer.gs;
        let node = open(gs, "driver=mem,storage=disk,node-name=disk").await.expect("opens");
        let perm = PermPair::new(Perm::CONSISTENT_READ, Perm::all());
        let root = gs.new_root("disk0", ParentKind::Backend, perm, &thread.handle());
        gs.attach_root(&root, Some(&node)).await.expect("attaches");
        let (stop, device) = (Arc::new(AtomicBool::new(false)), root.io().clone());
        let seen = stop.clone();
        let reading = thread.handle().run(async move {
            while !seen.load(Ordering::Relaxed) {
                device.read(0, AlignedBuf::zeroed(4096, 512).into_io()).await.0?;
                bed::yield_now().await;
            }
            Ok::<_, IoError>(())
        });
        for _ in 0..20 {
            let filter = open(gs, "driver=toy-filter,file=disk").await.expect("opens");
            let section = gs.drain(&node).await;
            gs.replace_node(&section, &node, &filter).expect("inserts");
            drop(section);
            gs.main().sleep(std::time::Duration::from_millis(1)).await;
            let section = gs.drain(&filter).await;
            gs.replace_node(&section, &filter, &node).expect("drops");
            drop(section);
            gs.close(filter).await.expect("closes");
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(reading.await, Some(Ok(())));
        assert!(root.io().count(RequestKind::Read).requests > 0);
        drop((root, node));
        gs.close_all().await.expect("closes");
    });
}
