//! The program's block layer: set up when it is needed, with the objects of the command line in it, used once, and closed.
//!
//! What is done with it is each command's.

use crate::cli::Failure;
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, GraphError, MainLoop, ObjectText};
use std::future::Future;

/// The block layer of one command.
#[derive(Debug)]
pub(crate) struct BlockLayer(Option<SetUp>);

/// The loop goes last.
#[derive(Debug)]
struct SetUp {
    gs: GlobalState,
    main: MainLoop,
}

impl SetUp {
    fn new() -> Result<Self, Failure> {
        let refused = |error| Failure::message(format!("Could not set up the block layer: {error}"));
        let main = MainLoop::new().map_err(refused)?;
        let gs = GlobalState::new(&main, GlobalOptions::default()).map_err(refused)?;
        register_all(&gs);
        Ok(Self { gs, main })
    }
}

impl BlockLayer {
    /// A block layer with the objects that `texts` describe, made one after the other. `None` when that was all: the user wanted help, and has it.
    ///
    /// # Errors
    /// What is wrong with the first object that cannot be made.
    pub(crate) fn with_objects(texts: &[String]) -> Result<Option<Self>, Failure> {
        let refused = |error: GraphError| Failure::message(error.report());
        if texts.is_empty() {
            return Ok(Some(Self(None)));
        }
        let set_up = SetUp::new()?;
        for text in texts {
            match ObjectText::parse(text).map_err(refused)? {
                ObjectText::Help(help) => return crate::print(&help).map(|()| None),
                ObjectText::Make(options) => set_up.main.run(set_up.gs.add_object(options)).map_err(refused)?,
            }
        }
        Ok(Some(Self(Some(set_up))))
    }

    /// Let `work` use the block layer, and close everything that is still open.
    ///
    /// # Errors
    /// What `work` returns, and what closing answered: a flush that failed means that data is lost.
    pub(crate) fn run<F: Future<Output = Result<(), Failure>>>(
        self,
        work: impl FnOnce(GlobalState) -> F,
    ) -> Result<(), Failure> {
        let SetUp { gs, main } = self.0.map_or_else(SetUp::new, Ok)?;
        let done = main.run(async {
            let worked = work(gs.clone()).await;
            let closed = gs.close_all().await.map_err(Failure::message);
            match (worked, closed) {
                (Err(first), Err(second)) => Err(first.and(second)),
                (worked, closed) => worked.and(closed),
            }
        });
        for object in gs.objects() {
            // It was there a moment ago. What it holds is wiped.
            let _ = gs.remove_object(&object.id);
        }
        // Nothing is left open, and the process is about to end: nobody waits for the threads to end before it.
        std::mem::forget((gs, main));
        done
    }
}
