// An export that was not given RESIZE asks its own global-state half for it and truncates once it has it. It asks with
// no request in flight, and the answer is a value, not a privilege.
// (Review: the other cure for the FUSE truncate, and the way for a job that must change the graph half-way.)

use crate::disk::{Disk, on_a_device_thread};
use block_backend_io::{Upcalls, upcalls};
use block_common::{IoError, IoResult, Perm, Preallocation};
use block_io::Root;
use block_testkit::bed;

/// What the data path may ask.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    MayResize { to: u64 },
}

async fn fuse_setattr_size(export: &Root, ask: &Upcalls<Question, bool>, len: u64) -> IoResult<()> {
    match ask.ask(Question::MayResize { to: len }).await {
        Some(true) => export.truncate(len, Preallocation::Off).await,
        Some(false) => Err(IoError::NOT_PERMITTED),
        None => Err(IoError::CLOSED),
    }
}

#[test]
fn a_data_path_asks_its_other_half() {
    // What the main loop would set when it grants the question; a static graph has its permissions from the start.
    let disk = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE);
    let (ask, mut questions) = upcalls(4);
    on_a_device_thread(|| {
        let (export, ask) = (disk.root.clone(), ask);
        let asking = disk.root.home().run(async move {
            let granted = fuse_setattr_size(&export, &ask, 2 << 20).await;
            let denied = fuse_setattr_size(&export, &ask, 3 << 20).await;
            (granted, denied, fuse_setattr_size(&export, &ask, 4 << 20).await)
        });
        let main_loop = async move {
            for (expected, answer) in [(2 << 20, true), (3 << 20, false)] {
                let (question, send) = questions.next().await.expect("somebody asks");
                assert_eq!(question, Question::MayResize { to: expected });
                send.send(answer).expect("somebody waits");
            }
        };
        bed::block_on(main_loop);
        // The main loop's end is gone: whoever asks hears that, rather than wait.
        let expected = (Ok(()), Err(IoError::NOT_PERMITTED), Err(IoError::CLOSED));
        assert_eq!(bed::block_on(asking), Some(expected));
    });
    assert_eq!(disk.storage.len(), 2 << 20);
    disk.close();
}
