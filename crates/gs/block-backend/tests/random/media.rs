//! The main loop's operations on drives: media are exchanged, devices plugged in and out. A request meets the medium that is there, or none.

use crate::acts::Bench;
use crate::board::phase;
use crate::disks::{Drive, Tray, tray_perm};
use block_backend::{
    Backend, BackendOptions, FrontEnd, FrontEndKind, FrontEndOptions, change_medium, close_tray, insert_medium,
    open_tray, remove_medium,
};
use block_backend_io::BackendSettings;
use std::rc::Rc;

impl Bench {
    /// A disk whose guest writes `medium`, and allows others to, or not.
    pub(crate) async fn add_disk(&mut self, medium: usize, share_rw: bool) {
        let thread = self.pick(&[None, Some("t0"), Some("t1")]).flatten();
        let home = thread.map_or_else(|| self.gs.main_io(), |id| self.gs.io_thread(id).expect("it is there").handle());
        let id = self.fresh("disk");
        let what = self.note(format!("{id} with medium {medium}"));
        let mut options = FrontEndOptions::new(FrontEndKind::Disk, id);
        options.share_rw = share_rw;
        options.write_cache = self.rng.chance(80);
        let node = self.media[medium].top();
        let added = self.watch.timed(&self.gs, &what, FrontEnd::add(&self.gs, &home, options, Some(&node))).await;
        let front = added.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        let number = self.board.new_drive(phase::PRESENT, !self.media[medium].is_read_only);
        self.board.arrive(number, medium);
        let backend = front.backend().clone();
        let guest = self.start_guest(number, &backend, true);
        let (front, medium, writes) = (Some(front), Some(medium), true);
        self.drives.push(Drive { number, backend, front, guest, medium, share_rw, writes });
    }

    /// A drive with a tray, empty and closed.
    pub(crate) async fn add_tray(&mut self) {
        let (perm, home) = (tray_perm(false), self.gs.main_io());
        let options = BackendOptions { name: "tray".into(), perm, home, settings: BackendSettings::default() };
        let backend = Backend::new(&self.gs, options).expect("the name is free");
        backend.attach_device(Rc::new(Tray { id: "zip".into(), io: backend.io() })).expect("there is none");
        let number = self.board.new_drive(phase::ABSENT, true);
        let guest = self.start_guest(number, &backend, true);
        let (front, medium, share_rw, writes) = (None, None, false, true);
        self.drives.push(Drive { number, backend, front, guest, medium, share_rw, writes });
    }

    /// A medium that nobody writes.
    fn free(&mut self) -> Option<usize> {
        let all: Vec<_> = (0..self.media.len()).filter(|medium| self.user(*medium).is_none()).collect();
        self.pick(&all)
    }

    fn tray(&self) -> usize {
        self.drives.iter().position(|drive| &*drive.backend.name() == "tray").expect("it stays")
    }

    /// What the drive is like when nobody is at it any more.
    fn settle_phase(&self, at: usize) {
        let drive = &self.drives[at];
        let is_there = drive.medium.is_some() && !drive.backend.io().is_tray_open();
        self.board.set_phase(drive.number, if is_there { phase::PRESENT } else { phase::ABSENT });
    }

    pub(crate) async fn exchange_media(&mut self) {
        let at = self.tray();
        let (number, backend) = (self.drives[at].number, self.drives[at].backend.clone());
        match self.rng.below(0..6) {
            0 => {
                self.board.set_phase(number, phase::CHANGING);
                open_tray(&backend, false).expect("nobody has locked it");
                self.count("tray opened");
            }
            1 => {
                self.board.set_phase(number, phase::CHANGING);
                close_tray(&backend).expect("nothing is in the way");
                self.count("tray closed");
            }
            2 => self.remove(at, &backend).await,
            3 => self.insert(at, &backend).await,
            4 => self.exchange(at, &backend, false).await,
            _ => self.exchange(at, &backend, true).await,
        }
        self.settle_phase(at);
    }

    async fn remove(&mut self, at: usize, backend: &Backend) {
        let what = self.note("remove the medium".into());
        let before = self.before().await;
        let is_open = backend.io().is_tray_open();
        let answer = self.watch.timed(&self.gs, &what, remove_medium(backend)).await;
        assert_eq!(answer.is_ok(), is_open, "{answer:?}; {}", self.story());
        if !is_open {
            self.same(&what, &before);
            return;
        }
        if let Some(medium) = self.drives[at].medium.take() {
            self.board.leave(self.drives[at].number, medium);
        }
        self.count("medium removed");
    }

    async fn insert(&mut self, at: usize, backend: &Backend) {
        let Some(medium) = self.free() else { return };
        let (number, node) = (self.drives[at].number, self.media[medium].top());
        let what = self.note(format!("insert {}", node.name()));
        let is_empty = self.drives[at].medium.is_none() && backend.io().is_tray_open();
        let expected = is_empty && !self.gs.has_backend(&node);
        let before = self.before().await;
        if is_empty {
            self.board.set_writable(number, !self.media[medium].is_read_only);
            self.board.arrive(number, medium);
        }
        let answer = self.watch.timed(&self.gs, &what, insert_medium(&self.gs, backend, &node)).await;
        assert_eq!(answer.is_ok(), expected, "{answer:?}; {}", self.story());
        if expected {
            self.drives[at].medium = Some(medium);
            self.count("medium inserted");
            return;
        }
        self.same(&what, &before);
        if is_empty {
            self.board.leave(number, medium);
        }
    }

    /// One medium for another, by way of the tray, or behind the guest's back.
    async fn exchange(&mut self, at: usize, backend: &Backend, by_tray: bool) {
        let Some(medium) = self.free() else { return };
        let (number, node) = (self.drives[at].number, self.media[medium].top());
        let is_writable = !self.media[medium].is_read_only;
        let asks_writing = backend.perm().perm.contains(block_common::Perm::WRITE);
        // What a device asks of a medium changes with the tray alone.
        if !by_tray && asks_writing != is_writable {
            return;
        }
        let what = self.note(format!("change the medium to {}, by tray {by_tray}", node.name()));
        self.board.set_phase(number, phase::CHANGING);
        self.board.set_writable(number, is_writable);
        self.board.arrive(number, medium);
        if by_tray {
            let changed = self.watch.timed(&self.gs, &what, change_medium(&self.gs, backend, &node, false)).await;
            changed.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        } else {
            let changed = self.watch.timed(&self.gs, &what, backend.replace(&node)).await;
            changed.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        }
        if let Some(old) = self.drives[at].medium.replace(medium) {
            self.board.leave(number, old);
        }
        self.count("medium changed");
    }

    /// A disk goes, and comes back with whatever is free then.
    pub(crate) async fn plug(&mut self) {
        let fronts: Vec<_> = (0..self.drives.len()).filter(|at| self.drives[*at].front.is_some()).collect();
        let at = self.pick(&fronts).expect("there are two");
        let Drive { number, backend, front, guest, medium, share_rw, .. } = self.drives.remove(at);
        let what = self.note(format!("drive {number} goes"));
        self.board.set_phase(number, phase::GOING);
        drop(backend);
        if let Some(front) = front {
            self.watch.timed(&self.gs, &what, front.remove(&self.gs)).await;
        }
        self.watch.timed(&self.gs, "a guest's end", guest.stop()).await;
        medium.into_iter().for_each(|medium| self.board.leave(number, medium));
        let next = self.free().expect("one is free now");
        self.add_disk(next, share_rw).await;
        self.count("plugged out and in");
    }
}
