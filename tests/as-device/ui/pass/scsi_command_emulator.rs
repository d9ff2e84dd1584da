// The command emulator of a SCSI disk, whole, on a device's thread, from the I/O half of a backend and nothing else:
// inquiry, capacity, mode pages, tray, lock, reads, writes, flush, unmap, and an answer to each error.
// (Review: everything that an emulator reaches is I/O. Booting a guest from a CD, ejecting it, a disk with a write
// cache, and a pass-through disk that sets its block size in a completion: each of them aborted.)

use crate::disk::{Disk, on_a_device_thread};
use block_backend_io::{BackendEvent, BackendIo, ErrorAction};
use block_common::{AlignedBuf, IoBuf, IoError, IoResult, Perm, RequestFlags};
use block_testkit::bed;

/// What the guest's driver sent.
enum Command {
    Inquiry,
    ReadCapacity,
    ModeSense,
    ModeSelect { write_cache: bool, block_size: u32 },
    PreventRemoval(bool),
    StartStop { load: bool },
    Read { block: u64, count: u32 },
    Write { block: u64, data: IoBuf },
    Unmap { block: u64, count: u32 },
    SynchroniseCache,
}

/// What it gets.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Good(Vec<u8>),
    NotReady,
    MediumLocked,
    MachineStops,
    Sense(i32),
}

struct ScsiDisk {
    backend: BackendIo,
}

impl ScsiDisk {
    async fn execute(&self, command: Command) -> Answer {
        let is_write = matches!(command, Command::Write { .. } | Command::Unmap { .. } | Command::SynchroniseCache);
        match self.carry_out(command).await {
            Ok(answer) => answer,
            Err(IoError::NO_MEDIUM) => Answer::NotReady,
            Err(error) => match self.backend.error_action(is_write, error) {
                ErrorAction::Ignore => Answer::Good(Vec::new()),
                ErrorAction::Stop => Answer::MachineStops,
                ErrorAction::Report => Answer::Sense(error.errno().raw()),
            },
        }
    }

    fn offset(&self, block: u64) -> u64 {
        block * u64::from(self.backend.guest_block_size())
    }

    async fn carry_out(&self, command: Command) -> IoResult<Answer> {
        let backend = &self.backend;
        let done = Answer::Good(Vec::new());
        Ok(match command {
            Command::Inquiry => Answer::Good(backend.device_id().unwrap_or_default().into_bytes()),
            Command::ReadCapacity => {
                let blocks = backend.entry()?.length()? / u64::from(backend.guest_block_size());
                Answer::Good((blocks - 1).to_be_bytes().to_vec())
            }
            Command::ModeSense => {
                let writable = backend.root().is_writable();
                Answer::Good(vec![u8::from(backend.write_cache()), u8::from(!writable)])
            }
            Command::ModeSelect { write_cache, block_size } => {
                backend.set_write_cache(write_cache);
                backend.set_guest_block_size(block_size);
                done
            }
            Command::PreventRemoval(prevent) => {
                backend.lock_medium(prevent);
                done
            }
            Command::StartStop { .. } if backend.is_medium_locked() => Answer::MediumLocked,
            Command::StartStop { load } => {
                backend.eject(!load);
                done
            }
            Command::Read { block, count } => {
                let len = self.offset(count.into()) as usize;
                let (result, buf) =
                    backend.entry()?.read(self.offset(block), AlignedBuf::zeroed(len, 512).into_io()).await;
                result?;
                let mut bytes = vec![0; len];
                buf.ok_or(IoError::CANCELLED)?.copy_to_slice(0, &mut bytes);
                Answer::Good(bytes)
            }
            Command::Write { block, data } => {
                let flags = if backend.write_cache() { RequestFlags::empty() } else { RequestFlags::FUA };
                backend.entry()?.write(self.offset(block), data, flags).await.0?;
                done
            }
            Command::Unmap { block, count } => {
                backend.entry()?.discard(self.offset(block), self.offset(count.into())).await?;
                done
            }
            Command::SynchroniseCache => {
                backend.entry()?.flush().await?;
                done
            }
        })
    }
}

#[test]
fn a_guest_boots_writes_and_ejects() {
    let disk = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE);
    let (backend, control, mut events) = disk.backend();
    control.set_device_id(Some("scsi0-0-1".into()));
    on_a_device_thread(|| {
        let scsi = ScsiDisk { backend };
        let run = |command| bed::block_on(scsi.execute(command));
        let done = || Answer::Good(Vec::new());
        assert_eq!(run(Command::Inquiry), Answer::Good(b"scsi0-0-1".to_vec()));
        assert_eq!(run(Command::ReadCapacity), Answer::Good(2047u64.to_be_bytes().to_vec()));
        assert_eq!(run(Command::ModeSense), Answer::Good(vec![1, 0]));
        assert_eq!(run(Command::ModeSelect { write_cache: false, block_size: 2048 }), done());
        assert_eq!(run(Command::ReadCapacity), Answer::Good(511u64.to_be_bytes().to_vec()));
        let mut data = AlignedBuf::zeroed(2048, 512);
        data.fill(7);
        assert_eq!(run(Command::Write { block: 3, data: data.into_io() }), done());
        assert_eq!(run(Command::SynchroniseCache), done());
        assert_eq!(run(Command::Read { block: 3, count: 1 }), Answer::Good(vec![7; 2048]));
        assert_eq!(run(Command::Unmap { block: 3, count: 1 }), done());
        assert_eq!(run(Command::Read { block: 3, count: 1 }), Answer::Good(vec![0; 2048]));
        assert_eq!(run(Command::Read { block: 512, count: 1 }), Answer::Sense(IoError::OUT_OF_BOUNDS.errno().raw()));
        assert_eq!(run(Command::PreventRemoval(true)), done());
        assert_eq!(run(Command::StartStop { load: false }), Answer::MediumLocked);
        assert_eq!(run(Command::PreventRemoval(false)), done());
        assert_eq!(run(Command::StartStop { load: false }), done());
        assert_eq!(run(Command::Read { block: 0, count: 1 }), Answer::NotReady);
        assert_eq!(run(Command::StartStop { load: true }), done());
        assert_eq!(run(Command::Read { block: 0, count: 1 }), Answer::Good(vec![0; 2048]));
    });
    let told: Vec<_> =
        bed::block_on(async { [events.next().await, events.next().await, events.next().await] }).into_iter().collect();
    assert!(matches!(told[0], Some(BackendEvent::IoError { is_write: false, action: ErrorAction::Report, .. })));
    assert_eq!(told[1..], [Some(BackendEvent::MediumLocked(true)), Some(BackendEvent::MediumLocked(false))]);
    disk.close();
}
