// The key slot is written although nobody took the permission for it, or before there was a reason to ask for one: the
// flag that makes the driver ask was set by someone else, later. Where the act that takes the permission returns a
// permit, and writing wants one, the order is a type: see `block-jobs/tests/amend.rs` for the whole job.
// (Review: the refresh came before the flag, was granted nothing, and the write died on its own check.)

mod amend {
    use block_common::{IoBuf, IoResult, Perm, PermPair};
    use block_gs::{GlobalState, GraphResult, RootRef};
    use block_io::Root;

    /// Keys may be written.
    pub struct Permit(());

    pub fn pre_run(gs: &GlobalState, root: &RootRef) -> GraphResult<Permit> {
        gs.set_root_perm(root, PermPair::new(Perm::WRITE, Perm::all()))?;
        Ok(Permit(()))
    }

    pub async fn write_keys(image: &Root, keys: IoBuf, _permit: &Permit) -> IoResult<()> {
        image.ioctl(1, keys).await
    }
}

async fn run(image: &block_io::Root, keys: [block_common::IoBuf; 2]) {
    let [old, new] = keys;
    let _ = amend::write_keys(image, old).await;
    let _ = amend::write_keys(image, new, &amend::Permit(())).await;
}

fn main() {}
