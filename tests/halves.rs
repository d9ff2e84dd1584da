//! Which halves may leave their thread, and which there are only one of: decided while this compiles, for want of a
//! test to run.

/// Fails to compile when the type has the trait: then both implementations fit, and the compiler does not choose.
macro_rules! is_not {
    ($($type:ty),+ => $bound:path) => {$(
        const _: () = {
            trait Ambiguous<A> {
                const SEEN: () = ();
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct Has;
            impl<T: ?Sized + $bound> Ambiguous<Has> for T {}
            <$type as Ambiguous<_>>::SEEN
        };
    )+};
}

/// Fails to compile when the type lacks one of the traits.
macro_rules! is {
    ($($type:ty),+ => $($bound:path),+) => {
        const _: () = {
            const fn has<T: ?Sized $(+ $bound)+>() {}
            $(has::<$type>();)+
        };
    };
}

mod global_state {
    //! What belongs to the main loop does not leave its thread, not even as a reference.

    use block_backend::Backend;
    use block_gs::{
        DrainGuard, DriverType, EngineControl, GlobalState, MainHandle, MainLoop, NodeRef, RootRef, Ticket,
    };
    use block_io::{NodeControl, NodeTarget, RootControl};
    use block_jobs::{JobContext, JobRef, JobRegistry, JobSetup};

    is_not!(GlobalState, NodeRef, RootRef, DrainGuard, Ticket, MainLoop, MainHandle, Backend => Send);
    is_not!(GlobalState, NodeRef, RootRef, DrainGuard, Ticket, MainLoop, MainHandle, Backend => Sync);
    is_not!(NodeControl, NodeTarget, RootControl, dyn DriverType, dyn EngineControl => Send);
    is_not!(NodeControl, NodeTarget, RootControl, dyn DriverType, dyn EngineControl => Sync);
    is_not!(JobContext, JobRef, JobRegistry, JobSetup => Send);
    is_not!(JobContext, JobRef, JobRegistry, JobSetup => Sync);
}

mod io {
    //! What I/O holds goes to any thread, and many may hold it at once.

    use block_backend_io::{BackendIo, Upcalls};
    use block_common::{GuestMemoryRef, IoBuf, IoError};
    use block_copy::JobControl;
    use block_io::{
        Completed, Done, Driver, Edge, HostFile, IoNode, IoThread, IoThreadHandle, Req, Request, Root, StaticNode,
        ThreadPool,
    };

    is!(Root, IoNode, BackendIo, IoThreadHandle, IoThread, Req, IoBuf, GuestMemoryRef => Send, Sync);
    is!(Edge, HostFile, ThreadPool, StaticNode, Upcalls<u64, bool>, dyn Driver => Send, Sync);
    is!(Request, Done, Completed, JobControl => Send);
    is!(Root, IoNode, BackendIo, IoThreadHandle, IoBuf, Upcalls<u64, bool> => Clone);
    is!(IoError => Copy);
}

mod writers {
    //! Of each writer's half there is one.

    use block_backend_io::{BackendControl, BackendEvents, UpcallsOut};
    use block_copy::{JobControl, JobNotes, JobOrders};
    use block_gs::{DrainGuard, MainLoop, RootRef, Ticket};
    use block_io::{Edge, EdgeWriter, HostFileControl, NodeControl, Quiesced, Req, RootControl};

    is_not!(NodeControl, EdgeWriter, RootControl, HostFileControl, BackendControl, DrainGuard => Clone);
    is_not!(Quiesced<'static>, Ticket, RootRef, MainLoop => Clone);
    // Nor of what is counted or answered once.
    is_not!(Req, Edge, BackendEvents, UpcallsOut<u64, bool>, JobControl, JobOrders, JobNotes => Clone);
}

mod futures {
    //! Requests may be awaited on any thread.

    use block_common::IoBuf;
    use block_io::{IoThreadHandle, Root};

    const fn goes_anywhere<T: Send>(_: &T) {}

    /// Never called: compiling it is the test.
    #[expect(dead_code, reason = "compiling it is the test")]
    fn requests_go_anywhere(root: &Root, home: &IoThreadHandle, buf: IoBuf) {
        goes_anywhere(&root.read(0, buf));
        goes_anywhere(&root.flush());
        goes_anywhere(&root.block_status(0, 1));
        goes_anywhere(&home.run(async {}));
    }
}

#[test]
fn it_compiled() {}
